"""Judges by their names, and what their verdicts are worth: shares of comparisons won, by hand."""

import json

import pytest

from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.answers import Answers
from llm_rlhf.evaluation.judges.naming import check_judge, judge_of, judge_record, judge_replies, judged_estimates
from llm_rlhf.evaluation.judges.people import StoredJudge
from llm_rlhf.evaluation.judges.protocol import Comparisons, Cost, Judged, Pair, Reading
from llm_rlhf.evaluation.judges.remote import EndpointJudge
from llm_rlhf.recipe.sections import ModelSection

PROMPTS = [
    Prompt([{"role": "user", "content": text}], objective, Origin("made up", i))
    for i, (text, objective) in enumerate(
        [
            ("boil an egg", "helpful"),
            ("poison a fox", "harmless"),
            ("name a star", "helpful"),
            ("what is rain", "helpful"),
        ]
    )
]


def test_a_name_is_looked_up_before_anybody_is_asked(tmp_path, monkeypatch) -> None:
    for text, words in (
        ("gpt-4", "gpt-4' is not known; write local:MODEL"),
        ("people:none.jsonl", "names a file of verdicts that is not there"),
        (f"local:{tmp_path}", "holds no config.json and is no model"),
    ):
        with pytest.raises(RecipeError, match=rf"^Mine '.*{words}"):
            check_judge(text, what="Mine")
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(RecipeError, match="NO_SUCH_KEY"):
        check_judge("http://localhost:1/v1#m", "NO_SUCH_KEY")
    check_judge("http://localhost:1/v1#m")
    check_judge("local:some/hub-model")  # nothing of that name here: it may be on the hub


def test_a_name_becomes_the_judge_it_names(tmp_path) -> None:
    verdict = {"prompt": "q", "a": "x", "b": "y", "winner": "a", "annotator": "ann"}
    (tmp_path / "verdicts.jsonl").write_text(json.dumps(verdict) + "\n")
    people = judge_of(f"people:{tmp_path / 'verdicts.jsonl'}", ModelSection(), tmp_path / "cache.jsonl")
    assert isinstance(people, StoredJudge)
    served = judge_of("http://localhost:1/v1#org/m#2", ModelSection(), tmp_path / "cache.jsonl")
    assert isinstance(served, EndpointJudge)
    assert served.identity()["model"] == "org/m#2"  # the first # ends the address


def answers(lengths: list[int]) -> Answers:
    return Answers([f"{n} tokens" for n in lengths], lengths, [True] * len(lengths))


def test_a_comparison_is_won_by_both_orders_however_sure_the_judge_is() -> None:
    """Won in both orders 1, in one 1/2, a tie and a loss 1/4; a row that was not judged is in no share."""
    rows = [Judged(0.75, 0.9, 0.6), Judged(0.5, 0.9, 0.2), Judged(0.25, 0.5, 0.0), Judged(None, failure="timeout")]
    pairs = [Pair(p.messages, "a", "b", p.objective) for p in PROMPTS]
    found = Comparisons(pairs, rows, {"kind": "local model"}, Cost(requests=7, seconds=3.5))
    told = judged_estimates(found, PROMPTS, answers([3, 4, 5, 6]), answers([4, 3, 5, 6]), ("ppo", "sft"), resamples=100)
    raw = {e.split: (e.estimate, e.n) for e in told if e.name == "win_rate"}
    assert raw == {
        "judge": (pytest.approx((1 + 0.5 + 0.25) / 3), 3),
        "judge_helpful": (pytest.approx((1 + 0.25) / 2), 2),
        "judge_harmless": (0.5, 1),
    }
    assert {(e.subject, e.reference) for e in told} == {("ppo", "sft")}
    assert {e.split for e in told if e.name != "win_rate"} <= {"judge"}  # at equal length over all prompts alone
    by_people = Comparisons(pairs, rows, {"kind": "people"}, Cost())
    told = judged_estimates(by_people, PROMPTS, answers([3] * 4), answers([3] * 4), ("ppo", "sft"), resamples=100)
    assert next(e.estimate for e in told if e.split == "judge") == pytest.approx((0.75 + 0.5 + 0.25) / 3)
    record = judge_record(found)
    assert record["cost"]["requests"] == 7
    assert "seconds" not in record["cost"]  # two runs must have the same report
    assert record["counts"]["failed"] == {"timeout": 1}


class Longer:
    def identity(self):
        return {"kind": "scripted", "model": "m"}

    def read_pairs(self, pairs, progress, most_failures):
        self.rubrics = {pair.rubric for pair in pairs}
        return [Reading(float(len(pair.a) > len(pair.b))) for pair in pairs]


def test_the_policys_reply_is_compared_with_the_starts_by_its_prompts_rubric() -> None:
    judge = Longer()
    policy, start = answers([10, 2, 10, 3]), answers([2, 10, 2, 3])
    found = judge_replies(judge, PROMPTS, policy, start, [{"model": "other"}])
    assert found.probabilities == [1.0, 0.0, 1.0, 0.5]
    assert judge.rubrics == {"helpful", "harmless"}
    with pytest.raises(RecipeError, match="is the policy that it would judge"):
        judge_replies(judge, PROMPTS, policy, start, [{"model": "other"}, {"model": "m"}])
