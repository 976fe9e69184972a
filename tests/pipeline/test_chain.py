"""The whole chain on a tiny gold world: end to end, run again, changed, damaged, and twice with one seed."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from chain_helpers import ADAPTERS, copy
from safetensors.torch import load_file

from llm_rlhf import pipeline
from llm_rlhf.errors import RunFolderError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.run_folder import RunFolder


def again(run: Path, *overrides: str, **options) -> None:
    run_recipe(load_recipe(run.parent / "tiny.yaml", [f"output_dir={run}", *overrides]), **options)


def test_every_artefact_is_there(finished: Path) -> None:
    for name in ("recipe.yaml", "manifest.json", "report.html", "report.md", "report.json", "data/counts.json"):
        assert (finished / name).is_file(), name
    for adapter in ADAPTERS:
        assert (finished / adapter / "adapter_model.safetensors").is_file(), adapter
    assert (finished / "sft" / "model" / "model.safetensors").is_file()
    assert (finished / "ppo" / "value" / "value_head.safetensors").is_file()
    assert not list(finished.glob("partial-*"))


def test_the_report_holds_what_was_asked(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    names = {(e["name"], e["subject"]) for e in report["estimates"]}
    wanted = ("gold_gain", "gold_helpful_gain", "gold_harmless_gain", "heldout_reward_gain", "kl")
    assert {("over_refusal", "sft"), ("reward_accuracy", "heldout"), *((name, "ppo") for name in wanted)} <= names
    assert len(report["verdict"]) == 4
    curve = report["curves"]["ppo"]
    assert len([p for p in curve if "objective/scores" in p]) == 2  # one line a rollout: 32 responses, rollouts of 16
    evaluated = [p for p in curve if "eval_heldout/scores" in p]
    assert [p["step"] for p in evaluated] == [0, 4, 8]  # the start, and one a rollout
    assert all("eval_helpful/refusal_rate" in p for p in evaluated)
    assert {"guard", "preview"} == report["watch"].keys()
    assert report["watch"]["preview"]["n"] == 8
    assert report["watch"]["guard"]["too_few"]  # of 64 prompts six are kept back
    assert len(report["samples"]) == 4
    page = (finished / "report.html").read_text()
    assert "Both sides, on prompts kept back from training" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_how_it_was_computed_stands_in_manifests_and_report(finished: Path) -> None:
    """Nothing in the recipe says it: transformers chose the attention, memory and device how replies are sampled."""
    computed = {
        stage: json.loads((finished / stage / "manifest.json").read_text())["computed"]
        for stage in ("sft", "reward", "ppo", "evaluate")
    }
    beside = {"sampled_from": "the adapter beside its base and the base alone", "decoding": "plain"}
    assert computed["evaluate"] == {"attention": "sdpa", **beside}
    assert computed["sft"] == computed["reward"] == {"attention": "sdpa"}
    assert computed["ppo"] == {"attention": "sdpa", "sampled_from": "weights merged", "decoding": "plain"}
    assert json.loads((finished / "report.json").read_text())["provenance"]["computed"] == computed
    assert "ppo: attention sdpa, sampled from weights merged, decoding plain" in (finished / "report.html").read_text()
    assert "computed" not in json.loads((finished / "world" / "manifest.json").read_text())


def test_every_row_is_accounted_for(finished: Path) -> None:
    counts = json.loads((finished / "data" / "counts.json").read_text())
    for kind in ("preferences", "demonstrations", "prompts", "evaluation_prompts"):
        read = counts[kind]
        assert read["read"] == read["kept"] + sum(read["set_aside"].values()) + sum(read["left_out"].values()), kind


def test_metrics_and_samples_are_lines_of_json(finished: Path) -> None:
    for stage in ("sft", "reward/joint", "reward/heldout", "ppo"):
        lines = [json.loads(line) for line in (finished / stage / "metrics.jsonl").read_text().splitlines()]
        assert lines, stage
        assert all({"stage", "step", "time"} <= line.keys() for line in lines), stage
    samples = [json.loads(line) for line in (finished / "ppo" / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "response", "score", "kl"} <= samples[0].keys()


def test_the_reward_head_survives_save_and_reload(finished: Path) -> None:
    """The head that was trained is the head that PPO and plain transformers + peft read, less the reference's mean."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from llm_rlhf.models.encoding import encode_reply
    from llm_rlhf.models.inference import load_roles, score_ids
    from llm_rlhf.recipe.sections import ModelSection

    base, adapter = finished / "sft" / "model", finished / "reward" / "joint"
    saved = load_file(adapter / "adapter_model.safetensors")
    head = next(w for name, w in saved.items() if name.endswith("score.weight"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    plain = PeftModel.from_pretrained(plain, adapter).eval()
    assert torch.equal(plain.base_model.model.score.modules_to_save["default"].weight, head)
    ids = encode_reply(tokenizer, [{"role": "user", "content": "what does the fox eat?"}], "the fox eats figs.").ids
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ids])).logits.item()
    model = load_roles(base, ModelSection(), tokenizer, {"reward": adapter})
    found = score_ids(model, "reward", [ids, ids[:5]], tokenizer.pad_token_id)
    mean = json.loads((adapter / "normalisation.json").read_text())["mean"]
    assert found[0] == pytest.approx(expected - mean, abs=1e-5)  # fp32 noise of another padded width
    assert abs(expected) > 1e-3  # a head of zeros would agree with anything


def test_the_starting_models_replies_score_zero_on_average(finished: Path) -> None:
    from llm_rlhf.data.checks import prompt_share
    from llm_rlhf.models.base import load_tokenizer
    from llm_rlhf.models.inference import load_roles, sample_replies, score_ids
    from llm_rlhf.runs import splits

    recipe = load_recipe(finished.parent / "tiny.yaml", [f"output_dir={finished}"])
    base = finished / "sft" / "model"
    tokenizer = load_tokenizer(base, recipe.model)
    model = load_roles(
        base, recipe.model, tokenizer, {name: finished / "reward" / name for name in ("joint", "heldout")}
    )
    pairs = splits(recipe, RunFolder(finished)).reward_pairs
    prompts = sorted((pair.prompt for pair in pairs), key=lambda prompt: prompt_share(prompt, "reference"))
    replies = sample_replies(model, tokenizer, prompts, [], response_length=128, temperature=1.0, seed=recipe.seed)
    for name in ("joint", "heldout"):
        scores = score_ids(model, name, [r.prompt_ids + r.ids for r in replies], tokenizer.pad_token_id)
        assert abs(scores.mean()) < 1e-5  # the very replies that were stored: fp32 noise of a mean
        assert scores.std() > 1e-3


def test_the_saved_policy_loads_in_plain_peft_and_differs_from_its_base(finished: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(finished / "sft" / "model").eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        before = base(input_ids=ids).logits
        policy = PeftModel.from_pretrained(base, finished / "ppo" / "policy").eval()
        assert not torch.equal(policy(input_ids=ids).logits, before)


def test_running_again_makes_nothing_anew(finished: Path, capsys) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    again(finished)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
    assert capsys.readouterr().out.count("done before") == 5


def test_a_missing_stage_alone_is_made_again(finished: Path, tmp_path) -> None:
    run = copy(finished, tmp_path)
    policy = (run / "ppo" / "policy" / "adapter_model.safetensors").read_bytes()
    reward = (run / "reward" / "manifest.json").stat().st_mtime_ns
    (run / "ppo").rename(run / "partial-ppo")  # as if killed while writing: never taken for finished
    shutil.rmtree(run / "evaluate")
    again(run)
    assert (run / "reward" / "manifest.json").stat().st_mtime_ns == reward
    assert (run / "ppo" / "policy" / "adapter_model.safetensors").read_bytes() == policy
    assert not (run / "partial-ppo").exists()


def test_a_changed_recipe_says_what_changed_and_from_redoes_it(finished: Path, tmp_path) -> None:
    run = copy(finished, tmp_path)
    with pytest.raises(RunFolderError, match=r"ppo.kl_coef: not set -> 0.2.*--from ppo"):
        again(run, "ppo.kl_coef=0.2")
    again(run, "ppo.kl_coef=0.2", from_stage="ppo")
    assert yaml.safe_load((run / "recipe.yaml").read_text())["ppo"]["kl_coef"] == 0.2
    (old,) = (run / "archive").iterdir()
    assert {"ppo", "evaluate", "report.html"} <= {p.name for p in old.iterdir()}
    assert json.loads((run / "report.json").read_text())["provenance"]["recipe"]["ppo"]["kl_coef"] == 0.2


def test_a_damaged_artefact_is_refused(finished: Path, tmp_path) -> None:
    run = copy(finished, tmp_path)
    weights = run / "reward" / "joint" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(RunFolderError, match=r"adapter_model.safetensors is missing or has changed.*--from reward"):
        again(run)


def test_fault_38_the_same_seed_twice_gives_bit_identical_adapters(finished: Path, tmp_path) -> None:
    recipe = load_recipe(finished.parent / "tiny.yaml", [f"output_dir={tmp_path / 'second'}"])
    run_recipe(recipe)
    for adapter in ADAPTERS:
        name = f"{adapter}/adapter_model.safetensors"
        assert (finished / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), adapter
    one, two = (json.loads((run / "report.json").read_text())["estimates"] for run in (finished, tmp_path / "second"))
    assert one == two


def test_a_process_that_comes_late_waits_like_the_others(finished: Path, tmp_path) -> None:
    """Nothing a faster process has written may let a slower one skip a barrier: both would then wait for ever."""
    run = RunFolder(copy(finished, tmp_path))
    recipe = load_recipe(finished.parent / "tiny.yaml", [f"output_dir={run.path}"])
    for counts_are_there in (True, False):
        if not counts_are_there:
            (run / "data" / "counts.json").unlink()
        run.state = Mock(is_main_process=False)
        pipeline._account_for_data(recipe, run)
        assert run.state.wait_for_everyone.call_count == 1


def test_counts_follow_the_data_of_the_stages_made_last(finished: Path, tmp_path) -> None:
    run = copy(finished, tmp_path)
    stale = json.loads((run / "data" / "counts.json").read_text()) | {"splits": {"prompts": 1}}
    (run / "data" / "counts.json").write_text(json.dumps(stale))
    again(run, from_stage="evaluate")
    assert json.loads((run / "data" / "counts.json").read_text())["splits"]["prompts"] > 1
