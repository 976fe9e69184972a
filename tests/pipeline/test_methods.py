"""The whole chain with another method in PPO's place, and what is told of one before anything is trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chain_helpers import SECTIONS, recipe_of
from launching import start
from safetensors.torch import load_file

from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.evaluation.report.comparison import compare_runs
from llm_rlhf.evaluation.report.side_by_side import render_comparison
from llm_rlhf.evaluation.subjects import subject_of
from llm_rlhf.methods.offline import dpo_rows, kto_rows
from llm_rlhf.models.encoding import encode_prompt
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.run_folder import RunFolder
from llm_rlhf.runs import splits
from llm_rlhf.stages import best_of_n, offline, online, ppo


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


class HandedOverError(Exception):
    """Stops a stage where it would begin to train."""


def handed_over(method: str, finished: Path, folder: Path, monkeypatch: Any, **section: Any) -> Any:
    """The recipe of seed 3, its run, and what its stage gives the trainer (best of n: what it picks with)."""
    kept: dict[str, Any] = {}

    def keep(*args: Any, **kwargs: Any) -> None:
        kept.update(kwargs, given=args)
        raise HandedOverError

    stage = {"ppo": ppo, "best_of_n": best_of_n, "dpo": offline, "kto": offline}.get(method, online)
    if method in ("ppo", "best_of_n"):
        monkeypatch.setattr(stage, "PPOTrainer" if method == "ppo" else "pick", keep)
    else:
        monkeypatch.setitem(stage.TRAINERS, method, keep)
    recipe = recipe_of(finished, folder, method, "seed=3", **section)
    run = RunFolder(recipe.folder)
    (run / method).mkdir()
    with pytest.raises(HandedOverError):  # the stage alone: those before it were made with another seed
        stage.run(recipe, run, run / method)
    return recipe, run, kept


def started_from(model: Any, run: RunFolder) -> bool:
    return Path(model.config._name_or_path) == run / "sft" / "model" and not hasattr(model, "peft_config")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_every_pair_of_the_reward_models_is_learnt_from_and_no_other(method, finished, tmp_path, monkeypatch) -> None:
    recipe, run, kept = handed_over(method, finished, tmp_path, monkeypatch, gradient_accumulation_steps=2, beta=0.7)
    found = splits(recipe, run)
    tokenizer = kept["processing_class"]
    expected = dpo_rows(tokenizer, found.reward_pairs)
    if method == "dpo":
        assert kept["train_dataset"].to_list() == expected
    else:
        assert kept["train_dataset"].to_list() == kto_rows(tokenizer, found.reward_pairs, [], 8, 3, estimates_kl=True)
    learnt = {tuple(row["prompt_ids"]) for row in expected}
    kept_out = [*found.heldout_pairs, *found.evaluation_pairs]
    assert kept_out
    assert not learnt & {tuple(encode_prompt(tokenizer, pair.prompt)) for pair in kept_out}
    assert started_from(kept["model"], run)
    assert "ref_model" not in kept  # TRL's own: the base with the adapter off
    assert (kept["args"].seed, kept["args"].beta) == (3, 0.7)


@pytest.mark.parametrize("method", ["grpo", "rloo", "best_of_n"])
def test_prompts_scores_and_start_are_those_of_ppo(method, finished, tmp_path, monkeypatch) -> None:
    paid = {"eval_prompts": 5, "missing_eos_penalty": 0.25, "reward_weights": [2.0]}
    more = {"max_completion_length": 12, "total_episodes": 100} if method != "best_of_n" else {"temperature": 0.7}
    given = {"prompts": None, **paid, **more} if method == "best_of_n" else paid | more | {"max_steps": -1}
    _, run, kept = handed_over(method, finished, tmp_path / "own", monkeypatch, **given)
    as_ppo = {"eval_prompts": 5, "response_length": 12, "gradient_checkpointing": False}
    monkeypatch.setitem(SECTIONS, "ppo", as_ppo)
    _, _, of_ppo = handed_over("ppo", finished, tmp_path / "ppo", monkeypatch)
    prompts = of_ppo["train_dataset"].to_list()
    assert len(of_ppo["eval_dataset"]) == 5
    if method == "best_of_n":
        model, _, asked, sources, options, _ = kept["given"]
        assert [{"prompt": p.messages, "objective": p.objective} for p in asked] == prompts
        assert (sources.seed, sources.weights, sources.adapters) == (3, [2.0], ["joint"])
        assert (options.temperature, options.missing_eos_penalty, options.n) == (0.7, 0.25, 3)
        assert Path(model.get_base_model().config._name_or_path) == run / "sft" / "model"
        return
    assert kept["train_dataset"].to_list() == prompts
    assert kept["adapters"] == {"joint": run / "reward" / "joint"}
    assert (kept["options"].reward_weights, kept["options"].missing_eos_penalty) == ([2.0], 0.25)
    assert started_from(kept["model"], run)
    # 100 replies, 8 a rollout: 13 rollouts, each one step
    assert (kept["args"].generation_batch_size, kept["args"].max_steps, kept["args"].beta) == (
        8, 13, SECTIONS[method].get("beta", 0.05),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "best_of_n"])
def test_two_processes_learn_what_one_does(method, finished, tmp_path) -> None:
    """Four rows a process in place of eight: the same steps, but for the order in which gradients are added."""
    full = {"prompts": 16} if method == "best_of_n" else {}  # two whole batches an epoch
    left = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        recipe = recipe_of(finished, folder, method, per_device_train_batch_size=8 // processes, **full)
        if processes == 1:
            run_recipe(recipe, only=method)
        else:
            asked = ["run", folder / "tiny.yaml", f"output_dir={recipe.folder}", "--only", method]
            start(*asked, processes=2, folder=tmp_path / "said").finish()
        left.append(load_file(recipe.folder / method / "policy" / "adapter_model.safetensors"))
    for name, weight in left[0].items():
        torch.testing.assert_close(left[1][name], weight, atol=1e-5, rtol=0)  # of steps of 1e-3; 7e-7 was seen


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
