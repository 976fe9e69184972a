"""A training of another method that was killed after a checkpoint ends with the bits of one that was not."""

import json
from pathlib import Path
from typing import Any

import pytest
from method_helpers import KINDS, make
from transformers import TrainerCallback

from llm_rlhf import checkpoints
from llm_rlhf.errors import RunFolderError
from llm_rlhf.methods.training import train_policy
from llm_rlhf.recipe.loading import steps_per_rollout
from llm_rlhf.run_folder import RunFolder, read_json, write_json

STEPS = 12


class Killed(TrainerCallback):
    """After a step that a checkpoint at every second one, or fourth, does not hold any more."""

    def __init__(self, after: int = 7) -> None:
        self.after = after

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            raise KeyboardInterrupt


def train(kind: str, base: Path, reward: Path, folder: Path, killed: TrainerCallback | None = None) -> Any:
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": STEPS, "logging_steps": 1}
    if kind in ("grpo", "rloo"):  # four steps a rollout, and after two of them all prompts have been seen
        options |= {"per_device_train_batch_size": 4, "steps_per_generation": 2, "num_iterations": 2, "beta": 0.1}
        options["temperature"] = 0.7
    folder.mkdir(exist_ok=True)
    trainer = make(kind, base, folder, {"joint": reward}, **options)
    if killed is not None:
        trainer.add_callback(killed)
    train_policy(trainer, RunFolder(folder.parent), folder, kind, {"loss": "loss"})
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_after_a_checkpoint_and_started_again(
    kind, base_folder, reward_folder, tmp_path, capsys, monkeypatch
) -> None:
    """Of GRPO and RLOO in the second pass over the prompts, whose order is another than the first one's."""
    steps, after, expected = (16, 14, 12) if kind in ("grpo", "rloo") else (12, 7, 6)
    monkeypatch.setattr(f"{__name__}.STEPS", steps)
    train(kind, base_folder, reward_folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(kind, base_folder, reward_folder, tmp_path / "killed", killed=Killed(after))
    found = checkpoints.latest(tmp_path / "killed")
    assert found is not None
    assert found.step == expected
    train(kind, base_folder, reward_folder, tmp_path / "killed")
    assert f"{kind} was interrupted; it goes on from optimizer step {expected}" in capsys.readouterr().out
    runs = [tmp_path / "whole", tmp_path / "killed"]
    names = [sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()) for run in runs]
    names = [[name for name in of if "checkpoint-" not in name] for of in names]  # those go with the stage's end
    assert names[0] == names[1]
    snapshots = [name for name in names[0] if name.startswith("snapshots") and name.endswith(".safetensors")]
    assert len(snapshots) == steps // 2  # at every second step: an eighth of them, rounded up
    for name in ["policy/adapter_model.safetensors", *snapshots]:
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes(), name
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs]
    for line in (*logs[0], *logs[1]):
        for clock in [k for k in line if "time" in k or "per_second" in k or k in ("train_loss", "num_tokens")]:
            del line[clock]  # what a clock says, and sums over this launch's steps only
    assert logs[0] == logs[1]
    policy = json.loads((runs[0] / "policy" / "adapter_config.json").read_text())
    assert policy["task_type"] == "CAUSAL_LM"
    sampled = json.loads((runs[0] / "policy" / "generation_config.json").read_text())
    assert sampled.get("temperature", 1.0) == (
        0.7 if kind in ("grpo", "rloo") else 1.0
    )  # as it was sampled in training


class KilledAtTheEnd(TrainerCallback):
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grpo", "dpo"])
def test_killed_between_the_last_checkpoint_and_the_end(
    kind, base_folder, reward_folder, tmp_path, monkeypatch
) -> None:
    """In the middle of an epoch, where transformers would take one more step."""
    monkeypatch.setattr(f"{__name__}.STEPS", 12 if kind == "grpo" else 6)  # of 8 and 4 an epoch
    train(kind, base_folder, reward_folder, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(kind, base_folder, reward_folder, tmp_path / "killed", killed=KilledAtTheEnd())
    found = checkpoints.latest(tmp_path / "killed")
    assert found is not None
    assert found.step == STEPS
    trainer = train(kind, base_folder, reward_folder, tmp_path / "killed")
    assert trainer.state.global_step == STEPS
    whole, killed = ((tmp_path / run / "policy" / "adapter_model.safetensors") for run in ("whole", "killed"))
    assert whole.read_bytes() == killed.read_bytes()


def test_another_number_of_processes_is_refused(base_folder, reward_folder, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("dpo", base_folder, reward_folder, tmp_path / "dpo", killed=Killed())
    found = checkpoints.latest(tmp_path / "dpo")
    assert found is not None
    seal = read_json(found.path / checkpoints.COMPLETE)
    write_json(found.path / checkpoints.COMPLETE, seal | {"state": {"processes": 2}})
    with pytest.raises(RunFolderError, match="was made by 2 processes, now there are 1"):
        train("dpo", base_folder, reward_folder, tmp_path / "dpo")


def test_steps_per_rollout_by_hand() -> None:
    """Two micro-batches read twice are four micro-steps: four optimizer steps of one, two of two, four of three."""

    class Config:
        steps_per_generation, num_iterations, gradient_accumulation_steps = 2, 2, 1

    config = Config()
    for accumulated, expected in ((1, 4), (2, 2), (3, 4), (4, 1)):
        config.gradient_accumulation_steps = accumulated
        assert steps_per_rollout(config) == expected
