"""Files in torch's format are pickles, which may hold programs: none is run, wherever one lies."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from ppo_helpers import make_trainer
from test_requests import ask

from llm_rlhf.cli.exits import told_in_one_message
from llm_rlhf.run_folder import digests


class Program:
    """What makes the canary when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture(scope="module")
def checkpoint(base_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    make_trainer(base_folder, folder, None, reward_funcs=[brevity], save_strategy="steps", save_steps=1).train()
    return sorted(folder.glob("checkpoint-*"))[0]


def seal_again(checkpoint: Path) -> None:
    """As somebody would who put a file of theirs into it: the digests fit."""
    seal = checkpoint / "complete.json"
    seal.write_text(json.dumps(json.loads(seal.read_text()) | {"files": digests(checkpoint, but=seal.name)}))


def brevity(completions: list[Any], **kwargs: Any) -> list[float]:
    return [-float(len(str(text))) for text in completions]


def test_the_program_would_run(canary) -> None:
    torch.save(Program(canary), canary.with_suffix(".pt"))
    torch.load(canary.with_suffix(".pt"), weights_only=False)
    assert canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rng_state.pth", "optimizer.pt", "scheduler.pt"])
def test_fault_55_a_program_in_a_checkpoint_is_refused(name, checkpoint, base_folder, tmp_path, canary, capsys) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    assert (copy / name).is_file(), "it is there, and read"
    torch.save({"state": Program(canary), "param_groups": [], "python": Program(canary)}, copy / name)
    seal_again(copy)
    trainer = make_trainer(base_folder, tmp_path / "out", None, reward_funcs=[brevity])
    with pytest.raises(typer.Exit) as ended, told_in_one_message():
        trainer.train(resume_from_checkpoint=copy)
    assert ended.value.exit_code == 1
    assert f"{name} was refused" in capsys.readouterr().err
    assert not canary.exists()


@pytest.mark.slow
def test_fault_55_arguments_that_were_pickled_are_not_read(checkpoint, base_folder, tmp_path, canary) -> None:
    copy = Path(shutil.copytree(checkpoint, tmp_path / checkpoint.name))
    torch.save(Program(canary), copy / "training_args.bin")
    seal_again(copy)
    make_trainer(base_folder, tmp_path / "out", None, reward_funcs=[brevity]).train(resume_from_checkpoint=copy)
    assert not canary.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["model", "adapter", "reward"])
def test_fault_55_a_program_in_weights_is_refused(kind, base_folder, reward_folder, tmp_path, canary) -> None:
    """Of a model, of a policy's adapter, of a reward model's."""
    weights = "pytorch_model.bin" if kind == "model" else "adapter_model.bin"
    folder = Path(shutil.copytree(base_folder if kind == "model" else reward_folder, tmp_path / kind))
    next(folder.glob("*.safetensors")).unlink()
    torch.save({"model.embed_tokens.weight": Program(canary)}, folder / weights)
    if kind == "adapter":
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(
            json.dumps(config | {"task_type": "CAUSAL_LM", "modules_to_save": None})
        )
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    asked = (
        ["evaluate", "--reward", folder, "--pairs", tmp_path / "pairs.jsonl"] if kind == "reward" else ["chat", folder]
    )
    done = ask(*map(str, asked))
    assert done.exit_code in (1, 2), (done.exception, done.stderr[-2000:])
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert str(folder) in message
    assert not canary.exists()
