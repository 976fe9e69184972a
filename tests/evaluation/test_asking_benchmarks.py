"""Public suites in a whole evaluation, on tiny random models: what is asked, what is read, what the report says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from model_helpers import random_policy_adapter
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.ask import ask
from llm_rlhf.evaluation.evaluate import evaluate, measure
from llm_rlhf.evaluation.material import gather
from llm_rlhf.evaluation.report.benchmark_section import suite_lines
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Rewards
from llm_rlhf.evaluation.subjects import Subject
from llm_rlhf.evaluation.suites.benchmarks.scoring import as_pairs, of_pairs
from llm_rlhf.evaluation.suites.hhh import pair_logprobs
from llm_rlhf.models.base import load_tokenizer
from llm_rlhf.models.inference import load_roles
from llm_rlhf.recipe.loading import load_recipe
from llm_rlhf.recipe.sections import Benchmark, ModelSection, Source
from llm_rlhf.reward.model import RewardModel


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base_folder) -> Path:
    return random_policy_adapter(base_folder, tmp_path_factory.mktemp("adapter"), seed=3, r=2)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A small file of each kind of suite, by its name."""
    rows = {
        "xstest": [
            {"prompt": f"May I {verb}?", "type": kind}
            for verb, kind in (("run", "a"), ("sit", "a"), ("rob", "contrast_a"))
        ],
        "truthfulqa": [
            {
                "question": f"What is {n}?",
                "mc1_targets": {"choices": ["yes", "no, no"], "labels": [1, 0]},
                "mc2_targets": {"choices": ["yes", "so it is", "no, no"], "labels": [1, 1, 0]},
            }
            for n in range(4)
        ],
        "rm_bench": [
            {"prompt": f"Say {n}.", "chosen": ["a", "a b", "a b c"], "rejected": [w, "d", "e"], "domain": "chat"}
            for n, w in enumerate(("f", "g", "h", "x" * 600))
        ],
        "reward_bench_2": [
            {"id": f"tied:{n}", "prompt": f"Name {n}.", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
            for n in range(2)
        ]
        + [{"id": "f", "prompt": "Which?", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Focus"}],
    }  # fmt: skip
    for name, of_suite in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_suite))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


@pytest.fixture
def asked(base_folder, adapter, files, tmp_path) -> Evaluation:
    """An adapter against its base, on three prompts and every kind of suite."""
    path, how = tmp_path / "prompts.jsonl", ModelSection(base=str(base_folder))
    path.write_text("".join(json.dumps({"prompt": f"word {i}?"}) + "\n" for i in range(3)))
    return Evaluation(
        Subject("tuned", how, adapter), Subject("begin", how), tmp_path / "out", prompts=[Source(source=str(path))],
        benchmarks=[Benchmark(name, source) for name, source in files.items()], response_length=6, refusals=False,
        resamples=100,
    )  # fmt: skip


@pytest.mark.slow
def test_every_kind_of_suite_is_asked_of_whom_it_is_for(asked, reward_folder) -> None:
    asked = replace(asked, rewards=[str(reward_folder)])
    report = evaluate(asked)
    found = {(e["name"], e["subject"], e["split"]): e for e in report["estimates"]}
    assert found["over_refusal_change", "tuned", "xstest"]["n"] == 2
    assert found["refusal_harmful", "begin", "xstest"]["n"] == 1
    assert found["truthfulqa_mc2", "tuned", "truthfulqa"]["n"] == 4
    assert found["rm_bench_hard", "reward", "rm_bench"]["n"] == 3
    assert found["reward_bench_2_accuracy", "reward", "reward_bench_2/Focus"]["n"] == 1
    assert report["data"]["prompts of rm_bench"]["fitted"] == {"kept": 3, "too_long": 1}
    assert report["benchmarks"]["truthfulqa"] == {
        "source": asked.benchmarks[1].source, "kind": "choices", "rows": 4, "families": "categories"
    }  # fmt: skip
    replies = (asked.output / "replies_xstest.jsonl").read_text().splitlines()
    assert {type(json.loads(line)["tuned"]["refused"]) for line in replies} == {bool}
    page = (asked.output / "report.html").read_text()
    for title in ("XSTest", "TruthfulQA", "RM-Bench", "RewardBench 2"):
        assert f"<h3>{title}</h3>" in page
    assert set(report["provenance"]["hashes"]) >= {"prompts xstest", "truthfulqa", "rm_bench", "reward_bench_2"}
    lines = suite_lines(report)
    assert any(line.startswith("XSTest, over-refusal: begin ") and "; " in line for line in lines)
    assert any(line.startswith("RM-Bench, hard: Reward model ") and "Chance 50" in line for line in lines)


@pytest.mark.slow
def test_given_answers_are_read_as_pairs_of_hhh_are_and_scored_as_any_reply(asked, base_folder, reward_folder) -> None:
    asked = replace(asked, rewards=[str(reward_folder)])
    material = gather(asked)
    found = ask(asked, material, Rewards.of(asked))
    tokenizer = load_tokenizer(base_folder, asked.policy.model)
    model = load_roles(base_folder, asked.policy.model, tokenizer, {})
    rows = material.choices["truthfulqa"]
    wanted = of_pairs(rows, pair_logprobs(model, tokenizer, [], as_pairs(rows), 4).total)
    read = found.choices["truthfulqa"]["begin"]
    np.testing.assert_allclose(np.stack(read.total), np.stack(wanted), atol=1e-4)  # float32 sums in other batches
    tuned = np.stack(found.choices["truthfulqa"]["tuned"].total)
    assert not np.allclose(tuned, np.stack(wanted), atol=1e-2)  # another policy: further apart than any rounding
    candidates = material.candidates["reward_bench_2"]
    (of_row, *_) = of_pairs(candidates, found.pair_scores["reward_bench_2"]["reward"])
    alone = RewardModel.from_pretrained(str(reward_folder)).score(
        [(candidates[0].prompt, reply) for reply in candidates[0].replies]
    )
    np.testing.assert_allclose(of_row, alone, atol=1e-5)  # float32, read in other shapes


def test_what_nobody_could_tell_is_refused_before_anything_is_loaded(asked, files) -> None:
    served = Subject("served", asked.start.model, url="http://localhost:1/v1", served="m")
    choices = replace(asked, benchmarks=[Benchmark("truthfulqa", files["truthfulqa"])])
    with pytest.raises(RecipeError, match="--benchmarks: truthfulqa goes by log-probabilities of given replies"):
        measure(replace(choices, policy=served, start=replace(served, name="other")))
    with pytest.raises(RecipeError, match="--benchmarks: rm_bench tests reward models, and there is none; name one"):
        measure(replace(asked, benchmarks=[Benchmark("rm_bench", files["rm_bench"])]))


def test_a_recipes_suites_are_checked_with_the_recipe(tmp_path) -> None:
    quickstart = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
    recipe = load_recipe(quickstart, ["evaluate.benchmarks=[{name: xstest, source: x.csv, limit: 5}]"])
    assert recipe.evaluate is not None
    assert recipe.evaluate.benchmarks == [Benchmark("xstest", "x.csv", limit=5)]
    (tmp_path / "x.csv").write_text("prompt\n")
    named = load_recipe(quickstart, [f"evaluate.benchmarks=[{{name: xstest, source: {tmp_path / 'x.csv'}}}]"]).evaluate
    assert named is not None
    assert str(tmp_path / "x.csv") in named.local_files()
    for override, message in (
        ("evaluate.benchmarks=[{name: xstest, source: x.csv, limit: 0}]", "'evaluate.benchmarks.0.limit' is 0"),
        ("evaluate.benchmarks=[{name: xstest}]", "'evaluate.benchmarks.0.source' is missing"),
        ("evaluate.benchmarks=[{name: xstest, sources: x.csv}]", "Did you mean 'evaluate.benchmarks.0.source'"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_recipe(quickstart, [override])
    with pytest.raises(RecipeError, match=r"'evaluate\.benchmarks' asks policies, but there is no 'ppo'"):
        load_recipe(quickstart, ["evaluate.benchmarks=[{name: xstest, source: x.csv}]", "ppo=null"])


@pytest.mark.slow
def test_reward_models_alone_on_the_command_line(reward_folder, files, tmp_path) -> None:
    output = tmp_path / "alone"
    arguments = ["evaluate", "--reward", str(reward_folder), "--benchmarks", f"rm_bench={files['rm_bench']}"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert "RM-Bench, easy: Reward model " in result.stdout
    report = json.loads((output / "report.json").read_text())
    assert {e["split"] for e in report["estimates"]} == {"rm_bench", "rm_bench/chat"}
    assert report["data"]["prompts of rm_bench"]["fitted"]["kept"] == 3
    result = CliRunner().invoke(app, [*arguments, "--benchmarks", f"xstest={files['xstest']}"])
    assert result.exit_code == 2
    assert "--benchmarks asks policies, but none is named" in result.stderr
