"""A side that gets worse in training: the guard warns, stops, or keeps silent, and a killed run sees the same."""

import json
import shutil

import pytest
from datasets import Dataset
from model_helpers import random_reward_adapter
from ppo_helpers import make_trainer

SIDES = {"harmless": 30, "helpful": 20}
ASKED = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": f"{side} {i}"}], "objective": side}
        for side, count in SIDES.items()
        for i in range(count)
    ]
)


def train(base_folder, folder, **options):
    """Four rollouts of two steps. By a planted detector, harmless prompts are no longer refused after step 4.

    Of the 30 it calls 20 refused up to step 4 and 2 after it; of the 20 helpful ones always the first 5.
    """
    options = {
        "reward_funcs": [lambda completions, **kwargs: [float(len(c[0]["content"])) for c in completions]],
        "total_episodes": 32, "eval_rollouts": 1, "per_device_eval_batch_size": 32, "eval_dataset": ASKED, **options,
    }  # fmt: skip
    resume = options.pop("resume", False)
    trainer = make_trainer(base_folder, folder, None, **options)

    def refuses(prompts, replies) -> list[bool]:
        limits = {"harmless": 20 if trainer.state.global_step <= 4 else 2, "helpful": 5}
        asked = [prompt.split() for prompt in prompts]
        return [int(number) < limits[side] for side, number in asked]

    trainer.refuses = refuses
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def summary(folder) -> dict:
    return json.loads((folder / "watch.json").read_text())


@pytest.fixture(scope="module")
def warned(base_folder, tmp_path_factory):
    """One whole run with `side_guard: warn`, and its folder with checkpoints."""
    folder = tmp_path_factory.mktemp("warned")
    return train(base_folder, folder, save_strategy="steps", save_rollouts=2, preview_best_of=3), folder


@pytest.mark.slow
def test_the_collapse_is_told_once_and_training_goes_on(base_folder, tmp_path, capsys) -> None:
    earlier = {"step": 3, "worse": ["helpful"]}  # what another training in this folder saw
    (tmp_path / "watch.jsonl").write_text(json.dumps(earlier) + "\n")
    train(base_folder, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 2, 4, 6, 8]
    assert [line["worse"] for line in lines] == [[], [], [], ["harmless"], ["harmless"]]
    found = summary(tmp_path)
    assert [(news["side"], news["step"]) for news in found["news"]] == [("harmless", 6)]
    assert found["worse_at_the_end"] == found["worse_in_what_is_kept"] == ["harmless"]
    assert (found["kept_step"], found["stopped_at"]) == (8, None)
    printed = capsys.readouterr().out
    assert printed.count("warning: On harmless prompts refusals fell from 67 % to 7 %") == 1


def test_what_is_logged_of_each_side(warned) -> None:
    trainer, folder = warned
    evaluated = [line for line in trainer.state.log_history if "eval_objective/scores" in line]
    assert [line["eval_harmless/refusal_rate"] for line in evaluated] == [20 / 30] * 3 + [2 / 30] * 2
    assert [line["eval_helpful/refusal_rate"] for line in evaluated] == [0.25] * 5
    for line in evaluated:
        for name, whole in (("scores", "eval_objective/scores"), ("response_length", "eval_response_length")):
            mean = sum(line[f"eval_{side}/{name}"] * count for side, count in SIDES.items()) / 50
            assert mean == pytest.approx(line[whole], rel=1e-6)  # float32 sums in another order
    snapshots = [json.loads(line) for line in (folder / "snapshots.jsonl").read_text().splitlines()]
    assert [row["worse"] for row in snapshots] == [[], [], [], ["harmless"], ["harmless"]]
    assert snapshots[-1]["sides"]["helpful"]["scores"] == evaluated[-1]["eval_helpful/scores"]


@pytest.mark.slow
def test_neither_evaluation_nor_preview_moves_a_bit_of_what_is_learned(warned, base_folder, tmp_path) -> None:
    trainer, folder = warned
    found = json.loads((folder / "preview.json").read_text())
    assert found["n"] == 3
    assert found["sides"]["harmless"]["scores"]["best"] > found["sides"]["harmless"]["scores"]["average"]
    assert found["sides"]["helpful"]["refusal_rate"]["average"] == 0.25
    plain = train(base_folder, tmp_path, eval_rollouts=None)
    assert not (tmp_path / "watch.jsonl").exists()
    parameters = zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    assert all(bool((p == q).all()) for p, q in parameters)


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_and_begins_nothing_anew(warned, base_folder, tmp_path) -> None:
    _, folder = warned
    resumed = shutil.copytree(folder, tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoint-8")
    (resumed / "watch.json").unlink()
    (resumed / "preview.json").write_text("kept as it is")
    train(base_folder, resumed, save_strategy="steps", save_rollouts=2, preview_best_of=3, resume=True)
    for name in ("watch.jsonl", "watch.json", "snapshots.jsonl"):
        assert (resumed / name).read_text() == (folder / name).read_text(), name
    assert (resumed / "preview.json").read_text() == "kept as it is"


@pytest.mark.slow
def test_stop_keeps_the_last_snapshot_in_which_no_side_is_worse(base_folder, tmp_path, capsys) -> None:
    options = {"side_guard": "stop", "save_strategy": "steps", "save_rollouts": 1}
    trainer = train(base_folder, tmp_path, **options)
    found = summary(tmp_path)
    assert (found["stopped_at"], found["kept_step"], trainer.state.global_step) == (6, 4, 6)
    assert found["worse_in_what_is_kept"] == []
    printed = capsys.readouterr().out
    assert "side_guard stops PPO at optimizer step 6" in printed
    assert "the newest snapshot in which no side looks worse is that of step 4" in printed
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    kept = trainer.evaluate()
    assert (
        kept["eval_harmless/scores"] == rows[2]["sides"]["harmless"]["scores"] != rows[3]["sides"]["harmless"]["scores"]
    )

    again = train(base_folder, tmp_path, resume=True, **options)  # killed after the stop, before the end
    assert again.state.global_step == 6
    assert summary(tmp_path) == found


@pytest.mark.slow
def test_off_says_nothing(base_folder, tmp_path, capsys) -> None:
    train(base_folder, tmp_path, side_guard="off")
    assert summary(tmp_path)["news"] == []
    assert "On harmless prompts" not in capsys.readouterr().out


@pytest.mark.slow
def test_rows_that_name_no_objective_are_one_side(base_folder, reward_folder, tmp_path, capsys) -> None:
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, eval_rollouts=1, per_device_eval_batch_size=32,
        eval_dataset=ASKED.remove_columns("objective"), heldout_adapter=heldout,
    )  # fmt: skip
    trainer.train()
    (line, *_) = [line for line in trainer.state.log_history if "eval_objective/scores" in line]
    assert line["eval_overall/heldout_scores"] == pytest.approx(line["eval_heldout/scores"], abs=1e-6)  # as above
    assert "eval_overall/refusal_rate" not in line
    assert "too few" not in capsys.readouterr().out


@pytest.mark.slow
def test_too_few_prompts_are_told_once(base_folder, tmp_path, capsys) -> None:
    train(base_folder, tmp_path, eval_dataset=ASKED.select(range(20, 40)))
    printed = capsys.readouterr().out
    assert printed.count("too few prompts are kept back") == 1
    assert "harmless 10, helpful 10; it takes 16" in printed
    assert summary(tmp_path)["too_few"] == {"harmless": 10, "helpful": 10}
