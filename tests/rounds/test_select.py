"""What may be asked: no prompt of evaluation, no pair twice, and as many candidates as there are different replies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_rlhf.data.checks import opening, prompt_share
from llm_rlhf.data.near_duplicates import shingle_vectors
from llm_rlhf.data.rows import Origin, Prompt
from llm_rlhf.data.splits import load_splits
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.feedback import queue
from llm_rlhf.feedback.database import Database
from llm_rlhf.recipe.sections import DataSection, Recipe, Source
from llm_rlhf.rounds.candidates import Candidate, Pool, _groups
from llm_rlhf.rounds.prompts import askable_prompts
from llm_rlhf.rounds.select import Selection, asked_before, batch_of, judged_before, pairs_in


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _write(path: Path, rows: list[dict[str, Any]]) -> list[Source]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [Source(source=str(path))]


@pytest.fixture
def data(tmp_path: Path) -> DataSection:
    pairs = [{"prompt": f"pair {n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(60)]
    return DataSection(
        preferences=_write(tmp_path / "pairs.jsonl", pairs),
        prompts=_write(tmp_path / "prompts.jsonl", [{"prompt": f"how is number {n} spelled out?"} for n in range(200)]),
        evaluation_prompts=_write(
            tmp_path / "asked.jsonl", [{"prompt": "who wrote the letters of the island to the king?"}]
        ),
    )


def test_prompts_that_may_be_asked_are_none_of_evaluations(data: DataSection, tmp_path: Path) -> None:
    recipe = Recipe("x", data=data, ppo={"eval_prompts": 10})
    splits, _ = load_splits(data)
    found = askable_prompts(recipe, splits, data)
    assert found.left_out["kept back to evaluate on in training"] == 10
    by_hash = found.left_out["falls to evaluation by its hash"]
    assert len(found.prompts) == 200 - 10 - by_hash
    assert 5 < by_hash < 40  # a tenth of 190, and four deviations
    assert all(prompt_share(opening(prompt.messages), "split") >= 0.1 for prompt in found.prompts)
    again = askable_prompts(recipe, splits, data, seed=1)
    assert {str(p.messages) for p in again.prompts} == {str(p.messages) for p in found.prompts}
    assert [p.messages for p in again.prompts] != [p.messages for p in found.prompts]


def test_a_files_prompts_are_held_against_evaluation(data: DataSection, tmp_path: Path) -> None:
    recipe, (splits, _) = Recipe("x", data=data, ppo={}), load_splits(data)
    held = splits.evaluation_pairs[0].prompt[0]["content"]
    fresh = [
        f"a question about {word}" for word in ("ice", "snow", "rain", "hail", "wind", "sun", "fog", "dew", "heat")
    ]
    texts = [
        "Who wrote the letters of the island to the king?",  # evaluation's own prompt, in another case
        "who wrote the letters of the island to the king, please?",  # nearly the same
        held,  # of a pair that is held out
        *fresh,
    ]
    (source,) = _write(tmp_path / "more.jsonl", [{"prompt": text} for text in texts])
    found = askable_prompts(recipe, splits, data, source.source)
    assert found.left_out["opens as a row of evaluation does"] == 2
    assert found.left_out["opens nearly as a row of evaluation does"] == 1
    assert {p.messages[0]["content"] for p in found.prompts} <= set(fresh)
    (source,) = _write(tmp_path / "none.jsonl", [{"prompt": texts[0]}])
    with pytest.raises(DataError, match="No prompt is left to ask people about"):
        askable_prompts(recipe, splits, data, source.source)


def test_replies_become_pairs_rankings_or_stand_alone() -> None:
    replies = [{"text": text} for text in "abc"]
    assert [[r["text"] for r in group] for group in _groups(replies, "compare")] == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert [len(group) for group in _groups(replies, "rank")] == [3]
    assert [len(group) for group in _groups(replies, "rate")] == [1, 1, 1]
    assert not list(_groups(replies[:1], "compare"))
    assert not list(_groups(replies[:1], "rank"))


def test_margins_and_disagreement_by_hand() -> None:
    candidates = [Candidate(Prompt(_user(f"{n}"), "helpful", Origin("f", n)), []) for n in range(2)]
    pool = Pool(candidates, np.array([[1.0, 3.0, -9.0], [0.0, 0.0, 0.0]]), [True, True, False])
    assert pool.margin is not None
    assert pool.margin.tolist() == [2.0, 0.0]  # the held-out one has no say
    assert pool.disagreement is not None
    assert pool.disagreement[0] > 0.3
    assert pool.disagreement[1] == 0
    pool.keep([False, True], "asked or judged before")
    assert pool.dropped == {"asked or judged before": 1}
    assert pool.margins is not None
    assert pool.margins.tolist() == [[0.0, 0.0, 0.0]]


def test_alike_texts_have_near_vectors() -> None:
    vectors = shingle_vectors(["what does the fox eat at night?", "what does the fox eat at noon?", "mend my bicycle"])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.6 > 0.4 > vectors[0] @ vectors[2]
    assert shingle_vectors([]).shape == (0, 256)


def test_a_pair_is_known_in_either_order_and_in_any_kind_of_task(database: Database) -> None:
    texts = [{"text": "one"}, {"text": "two"}, {"text": "three"}]
    with database.write() as session:
        queue.add(session, [queue.Question("rank", _user("q"), texts)], "select", {"rounds": "r", "round": 2})
    known = asked_before(database)
    assert len(known) == 3
    assert pairs_in(_user("q"), ["two", "one"]) <= known
    assert not pairs_in(_user("another"), ["two", "one"]) & known
    assert pairs_in(_user("q"), ["one"]) != pairs_in(_user("q"), ["two"])
    assert batch_of(database, rounds="r", round=2) is not None
    assert batch_of(database, rounds="r", round=3) is None


def test_pairs_of_the_data_are_known(data: DataSection) -> None:
    splits, _ = load_splits(data)
    pair = splits.reward_pairs[0]
    assert pairs_in(pair.prompt, [pair.rejected, pair.chosen]) == judged_before(splits, [pair.prompt])
    assert not judged_before(splits, [_user("never asked")])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"strategy": "best"}, "it is one of random"),
        ({"kind": "chat"}, "--kind is 'chat'"),
        ({"kind": "rate", "strategy": "margin"}, "goes by the difference of two replies"),
        ({"kind": "rank", "answers": 12}, "--answers makes 12"),
        ({"answers": 1}, "needs two replies"),
    ],
)
def test_what_cannot_be_is_refused_first(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match="no run's folder"):
        Selection(tmp_path).check()
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    Selection(tmp_path).check()
    with pytest.raises(RecipeError, match=told):
        Selection(tmp_path, **changes).check()
