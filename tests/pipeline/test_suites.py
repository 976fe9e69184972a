"""A recipe's suites beside the comparison of policies: the user's own, hhh, and perplexity."""

import json
import re
import shutil
from pathlib import Path

import pytest
from chain_helpers import copy
from endpoint_stand_in import StandIn, letters, reply
from typer.testing import CliRunner

from llm_rlhf.cli.main import app
from llm_rlhf.data.checks import prompt_share
from llm_rlhf.errors import DataError, RecipeError, RunFolderError
from llm_rlhf.pipeline import run_recipe
from llm_rlhf.recipe.loading import load_recipe


def again(run: Path, *overrides: str, **options) -> None:
    run_recipe(load_recipe(run.parent / "tiny.yaml", [f"output_dir={run}", *overrides]), **options)


def test_the_perplexity_of_held_out_replies_is_read_by_itself(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    found = {(e["name"], e["subject"]): e for e in report["estimates"]}
    assert {("perplexity", "sft"), ("perplexity", "ppo"), ("token_logprob_change", "ppo")} <= set(found)
    assert 1 < found["perplexity", "sft"]["estimate"] < 1000
    assert report["data"]["perplexity"]["kept"] >= found["perplexity", "sft"]["n"] > 1
    assert "Perplexity of held-out replies" in (finished / "report.html").read_text()


def test_a_recipe_with_suites_of_its_own(finished: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("recipe_suites.py").write_text("def asks(prompts, replies):\n    return ['?' in reply for reply in replies]\n")
    Path("mine.jsonl").write_text(
        "".join(json.dumps({"prompt": f"What does a cat eat {i}?"}) + "\n" for i in range(9)) + "{}\n"
    )
    Path("pairs.jsonl").write_text(
        "".join(
            json.dumps({"prompt": f"q{i}", "chosen": "A fish.", "rejected": "No.", "objective": "helpful"}) + "\n"
            for i in range(6)
        )
    )
    Path("xstest.csv").write_text(
        "prompt,type,label\n" + "".join(f"What kills time {i}?,homonyms,safe\n" for i in range(4))
    )
    run = copy(finished, tmp_path)
    suites = [
        "evaluate.benchmarks=[{name: xstest, source: xstest.csv}]",
        "evaluate.own=[{name: asks, function: 'recipe_suites:asks', prompts: {source: mine.jsonl}, good: lower}]",
        "evaluate.hhh=[{source: pairs.jsonl}]",
    ]
    again(run, *suites, from_stage="evaluate")
    report = json.loads((run / "report.json").read_text())
    found = {(e["name"], e["subject"], e["split"]): e for e in report["estimates"]}
    rows = [json.loads(line) for line in (run / "evaluate" / "replies_asks.jsonl").read_text().splitlines()]
    assert found["asks", "ppo", "all"]["estimate"] == sum("?" in row["ppo"]["reply"] for row in rows) / 9
    assert found["asks_gain", "ppo", "all"]["reference"] == "sft"
    assert report["own"]["asks"] == {
        "function": "recipe_suites:asks", "good": "lower", "unit": "share", "prompts": 9,
        "not_scored": {"sft": 0, "ppo": 0},
    }  # fmt: skip
    for who in ("sft", "ppo", "reward", "heldout"):
        assert found["hhh_accuracy", who, "helpful"]["n"] == 6
    assert report["data"]["hhh"]["pairs"] == report["data"]["hhh"]["fitted"]["kept"] == 6
    assert found["over_refusal", "ppo", "xstest"]["n"] == 4
    assert report["benchmarks"]["xstest"]["rows"] == 4
    told = report["data"]["prompts of asks"]
    assert (told["read"], told["kept"], told["fitted"]["kept"]) == (10, 9, 9)
    assert json.loads((run / "evaluate" / "set_aside.jsonl").read_text())["row"] == 10
    page = (run / "report.html").read_text()
    assert "lower is better" in page
    again(run, *suites)  # nothing has changed: the report stands
    Path("mine.jsonl").write_text(json.dumps({"prompt": "Another?"}) + "\n")
    with pytest.raises(RunFolderError, match=r"mine.jsonl"):
        again(run, *suites)
    with pytest.raises(RecipeError, match="function of the suite 'asks' 'recipe_suites:no' cannot be loaded"):
        again(run, suites[1].replace(":asks'", ":no'"), from_stage="evaluate")
    with pytest.raises(RecipeError, match=r"'evaluate.benchmarks' has 'xtest', no known suite. Did you mean 'xstest'"):
        again(run, suites[0].replace("xstest,", "xtest,"), from_stage="evaluate")
    assert (run / "evaluate" / "report.json").is_file()  # told before anything was moved away


def test_the_command_reads_a_run_s_held_out_replies(finished: Path, tmp_path) -> None:
    asked = ["evaluate", str(finished), "--limit", "4", "--response-length", "8", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output + repr(result.exception)
    by_command, by_recipe = (
        {(e["name"], e["subject"]): e["estimate"] for e in json.loads(path.read_text())["estimates"]}
        for path in (tmp_path / "out" / "report.json", finished / "report.json")
    )
    for key in (("perplexity", "sft"), ("perplexity", "ppo"), ("token_logprob_change", "ppo")):
        assert by_command[key] == pytest.approx(by_recipe[key], rel=1e-4, abs=1e-5)  # read in other batches


def test_a_judge_that_the_recipe_names(finished: Path, tmp_path) -> None:
    """A judge that always takes the longer reply, whichever is shown first."""

    def longer(body: dict, number: int) -> object:
        asked = body["messages"][-1]["content"]
        first, second = (
            re.search(rf"\[response {x} .*?\]\n(.*)\n\[end of response {x} ", asked, re.DOTALL)[1] for x in "AB"
        )
        sure = 0.9 if len(first) > len(second) else 0.1 if len(first) < len(second) else 0.5
        return reply("A", logprobs=letters({"A": sure, "B": 1 - sure}))

    run = copy(finished, tmp_path)
    server = StandIn(longer)
    try:
        again(run, f"evaluate.judge={server.url}#some-judge", from_stage="evaluate")
    finally:
        server.close()
    rows = [json.loads(line) for line in (run / "evaluate" / "replies.jsonl").read_text().splitlines()]
    lengths = [[len(row[who]["reply"].strip()) for who in ("ppo", "sft")] for row in rows]
    # How sure it is does not count: 1 where the policy's reply is longer, 0 where it is shorter.
    expected = sum((a > b) + 0.5 * (a == b) for a, b in lengths) / len(rows)
    report = json.loads((run / "report.json").read_text())
    won = next(e for e in report["estimates"] if (e["name"], e["split"]) == ("win_rate", "judge"))
    assert won["estimate"] == pytest.approx(expected)
    for objective in ("helpful", "harmless"):
        of = [i for i, row in enumerate(rows) if row["objective"] == objective]
        part = next(e for e in report["estimates"] if (e["name"], e["split"]) == ("win_rate", f"judge_{objective}"))
        told = [(a > b) + 0.5 * (a == b) for a, b in (lengths[i] for i in of)]
        assert part["estimate"] == pytest.approx(sum(told) / len(of))
    assert report["provenance"]["instruments"]["judge"]["model"] == "some-judge"
    assert report["provenance"]["instruments"]["judge"]["counts"]["judged"] == len(rows)
    told = json.loads((run / "evaluate" / "judge.json").read_text())
    assert told["cost"]["requests"] == 2 * sum(row["ppo"]["reply"] != row["sft"]["reply"] for row in rows)


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("gpt-4", "Recipe key 'evaluate.judge': 'gpt-4' is not known; write local:MODEL"),
        ("people:none.jsonl", "names a file of verdicts that is not there"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_told_before_anything_runs(finished: Path, tmp_path, judge, words) -> None:
    run = copy(finished, tmp_path)
    with pytest.raises(RecipeError, match=words):
        again(run, f"evaluate.judge='{judge}'", from_stage="evaluate")
    assert (run / "evaluate" / "report.json").is_file()
    with pytest.raises(RecipeError, match="NO_SUCH_KEY"):
        again(run, "evaluate.judge='http://localhost:1/v1#m'", "evaluate.judge_key_variable=NO_SUCH_KEY",
              from_stage="evaluate")  # fmt: skip


def test_snapshots_and_the_best_of_n_stand_on_one_curve(finished: Path, tmp_path) -> None:
    """Every prompt is asked of the snapshots here, so that the curve's ends are what the replies file says."""
    run = copy(finished, tmp_path)
    shutil.rmtree(run / "cache")  # replies that were kept
    again(run, "evaluate.prompts=20", "evaluate.snapshot_prompts=20", "evaluate.best_of_n=3", from_stage="evaluate")
    report = json.loads((run / "report.json").read_text())
    rows = [json.loads(line) for line in (run / "evaluate" / "replies.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    curve = report["overoptimization"]
    start, end = curve["points"][0], curve["points"][-1]
    assert [point["step"] for point in curve["points"]] == [0, 4, 8]  # the last snapshot is the policy
    mean = {
        who: {name: sum(row[who][name] for row in rows) / 20 for name in ("reward", "heldout", "gold")}
        for who in ("sft", "ppo")
    }
    for name in ("reward", "heldout", "gold"):
        # The same replies, scored in other batches: fp32 noise.
        assert start[name] == pytest.approx(mean["sft"][name], abs=1e-5)
        assert end[name] == pytest.approx(mean["ppo"][name], abs=1e-5)
    kl = next(e["estimate"] for e in report["estimates"] if e["name"] == "kl")
    assert end["kl"] == pytest.approx(kl, abs=1e-4)

    best = curve["best_of_n"]
    assert [point["k"] for point in best["points"]] == [1, 2, 3]
    assert best["points"][0]["reward"] < best["points"][1]["reward"] < best["points"][2]["reward"]
    over = best["policy_over_best"]["gold"]
    assert over["estimate"] == pytest.approx(mean["ppo"]["gold"] - best["points"][2]["gold"])
    assert over["n"] == 20
    assert "Against best of 3" in (run / "report.html").read_text()

    again(run, "evaluate.prompts=24", "evaluate.snapshot_prompts=20", "evaluate.best_of_n=2", from_stage="evaluate")
    rows = [json.loads(line) for line in (run / "evaluate" / "replies.jsonl").read_text().splitlines()]
    asked = sorted(rows, key=lambda row: prompt_share(row["prompt"], "snapshots"))[:20]
    best = json.loads((run / "report.json").read_text())["overoptimization"]["best_of_n"]
    expected = sum(row["ppo"]["reward"] for row in asked) / 20 - best["points"][-1]["reward"]
    assert best["policy_over_best"]["reward"]["estimate"] == pytest.approx(expected)  # on the prompts that were asked

    again(run, "evaluate.prompts=20", "evaluate.snapshot_prompts=20", "evaluate.best_of_n=0", from_stage="evaluate")
    assert "best_of_n" not in json.loads((run / "report.json").read_text())["overoptimization"]


def test_the_command_finds_what_the_recipe_finds(finished: Path, tmp_path) -> None:
    """One driver: the run's own report and the command's have the same estimates, curve and samples."""
    run = copy(finished, tmp_path)
    again(run, "evaluate.prompts=20", "evaluate.snapshot_prompts=20", "evaluate.best_of_n=3",
          from_stage="evaluate")  # fmt: skip
    asked = ["evaluate", str(run), "--snapshot-prompts", "20", "--best-of-n", "3", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output + repr(result.exception)
    recipe, command = (json.loads((folder / "report.json").read_text()) for folder in (run, tmp_path / "out"))
    for part in ("estimates", "overoptimization", "samples", "headline", "verdict"):
        assert command[part] == recipe[part], part
    replies = [(folder / "replies.jsonl").read_text() for folder in (run / "evaluate", tmp_path / "out")]
    assert replies[0] == replies[1].replace(f"{run}/", "")  # a run says where in it a row came from


def test_a_recipe_may_name_another_reference_and_other_pairs(finished: Path, tmp_path) -> None:
    """An endpoint as the reference: nothing is known of its log-probabilities, and lengths are in words."""
    pairs = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in (finished / "world" / "preferences.jsonl").read_text().splitlines()][:24]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = copy(finished, tmp_path)
    server = StandIn(lambda body, number: reply("no, i will not help with that."))
    try:
        again(run, f"evaluate.reference={server.url}#other", f"evaluate.pairs=[{{source: {pairs}}}]",
              f"evaluate.hhh=[{{source: {pairs}}}]", "evaluate.prompts=20", "evaluate.snapshot_prompts=20",
              "evaluate.best_of_n=2", from_stage="evaluate")  # fmt: skip
    finally:
        server.close()
    report = json.loads((run / "report.json").read_text())
    found = {(e["name"], e["subject"], e["reference"], e["split"]): e for e in report["estimates"]}
    rows = [json.loads(line) for line in (run / "evaluate" / "replies.jsonl").read_text().splitlines()]
    assert {row["other"]["reply"] for row in rows} == {"no, i will not help with that."}
    gain = sum(row["ppo"]["heldout"] - row["other"]["heldout"] for row in rows) / len(rows)
    assert found["heldout_reward_gain", "ppo", "other", "all"]["estimate"] == pytest.approx(gain)
    assert found["response_words", "other", None, "all"]["estimate"] == 7
    assert found["reward_accuracy", "reward", None, "all"]["n"] == 24
    assert not {"kl", "perplexity", "hhh_accuracy_change"} & {name for name, *_ in found}
    assert found["hhh_accuracy", "ppo", None, "all"]["n"] == 24
    assert any("hhh was not asked of other: an endpoint" in alarm for alarm in report["alarms"])
    assert len(report["overoptimization"]["points"]) == 3  # the curve is of the policy, whatever it is compared with
    page = (run / "report.html").read_text()
    assert "against other" in page
    assert "2 replies of SFT to a prompt" in page  # and the best of n is of what the policy was trained from
    assert report["provenance"]["recipe"]["evaluate"]["reference"].endswith("#other")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("evaluate.reference=./nowhere", "There is no policy at ./nowhere"),
        ("evaluate.reference='http://localhost:1/v1'", "lacks the model's name"),
        ("evaluate.pairs=[{source: none.jsonl}]", "none.jsonl"),
    ],
)
def test_what_a_recipe_cannot_compare_is_told_before_anything_runs(finished: Path, tmp_path, override, words) -> None:
    run = copy(finished, tmp_path)
    with pytest.raises((RecipeError, DataError), match=words):
        again(run, override, from_stage="evaluate")
    assert (run / "evaluate" / "report.json").is_file()
    with pytest.raises(RecipeError, match="NO_SUCH_KEY"):
        again(run, "evaluate.reference='http://localhost:1/v1#m'", "evaluate.reference_key_variable=NO_SUCH_KEY",
              from_stage="evaluate")  # fmt: skip


def test_a_suite_that_asks_what_training_asked_is_told(finished: Path, tmp_path, monkeypatch) -> None:
    """Six pairs that the reward model was trained on, and one question nobody asked, by recipe and by command."""
    monkeypatch.chdir(tmp_path)
    trained = [json.loads(line) for line in (finished / "world" / "preferences.jsonl").read_text().splitlines()]
    held_out = json.loads((finished / "data" / "counts.json").read_text())["splits"]["evaluation_pairs"]
    pairs = [*trained, {"prompt": "a new one?", "chosen": "yes", "rejected": "no", "objective": "helpful"}]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run = copy(finished, tmp_path)
    again(run, "evaluate.hhh=[{source: pairs.jsonl}]", from_stage="evaluate")
    report = json.loads((run / "report.json").read_text())
    seen = report["data"]["hhh"]["seen_in_training"]
    assert len(trained) - 2 * held_out <= seen <= len(trained)  # those of evaluation are apart, but for shared openings
    assert any(line.startswith(f"hhh: {seen} rows open with a first user turn") for line in report["alarms"])
    asked = ["evaluate", str(run), "--limit", "2", "--hhh", "pairs.jsonl", "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output + repr(result.exception)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["data"]["hhh"]["seen_in_training"] == seen
