"""One finished run of the tiny chain for all tests of this folder."""

import socket
from pathlib import Path

import pytest
from chain_helpers import write_recipe

from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """The run folder of one whole chain, made with every outgoing connection forbidden."""
    folder = tmp_path_factory.mktemp("chain")
    connect = socket.socket.connect

    def refuse(self, address):
        raise AssertionError(f"a connection was attempted to {address}")

    socket.socket.connect = refuse
    try:
        run_recipe(load_recipe(write_recipe(folder), [f"output_dir={folder / 'run'}"]))
    finally:
        socket.socket.connect = connect
    return folder / "run"
