"""Commands that take one process say so in a launch of several."""

from pathlib import Path

import pytest
from chain_helpers import write_recipe
from typer.testing import CliRunner

from llm_rlhf.cli.main import app


@pytest.mark.parametrize("command", ["doctor", "plan", "export"])
def test_in_a_launch_of_several_a_command_of_one_says_that_it_is_one(monkeypatch, tmp_path: Path, command) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    arguments = {"doctor": [], "plan": [str(write_recipe(tmp_path))], "export": [str(tmp_path)]}[command]
    found = CliRunner().invoke(app, [command, *arguments])
    assert found.exit_code == 2
    assert f"`llm-rlhf {command}` takes one process, and this launch has 2; run it by itself." in found.output
