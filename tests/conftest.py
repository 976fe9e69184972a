"""Tiny models and tokenizers, built in code: the tests touch no network.

The large libraries are imported where they are used: of several processes, the one that deals out the tests needs none.
"""

import atexit
import functools
import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # also of subprocesses: as many processes as cores run at once
STAND_IN, NO_STAND_IN = str(Path(__file__).parent / "stand_in"), None
if os.environ.get("LLM_RLHF_TEST_DEVICE") == "stand-in":
    sys.path.insert(0, STAND_IN)
    import stand_in

    NO_STAND_IN = stand_in.missing()
    if NO_STAND_IN is None:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STAND_IN, os.environ.get("PYTHONPATH"))))
        for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_USE_CPU"):  # which would hide it
            os.environ.pop(name, None)
        stand_in.install()  # in processes that tests start, sitecustomize.py does
    else:
        os.environ["LLM_RLHF_TEST_DEVICE"] = "cpu"
if os.environ.get("LLM_RLHF_TEST_DEVICE", "cpu") == "cpu":  # only `make test-gpu` sees a GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["ACCELERATE_USE_CPU"] = "true"  # other accelerators than CUDA too
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="llm-rlhf-tests-")  # not the user's; also for subprocesses

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background, which the processes of tests inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

import llm_rlhf  # noqa: E402, F401 - telemetry off before TRL is imported

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)


def pytest_configure() -> None:
    device = os.environ.get("LLM_RLHF_TEST_DEVICE", "cpu")
    if device not in ("cpu", "cuda", "stand-in"):
        raise pytest.UsageError(f"LLM_RLHF_TEST_DEVICE is {device!r}; it must be cpu, cuda or stand-in.")


def pytest_report_header() -> str | None:
    return f"No stand-in for a GPU, tests run on the CPU: {NO_STAND_IN}" if NO_STAND_IN else None


def pytest_collection_finish() -> None:
    """When all test files are imported, in each process that runs tests."""
    import accelerate.utils.imports as imports
    import torch

    torch.set_num_threads(1)  # tiny tensors are faster so, and results do not depend on the machine's cores
    # Asked in every forward of a model with adapters, and answered from the installed packages' files each time.
    imports._is_package_available = functools.cache(imports._is_package_available)
    gc.collect()  # every training ends in a whole collection: spare it the million objects of what was imported
    gc.freeze()


CHAT = (
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}<|assistant|>{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}"
    "{%- else -%}{{ '<|' + m['role'] + '|>' + m['content'] }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@pytest.fixture
def fresh_graphs() -> Iterator[None]:
    """None that torch compiled before, counted from 0, and none left behind."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):  # which is raised for good
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Every byte is a token: no training, no merges, any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|system|>"]
    raw = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *alphabet])}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        additional_special_tokens=special[2:],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Llama of two layers, saved with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=0.2,  # wide, so that differences show
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    from model_helpers import random_reward_adapter

    return random_reward_adapter(base_folder, tmp_path_factory.mktemp("reward"))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """torch.compile without its long part: what dynamo traces is run as it is. Gives dynamo's counters."""
    import torch
    from torch._dynamo.utils import counters

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, mode=None, **kwargs: compile_(f, backend="eager", **kwargs))
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one whole tiny chain, made with every outgoing connection forbidden."""
    from chain_helpers import write_recipe

    from llm_rlhf.pipeline import run_recipe
    from llm_rlhf.recipe.loading import load_recipe

    folder = tmp_path_factory.mktemp("chain")
    connect = socket.socket.connect

    def refuse(self: Any, address: Any) -> None:
        raise AssertionError(f"a connection was attempted to {address}")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    try:
        run_recipe(load_recipe(write_recipe(folder), [f"output_dir={folder / 'run'}"]))
    finally:
        socket.socket.connect = connect  # type: ignore[method-assign]
    return folder / "run"
