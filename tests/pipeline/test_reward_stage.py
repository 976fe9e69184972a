"""Several reward adapters through PPO and the evaluation, and a recipe that ends with its reward model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_helpers import TINY
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RunError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe


def run_on(base: Path, folder: Path, pairs: Path, **sections: Any) -> Path:
    """A run on a base model that is there, without SFT; returns its folder."""
    folder.mkdir(exist_ok=True)
    recipe = {
        "name": "tiny",
        "model": {"base": str(base), "lora": {"r": 4, "alpha": 8}, **sections.get("model", {})},
        "data": {"preferences": [{"source": str(pairs)}], "evaluation_share": 0.2, "heldout_share": 0.3},
        **{name: section for name, section in sections.items() if name not in ("data", "model")},
    }
    recipe["data"] |= sections.get("data", {})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_recipe(load_recipe(folder / "recipe.yaml", [f"output_dir={folder / 'run'}"]))
    return folder / "run"


REWARD = {**TINY["reward"], "max_steps": 2, "reference_samples": 8, "reference_length": 8}
PPO = {**TINY["ppo"], "total_episodes": 16, "eval_prompts": 4}
EVALUATE = {"prompts": 8, "samples": 2, "resamples": 200, "refusal_prompts": 8}


@pytest.mark.parametrize(
    ("model", "reward", "ppo"),
    [
        ({"quantization": "nf4"}, {"objectives": "separate"}, {"reward_weights": [2.0, 0.5]}),
        (
            {},
            {"ensemble": 2, "label_smoothing": 0.1, "length_control": "residual"},
            {"score_combination": "mean_minus_spread"},
        ),
    ],
)
def test_several_adapters_walk_the_chain_on_one_base(
    finished: Path, tmp_path: Path, model: dict[str, Any], reward: dict[str, Any], ppo: dict[str, Any]
) -> None:
    run = run_on(
        finished / "sft" / "model",
        tmp_path / "several",
        finished / "world" / "preferences.jsonl",
        model=model,
        reward=REWARD | reward,
        ppo=PPO | ppo,
        evaluate=EVALUATE,
    )
    names = sorted(p.parent.name for p in (run / "reward").glob("*/adapter_model.safetensors"))
    members = [name for name in names if name != "heldout"]
    assert len(members) == 2
    weights = [(run / "reward" / name / "adapter_model.safetensors").read_bytes() for name in names]
    assert len(set(weights)) == 3
    logged = [json.loads(line) for line in (run / "ppo" / "metrics.jsonl").read_text().splitlines()]
    assert any({f"scores/{name}" for name in members} <= line.keys() for line in logged)
    report = json.loads((run / "report.json").read_text())
    assert {("reward_accuracy", name) for name in (*members, "reward", "heldout")} <= {
        (e["name"], e["subject"]) for e in report["estimates"]
    }
    assert {f"reward/{name}" for name in members} <= report["curves"].keys()
    for name in names:
        known = json.loads((run / "reward" / name / "calibration.json").read_text())
        assert known["no_temperature"] or known["temperature"] > 0
    assert (report["reward_model"]["agreement"] is not None) == ("ensemble" in reward)
    if model:
        return
    # No world knows of these prompts: on its own, too, the evaluation asks for refusals apart from them.
    out = tmp_path / "out"
    asked = ["evaluate", str(run), "--limit", "3", "--response-length", "8", "--output", str(out)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output + repr(result.exception)
    estimates = json.loads((out / "report.json").read_text())["estimates"]
    told = {(e["name"], e["subject"], e["split"]): e["n"] for e in estimates}
    assert told["heldout_reward", "ppo", "all"] == 3
    assert told["reward_accuracy", "heldout", "all"] > 3  # as the run's own stage measured it, on all held-out pairs
    assert told["refusal_harmful", "ppo", "all"] == told["over_refusal_corrected", "base", "scary"] == 3
    assert len((out / "replies.jsonl").read_text().splitlines()) == 3
    assert len((out / "replies_refusals.jsonl").read_text().splitlines()) == 9
    assert CliRunner().invoke(app, [*asked[:-1], str(tmp_path / "bare"), "--no-refusals"]).exit_code == 0
    assert not (tmp_path / "bare" / "replies_refusals.jsonl").exists()


def test_a_failed_check_is_told_and_stops_the_run_before_ppo(finished: Path, tmp_path: Path, capsys) -> None:
    """Held-out labels are the wrong way round, so that the reward model is worse than a coin."""
    animals = ["fox", "owl", "hare", "mole", "otter", "crow", "toad", "deer"]
    questions = [
        f"what does the {animal} eat{end}" for animal in animals for end in ("?", ". please.", "? hi!", ".", " then?")
    ]
    for name, (chosen, rejected) in {
        "pairs": ("the fox eats figs.", "no"),
        "held": ("no", "the fox eats figs."),
    }.items():
        rows = [
            {"prompt": f"{name} {question}" if name == "held" else question, "chosen": chosen, "rejected": rejected}
            for question in questions
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections: dict[str, Any] = {
        "data": {
            "evaluation_share": 0.0,
            "near_duplicates": None,
            "evaluation_preferences": [{"source": str(tmp_path / "held.jsonl"), "objective": "helpful"}],
        },
        "ppo": PPO,
        "evaluate": EVALUATE,
    }
    reward = REWARD | {"max_steps": 12, "learning_rate": 1e-2}

    def run(gates: Any) -> Path:
        return run_on(
            finished / "sft" / "model", tmp_path, tmp_path / "pairs.jsonl", reward=reward | {"gates": gates}, **sections
        )

    fault = "On helpful pairs the reward model is worse than a rule without a model: it is right on 0.0%"
    with pytest.raises(RunError, match=f"(?s)'reward.gates' says stop.*beats_rules: {fault}.*reward.gates=warn"):
        run({"beats_rules": "stop"})
    told = capsys.readouterr().out
    assert (
        told.index("[1/3] reward")
        < told.index(f"      warning: {fault}")
        < told.index("checks of the reward model passed")
    )
    assert "not measured: Whether the reward model pays for refusing" in told
    made = tmp_path / "run" / "reward" / "manifest.json"
    before = made.stat().st_mtime_ns
    assert not list((tmp_path / "run").glob("*ppo"))
    with pytest.raises(RunError, match="says stop") as stopped:  # however often it is run again
        run("stop")
    (advice,) = re.findall(r"'reward.gates=(\{.*?\})' for one check", str(stopped.value))
    gates = yaml.safe_load(advice)
    assert gates["beats_rules"] == "warn"
    assert set(gates.values()) == {"warn", "stop"}
    with pytest.raises(RunError, match="sees_past_length=warn for one check"):  # the other fault
        run(gates)
    done = run("warn")
    assert made.stat().st_mtime_ns == before
    assert "[1/3] reward: done before" in capsys.readouterr().out
    assert any(fault in line for line in json.loads((done / "report.json").read_text())["alarms"])
    asked = ["evaluate", str(done), "--limit", "3", "--response-length", "8", "--no-refusals"]
    result = CliRunner().invoke(app, [*asked, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert any(fault in line for line in json.loads((tmp_path / "out" / "report.json").read_text())["alarms"])


def test_a_recipe_without_ppo_reports_its_reward_model_alone(finished: Path, tmp_path: Path) -> None:
    run = run_on(
        finished / "world" / "base",
        tmp_path / "alone",
        finished / "world" / "preferences.jsonl",
        data={"heldout_share": 0},
        reward=REWARD | {"objectives": "harmless"},
        evaluate={},
    )
    assert not (run / "reward" / "heldout").exists()
    assert not (run / "sft").exists()
    assert (run / "reward" / "harmless" / "adapter_model.safetensors").is_file()
    report = json.loads((run / "report.json").read_text())
    assert {e["subject"] for e in report["estimates"]} == {"reward", "baseline"}
    assert report["verdict"][0].startswith("Overall: ")
    assert "held-out pairs" in report["verdict"][0]
    assert len(report["verdict"]) == 4
    page = (run / "report.html").read_text()
    assert "Before and after" not in page
    assert "Can the reward models be trusted?" in page
