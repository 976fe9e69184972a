"""A run's report beside what its earlier stages left: a folder written by hand, without a model."""

import json
import time
from pathlib import Path

import pytest

from llm_rlhf.evaluation.evaluate import Measured
from llm_rlhf.evaluation.run_report import build_report
from llm_rlhf.recipe.sections import ModelSection, Recipe
from llm_rlhf.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Reward and PPO are done; SFT is not."""

    def write(name: str, *lines: object) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))

    write("data/counts.json", {"splits": {"reward_pairs": 9}})
    for stage, seconds in (("reward", 2.5), ("ppo", 4.0)):
        files = {
            "adapter.safetensors": {"sha256": stage * 2},
            "metrics.jsonl": {"sha256": "m"},
            "page.html": {"sha256": "p"},
        }
        write(f"{stage}/manifest.json", {"seconds": seconds, "files": files, "machine": {"cores": -1}})
    write("reward/lengths.json", {"reward_pairs": {"kept": 9, "too_long": 0}})
    write("reward/joint/metrics.jsonl", {"step": 1, "loss": 0.7, "other": 1}, {"step": 2, "train_runtime": 9})
    check = {"name": "beats_rules", "subject": "reward", "split": "all", "level": "warning", "numbers": {}}
    write("reward/warnings.json", {"checks": [check | {"text": "It is worse than a coin."}]})
    write("ppo/metrics.jsonl", {"step": 1, "objective/kl": 0.5, "lr": 1}, {"step": 2, "objective/kl": None})
    news = {"side": "harmless", "what": "worse", "text": "Refusals fell.", "step": 1}
    write("ppo/watch.json", {"news": [news], "worse_at_the_end": ["harmless"], "worse_in_what_is_kept": ["harmless"],
                             "kept_step": 2, "stopped_at": None})  # fmt: skip
    return RunFolder(tmp_path)


def test_what_the_stages_left_stands_beside_what_was_found(run: RunFolder) -> None:
    recipe = Recipe("mine", model=ModelSection(base="org/base"), reward={}, ppo={"reward_funcs": ["m:f"]}, seed=3)
    report = build_report(recipe, run, Measured(notes=["a note"]), {"temperature": 1.0}, time.monotonic() - 8)
    assert report["run"]["seconds"] == {"reward": 2.5, "ppo": 4.0, "evaluate": pytest.approx(8, abs=2)}
    assert (report["run"]["base"], report["provenance"]["seed"]) == ("org/base", 3)
    assert report["curves"] == {
        "sft": [],
        "reward": [{"step": 1, "loss": 0.7}],
        "ppo": [{"step": 1, "objective/kl": 0.5}],
    }
    assert report["provenance"]["hashes"] == {
        "reward/adapter.safetensors": "rewardreward", "reward/metrics.jsonl": "m",
        "ppo/adapter.safetensors": "ppoppo", "ppo/metrics.jsonl": "m",
    }  # fmt: skip
    assert report["provenance"]["elsewhere"] == {stage: {"cores": -1} for stage in ("reward", "ppo")}
    assert report["data"]["lengths in reward"]["reward_pairs"]["kept"] == 9
    assert set(report["watch"]) == {"guard"}
    told = report["alarms"]
    assert told[0].startswith("While PPO trained: refusals fell.")
    assert told[1] == "It is worse than a coin."
    assert told[-2:] == ["a note", "PPO was rewarded by m:f too; the training reward shown here is without."]
