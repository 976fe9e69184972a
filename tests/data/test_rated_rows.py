"""Single replies with a thumb: what a row becomes, and which of them may be trained on."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from llm_rlhf.audit.check import Tokens, check_sources
from llm_rlhf.data.checks import normalised_prompt, opening, prompt_of
from llm_rlhf.data.formats.turns import THOUGHTS_LEFT_OUT
from llm_rlhf.data.sources import load_demonstrations, load_preferences, load_prompts, load_ratings
from llm_rlhf.data.splits import load_splits, seen_in_training
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.models.encoding import encode_turn
from llm_rlhf.recipe.sections import DataSection, ModelSection, Source


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_every_row_with_a_thumb_is_a_rating_and_the_others_are_set_aside(tmp_path: Path) -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    thinking = {"role": "assistant", "content": "Hello!", "reasoning_content": "greet"}
    rows: list[dict[str, object]] = [
        {"prompt": "Is rain acid?", "completion": "Slightly.", "label": True},
        {"prompt": "Is rain acid?", "completion": "Never.", "label": "undesirable", "objective": "harmless"},
        {"messages": [*asked, thinking], "label": 1},
        {"prompt": "Is rain acid?", "completion": " ", "label": True},
        {"prompt": "Is rain acid?", "completion": "Perhaps.", "label": "so so"},
    ]
    loaded = load_ratings([Source(source=write(tmp_path / "thumbs.jsonl", rows), objective="helpful")])
    assert [(row.prompt[-1]["content"], row.reply, row.good, row.objective) for row in loaded.rows] == [
        ("Is rain acid?", "Slightly.", True, "helpful"),
        ("Is rain acid?", "Never.", False, "harmless"),
        ("Hi", "Hello!", True, "helpful"),
    ]
    assert loaded.rows[2].prompt == asked
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [
        (4, "empty reply"), (5, "unusable label"),
    ]  # fmt: skip
    assert loaded.counts()["repaired"] == {THOUGHTS_LEFT_OUT: 1}


def _labelled(folder: Path, labels: list[object]) -> Source:
    rows = [{"prompt": "Hi", "completion": f"reply {i}", "label": label} for i, label in enumerate(labels)]
    return Source(source=write(folder / "labelled.jsonl", rows))


@pytest.mark.parametrize("labels", [[1, 4, 5, 2], ["1", "5", "3"], [1, [1, 2], 0]])
def test_stars_are_no_thumbs(tmp_path: Path, labels: list[object]) -> None:
    """1 is the worst of them, and the only one that would be read, as thumbs up."""
    source = _labelled(tmp_path, labels)
    for load in (load_ratings, load_preferences, partial(load_demonstrations, preferences=Rows([]))):
        with pytest.raises(DataError, match=r"'label' of .*labelled.jsonl.* holds numbers from .*, which are points"):
            load([source])
    assert len(load_prompts([source], Rows([])).rows) == 1  # what was asked is no matter of labels
    source.format = "prompt_completion"  # where it says something else, which nothing reads
    assert len(load_demonstrations([source], Rows([])).rows) == len(labels)


def test_zero_is_neither_where_thumbs_down_is_minus_one(tmp_path: Path) -> None:
    loaded = load_ratings([_labelled(tmp_path, [1, 0, -1, "0.0", False])])
    assert [(row.reply, row.good) for row in loaded.rows] == [("reply 0", True), ("reply 2", False), ("reply 4", False)]
    assert [(item.origin.row, item.reason) for item in loaded.set_aside] == [
        (2, "unusable label"), (4, "unusable label"),
    ]  # fmt: skip
    assert [row.good for row in load_ratings([_labelled(tmp_path, [1, 0])]).rows] == [True, False]


def test_pairs_are_no_ratings_and_replies_alone_no_pairs(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}])
    with pytest.raises(
        DataError,
        match=r"cannot serve as ratings. Formats that can: feedback. Its 'label' must be a thumb",
    ):
        load_ratings([Source(source=pairs)])
    alone = write(tmp_path / "alone.jsonl", [{"prompt": "Hi", "completion": "Hello!", "label": True}])
    with pytest.raises(DataError, match=r"replies alone serve kto as 'data.ratings'"):
        load_preferences([Source(source=alone)])


def test_no_rating_opens_as_what_evaluation_asks_or_the_held_out_model_learns_from(tmp_path: Path) -> None:
    """One file of pairs, and one of thumbs on the same 60 questions, of which 20 more have no pair."""
    pairs = [{"prompt": f"What is {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(60)]
    thumbs = [{"prompt": f"what is  {i}?", "completion": "Well", "label": i % 3 == 0} for i in range(80)]
    data = DataSection(
        preferences=[Source(source=write(tmp_path / "pairs.jsonl", pairs))],
        ratings=[Source(source=write(tmp_path / "thumbs.jsonl", thumbs))],
        evaluation_share=0.3,
        heldout_share=0.5,
    )
    splits, _ = load_splits(data)
    openings = {
        name: {normalised_prompt(opening(prompt_of(row))) for row in getattr(splits, name)}
        for name in ("reward_pairs", "heldout_pairs", "evaluation_pairs", "ratings")
    }
    assert all(openings.values())
    assert openings["ratings"].isdisjoint(openings["heldout_pairs"] | openings["evaluation_pairs"])
    assert openings["reward_pairs"] <= openings["ratings"]
    assert len(openings["ratings"]) == 80 - len(openings["heldout_pairs"]) - len(openings["evaluation_pairs"])
    assert splits.counts["splits"]["ratings"] == len(splits.ratings) == 80 - splits.counts["leaks_removed"]["ratings"]
    assert splits.counts["ratings"]["kept"] == 80
    assert seen_in_training(splits, [row for row in splits.ratings if row.prompt[0]["content"] == "what is  79?"]) == 1


def test_ratings_alone_are_enough_and_leak_as_other_rows_do(tmp_path: Path) -> None:
    thumbs = [{"prompt": f"What is {i}?", "completion": "Well", "label": i % 3 == 0} for i in range(20)]
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "what is 3?"}, {"prompt": "Who are you?"}])
    data = DataSection(
        ratings=[Source(source=write(tmp_path / "thumbs.jsonl", thumbs))],
        demonstrations=[],
        prompts=[],
        evaluation_prompts=[Source(source=asked)],
    )
    with pytest.raises(DataError, match="ratings: 1 with the same prompt"):
        load_splits(data)
    data.leaks = "remove"
    assert [row.origin.row for row in load_splits(data)[0].ratings] == [n for n in range(1, 21) if n != 4]


def test_a_recipe_without_ratings_says_nothing_of_them(tmp_path: Path) -> None:
    pairs = [{"prompt": f"What is {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(20)]
    source = Source(source=write(tmp_path / "pairs.jsonl", pairs))
    splits, _ = load_splits(DataSection(preferences=[source], evaluation_share=0.3))
    assert len(splits.ratings) == 0
    assert "ratings" not in json.dumps(splits.counts)


def test_data_check_counts_them_and_measures_what_a_policy_would_say(tmp_path, base_folder, tokenizer) -> None:
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "W", "label": False},
    ]
    tokens = Tokens(ModelSection(base=str(base_folder)), sample=0)
    check = check_sources([Source(source=write(tmp_path / "t.jsonl", rows))], [], "ratings", None, tokens)
    assert check.lists["ratings"].characters == {"prompt": [2, 2], "good": [6], "bad": [1]}
    longest = encode_turn(tokenizer, [{"role": "user", "content": "Hi"}], {"role": "assistant", "content": "Hello!"})
    assert (check.lengths[0].what, check.lengths[0].tokens["max"]) == ("ratings", len(longest.ids))
