"""What a command lets the libraries say on a user's screen."""

from logging import ERROR, NOTSET, WARNING, getLogger

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers.utils import logging

from llm_rlhf.cli.exits import quiet_libraries, quiet_warnings


@pytest.fixture(autouse=True)
def as_it_was():
    disabled, active = are_progress_bars_disabled(), logging.is_progress_bar_enabled()
    yield
    (logging.enable_progress_bar if active else logging.disable_progress_bar)()
    (disable_progress_bars if disabled else enable_progress_bars)()


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_downloads_are_seen_once_and_the_loading_of_weights_is_not(monkeypatch, rank, shown) -> None:
    """A model of many gigabytes downloads for minutes; each process of a launch would show it."""
    enable_progress_bars()
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    quiet_libraries()
    assert not logging.is_progress_bar_enabled()
    assert are_progress_bars_disabled() is not shown


def test_who_wants_no_bars_gets_none() -> None:
    disable_progress_bars()
    quiet_libraries()
    assert are_progress_bars_disabled()


def test_bitsandbytes_says_errors_alone() -> None:
    """On CPUs with AVX512-BF16 it asks at every start for kernels to be installed that nothing here needs."""
    whole, of_kernels = getLogger("bitsandbytes"), getLogger("bitsandbytes.backends.cpu.ops")
    before = whole.level
    whole.setLevel(NOTSET)
    try:
        assert of_kernels.isEnabledFor(WARNING)
        quiet_warnings()
        assert not of_kernels.isEnabledFor(WARNING)
        assert of_kernels.isEnabledFor(ERROR)
    finally:
        whole.setLevel(before)
