"""The whole chain with another method in PPO's place, and what is told of one before anything is trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from chain_helpers import TINY, copy

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.report.comparison import compare_runs, render_comparison
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe

COMMON = {"gradient_checkpointing": False, "learning_rate": 1e-3, "max_steps": 4, "per_device_train_batch_size": 8}
ONLINE = COMMON | {"num_generations": 4, "max_completion_length": 12}
SECTIONS: dict[str, dict[str, Any]] = {
    "grpo": ONLINE | {"beta": 0.05},
    "rloo": ONLINE,
    "dpo": COMMON,
    "kto": COMMON,
    "best_of_n": COMMON | {"n": 3, "prompts": 12, "response_length": 12, "max_steps": 8},
}


def recipe_of(finished: Path, folder: Path, method: str, *overrides: str, **section: Any) -> Any:
    """A copy of the finished chain without PPO, and the recipe that goes on from it by another method."""
    folder.mkdir(exist_ok=True)
    run = copy(finished, folder)
    for name in ("ppo", "evaluate"):
        shutil.rmtree(run / name)
    tree = {key: value for key, value in TINY.items() if key != "ppo"} | {method: SECTIONS[method] | section}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return load_recipe(folder / "tiny.yaml", [f"output_dir={run}", *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("method", list(SECTIONS))
def test_a_chain_ends_in_a_report_of_its_policy(method, finished, tmp_path, capsys) -> None:
    recipe = recipe_of(finished, tmp_path, method)
    run = run_recipe(recipe)
    assert f"{method}: done before" not in capsys.readouterr().out
    left = {path.name for path in (run / method).iterdir()}
    assert {"policy", "snapshots", "metrics.jsonl", "lengths.json", "manifest.json"} <= left
    assert ("picked.jsonl" in left) == (method == "best_of_n")
    assert not [name for name in left if name.startswith("checkpoint") or name == "replies"]
    assert sorted(path.name for path in (run / method / "policy").iterdir() if path.suffix == ".safetensors") == [
        "adapter_model.safetensors"
    ]
    report = json.loads((run / "report.json").read_text())
    gain = next(entry for entry in report["estimates"] if entry["name"] == "gold_gain")
    assert (gain["subject"], gain["reference"]) == (method, "sft")
    assert next(entry for entry in report["estimates"] if entry["name"] == "kl")["estimate"] != 0
    assert report["curves"][method]
    assert method in report["run"]["seconds"]
    assert f"{method}/policy/adapter_model.safetensors" in report["provenance"]["hashes"]
    html = (run / "report.html").read_text()
    assert "PPO" not in html.split("<main>")[0]
    policy = subject_of(str(run.path))
    assert (policy.name, policy.adapter) == (method, run / method / "policy")
    step = sorted((run / method / "snapshots").iterdir())[0].name
    assert subject_of(f"{run.path}:{step}").adapter == run / method / "snapshots" / step
    with pytest.raises(RecipeError, match="has no 'ppo'"):
        subject_of(f"{run.path}:ppo")
    run_recipe(recipe)
    assert f"{method}: done before" in capsys.readouterr().out
    compared = compare_runs([finished, run.path])
    assert [group["runs"] for group in compared["groups"]] == [[0], [1]]
    assert compared["headline"] is None
    assert compared["groups"][1]["seconds"] == report["run"]["seconds"][method]
    assert "Where the recipes differ" in render_comparison(compared)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_too_few_prompts_for_a_rollout_are_told_before_anything_is_trained(method, finished, tmp_path) -> None:
    recipe = recipe_of(finished, tmp_path, method, per_device_train_batch_size=256)
    with pytest.raises(DataError, match=rf"prompts for {method.upper()}.*one rollout takes 64; lower {method}.per_dev"):
        run_recipe(recipe)
    assert not list(recipe.folder.glob(f"*{method}"))


def test_what_does_not_fit_names_the_methods_own_key(finished, tmp_path) -> None:
    with pytest.raises(DataError, match=r"None of the pairs fits into 4 tokens; raise dpo.max_length"):
        run_recipe(recipe_of(finished, tmp_path / "a", "dpo", max_length=4))
    with pytest.raises(RecipeError, match=r"'grpo.max_completion_length' is 4000, but prompt and reply share"):
        run_recipe(recipe_of(finished, tmp_path / "b", "grpo", max_completion_length=4000))
    with pytest.raises(RecipeError, match=r"'best_of_n.reward_funcs'.*cannot be called as reward functions are"):
        run_recipe(recipe_of(finished, tmp_path / "c", "best_of_n", reward_funcs=["os.path:isdir"]))


def test_the_gates_of_the_reward_model_stop_what_is_paid_by_it_and_not_what_learns_from_pairs(
    finished, tmp_path, monkeypatch
) -> None:
    from llm_rlhf import pipeline

    class GateError(Exception):
        pass

    def stop(recipe: Any, run: Any) -> None:
        raise GateError

    monkeypatch.setattr(pipeline, "stop_at_gates", stop)
    with pytest.raises(GateError):
        run_recipe(recipe_of(finished, tmp_path / "grpo", "grpo"), only="grpo")
    run_recipe(recipe_of(finished, tmp_path / "dpo", "dpo", max_steps=1), only="dpo")
