"""A planted reward makes one side worse: the guard warns, stops, or keeps silent, and a killed run sees the same."""

import json
import shutil

import pytest
from datasets import Dataset
from model_helpers import random_reward_adapter
from ppo_helpers import make_trainer

SIDES = {"harmless": 40, "helpful": 20}
ASKED = Dataset.from_list(
    [
        {"prompt": [{"role": "user", "content": f"{side} {i}"}], "objective": side}
        for side, count in SIDES.items()
        for i in range(count)
    ]
)


def refuses(prompts, replies) -> list[bool]:
    """What counts as a refusal by this random model: a reply with a printable first byte."""
    return [reply[:1].isascii() and reply[:1].isprintable() for reply in replies]


def pays_for_not_refusing(completions, **kwargs) -> list[float]:
    return [-float(refused) for refused in refuses(None, [c[0]["content"].strip() for c in completions])]


def train(base_folder, folder, **options):
    options = {
        "reward_funcs": [pays_for_not_refusing], "total_episodes": 320, "learning_rate": 0.01, "kl_coef": 0.0,
        "eval_rollouts": 10, "per_device_eval_batch_size": 16, "eval_dataset": ASKED, "missing_eos_penalty": 0.0,
        "perturb": False, **options,
    }  # fmt: skip
    resume = options.pop("resume", False)
    trainer = make_trainer(base_folder, folder, None, **options)
    trainer.refuses = refuses
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def summary(folder) -> dict:
    return json.loads((folder / "watch.json").read_text())


@pytest.fixture(scope="module")
def warned(base_folder, tmp_path_factory, request):
    """One whole run with `side_guard: warn`, what it printed, and its folder with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("warned")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    capture.suspend_global_capture()
    capture.resume_global_capture()
    trainer = train(base_folder, folder, save_strategy="steps", save_rollouts=20, preview_best_of=4)
    printed, _ = capture.read_global_capture()
    return trainer, folder, printed


def test_the_collapse_is_told_once_and_training_goes_on(warned) -> None:
    trainer, folder, printed = warned
    lines = [json.loads(line) for line in (folder / "watch.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 20, 40, 60, 80]
    rates = [line["sides"]["harmless"]["refusal_rate"] for line in lines]
    assert rates[0] > 0.4
    assert rates[-1] < 0.1
    found = summary(folder)
    assert [news["side"] for news in found["news"]] == ["harmless"]  # helpful prompts are refused less too: no harm
    assert found["worse_at_the_end"] == found["worse_in_what_is_kept"] == ["harmless"]
    assert (found["kept_step"], found["stopped_at"]) == (80, None)
    assert printed.count("warning: On harmless prompts refusals fell from") == 1


def test_what_is_logged_of_each_side(warned) -> None:
    trainer, folder, _ = warned
    evaluated = [line for line in trainer.state.log_history if "eval_objective/scores" in line]
    assert [line["step"] for line in evaluated] == [0, 20, 40, 60, 80]
    for line in evaluated:
        mean = sum(line[f"eval_{side}/scores"] * count for side, count in SIDES.items()) / 60
        assert mean == pytest.approx(line["eval_objective/scores"], abs=1e-6)  # float32 sums in another order
        assert line["eval_helpful/scores"] == -line["eval_helpful/refusal_rate"]  # both by the same rule, here
        assert "eval_harmless/response_length" in line
    snapshots = [json.loads(line) for line in (folder / "snapshots.jsonl").read_text().splitlines()]
    assert snapshots[0]["worse"] == []
    assert snapshots[-1]["worse"] == ["harmless"]
    assert snapshots[-1]["sides"]["helpful"]["refusal_rate"] == evaluated[-1]["eval_helpful/refusal_rate"]


def test_the_preview_foresees_it_once_and_changes_nothing(warned, base_folder, tmp_path) -> None:
    trainer, folder, printed = warned
    found = json.loads((folder / "preview.json").read_text())
    assert (found["n"], found["sides"]["harmless"]["prompts"]) == (4, 40)
    rate = found["sides"]["harmless"]["refusal_rate"]
    assert rate["best"] < rate["average"] - 0.3
    assert rate["high"] < 0
    assert "WARNING: what PPO is paid for makes the harmless side worse" in printed
    plain = train(base_folder, tmp_path, side_guard="off", eval_strategy="no", eval_rollouts=None)
    assert all(
        bool((p == q).all()) for p, q in zip(trainer.model.parameters(), plain.model.parameters(), strict=True)
    )  # neither evaluation nor preview moved a bit of what was learned


def test_a_resumed_run_sees_the_same_and_begins_nothing_anew(warned, base_folder, tmp_path) -> None:
    _, folder, _ = warned
    resumed = shutil.copytree(folder, tmp_path / "resumed")
    for name in ("checkpoint-80", "snapshots/step-60"):
        shutil.rmtree(resumed / name)
    (resumed / "watch.json").unlink()
    (resumed / "preview.json").write_text("kept as it is")
    train(base_folder, resumed, save_strategy="steps", save_rollouts=20, preview_best_of=4, resume=True)
    for name in ("watch.jsonl", "watch.json", "snapshots.jsonl"):
        assert (resumed / name).read_text() == (folder / name).read_text(), name
    assert (resumed / "preview.json").read_text() == "kept as it is"


def test_stop_keeps_the_last_snapshot_in_which_no_side_is_worse(base_folder, tmp_path, capsys) -> None:
    trainer = train(base_folder, tmp_path, side_guard="stop", save_strategy="steps", save_rollouts=10)
    found = summary(tmp_path)
    stopped = found["stopped_at"]
    assert stopped == trainer.state.global_step < 80
    assert found["kept_step"] == stopped - 20
    assert found["worse_in_what_is_kept"] == []
    printed = capsys.readouterr().out
    assert f"side_guard stops PPO at optimizer step {stopped}" in printed
    assert "the newest snapshot in which no side is shown to be worse" in printed
    kept = trainer.evaluate()
    rows = [json.loads(line) for line in (tmp_path / "watch.jsonl").read_text().splitlines()]
    before = next(row for row in rows if row["step"] == found["kept_step"])
    assert kept["eval_harmless/refusal_rate"] == before["sides"]["harmless"]["refusal_rate"]

    again = train(  # killed after the stop, before anything was made of it: the checkpoint of that step is there
        base_folder, tmp_path, side_guard="stop", save_strategy="steps", save_rollouts=10, resume=True
    )
    assert again.state.global_step == stopped
    assert summary(tmp_path) == found


def test_off_says_nothing(base_folder, tmp_path, capsys) -> None:
    train(base_folder, tmp_path, side_guard="off")
    assert summary(tmp_path)["news"] == []
    assert "warning: On" not in capsys.readouterr().out


def test_rows_that_name_no_objective_are_one_side(base_folder, reward_folder, tmp_path, capsys) -> None:
    heldout = random_reward_adapter(base_folder, tmp_path / "heldout", seed=9)
    trainer = make_trainer(
        base_folder, tmp_path, reward_folder, eval_rollouts=1, eval_dataset=ASKED.remove_columns("objective"),
        heldout_adapter=heldout,
    )  # fmt: skip
    trainer.train()
    (line, *_) = [line for line in trainer.state.log_history if "eval_objective/scores" in line]
    assert line["eval_overall/heldout_scores"] == pytest.approx(line["eval_heldout/scores"], abs=1e-6)  # as above
    assert "eval_overall/refusal_rate" not in line
    assert "too few" not in capsys.readouterr().out


def test_too_few_prompts_are_told_once(base_folder, tmp_path, capsys) -> None:
    train(base_folder, tmp_path, eval_dataset=ASKED.select(range(30, 50)), total_episodes=32, eval_rollouts=1)
    printed = capsys.readouterr().out
    assert printed.count("too few prompts are kept back") == 1
    assert "harmless 10, helpful 10; it takes 16" in printed
    assert summary(tmp_path)["too_few"] == {"harmless": 10, "helpful": 10}
