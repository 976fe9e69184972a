"""Rows in the shape of public data sets, written for these tests, and what each becomes."""

import json
from pathlib import Path
from typing import Any

import pytest

from llm_rlhf.data.rows import Preference
from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import Source

ASK = [{"role": "user", "content": "q"}]


def source(path: Path, *rows: Any, **keys: Any) -> Source:
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source(source=str(path / "rows.jsonl"), **keys)


def pairs(path: Path, *rows: Any, **keys: Any) -> Loaded[Preference]:
    return load_preferences([source(path, *rows, **keys)])


def told(path: Path, *rows: Any, **keys: Any) -> list[list[tuple[str, str]]]:
    loaded = load_demonstrations([source(path, *rows, **keys)], Rows())
    return [[(turn["role"], turn["content"]) for turn in row.messages] for row in loaded.rows]


def asked(path: Path, *rows: Any, **keys: Any) -> list[str]:
    return [row.messages[-1]["content"] for row in load_prompts([source(path, *rows, **keys)], Rows()).rows]


def reasons(loaded: Loaded[Any]) -> list[tuple[int, str]]:
    return sorted((item.origin.row, item.reason) for item in loaded.set_aside)


def unread(loaded: Loaded[Any]) -> dict[str, int]:
    return dict(next(iter(loaded.counts().get("unread", {}).values()), {}))


# --- demonstrations

TALK = [("user", "q"), ("assistant", "a")]
SHAREGPT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]


@pytest.mark.parametrize(
    ("row", "form", "nobody_reads"),
    [
        ({"conversations": SHAREGPT, "id": 7}, "messages", {"id"}),
        ({"conversation": [{"input": "q", "output": "a"}], "source": "x"}, "messages", {"source"}),  # Capybara
        ({"messages": [*ASK, {"role": "assistant", "content": "a", "id": 3}]}, "messages", {"messages.id"}),
        ({"instruction": "q", "input": "", "output": "a", "text": "all"}, "instruction", {"text"}),  # Alpaca
        ({"instruction": "q", "context": "", "response": "a", "category": "c"}, "instruction", {"category"}),  # Dolly
        ({"question": "q", "answer": "a"}, "prompt_completion", set()),  # GSM8K
        ({"query": "q", "response": "a", "type": "t"}, "prompt_completion", {"type"}),  # MetaMathQA
        ({"Prompt": "q", "Completion": "a"}, "prompt_completion", set()),
        ({"conversations": SHAREGPT, "kto_tag": True}, "feedback", set()),
    ],
)
def test_demonstrations(row: dict[str, Any], form: str, nobody_reads: set[str], tmp_path: Path) -> None:
    assert told(tmp_path, row) == [TALK]
    loaded = load_demonstrations([source(tmp_path, row)], Rows())
    assert (list(loaded.formats.values()), set(unread(loaded))) == ([form], nobody_reads)


def test_a_question_behind_its_system_prompt_and_its_context(tmp_path: Path) -> None:
    assert told(tmp_path, {"system_prompt": "s", "question": "q", "response": "a"}) == [[("system", "s"), *TALK]]
    assert told(tmp_path, {"instruction": "q", "context": "c", "response": "a"}) == [[("user", "q\n\nc"), TALK[1]]]


# --- pairs

NECTAR = [{"answer": "a", "rank": 1.0, "model": "m"}, {"answer": "b", "rank": 2.0}]


@pytest.mark.parametrize(
    ("row", "nobody_reads"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s", "id": 1}, {"subset", "id"}),  # RewardBench
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, set()),
        (
            {
                "conversations": SHAREGPT[:1],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            set(),
        ),
        ({"messages": ASK, "chosen": "a", "rejected": "b"}, set()),
        ({"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": NECTAR}, {"answers.model"}),
    ],
)
def test_pairs(row: dict[str, Any], nobody_reads: set[str], tmp_path: Path) -> None:
    loaded = pairs(tmp_path, row)
    assert [(pair.prompt, pair.chosen, pair.rejected) for pair in loaded.rows] == [(ASK, "a", "b")]
    assert set(unread(loaded)) == nobody_reads
    assert asked(tmp_path, row) == ["q"]


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def of_pairs(loaded: Loaded[Preference]) -> list[tuple[list[str], str, str, Any]]:
    return [([turn["content"] for turn in one.prompt], one.chosen, one.rejected, one.position) for one in loaded.rows]


def test_shp_says_1_where_a_is_better_and_its_post_may_begin_with_a_bracket(tmp_path: Path) -> None:
    row = {"history": "[Serious] q", "human_ref_A": "a", "human_ref_B": "b", "score_A": 9, "score_B": 2}
    loaded = pairs(tmp_path, {**row, "labels": 1}, {**row, "labels": 0})
    assert of_pairs(loaded) == [(["[Serious] q"], "a", "b", 1), (["[Serious] q"], "b", "a", 2)]
    assert asked(tmp_path, {**row, "labels": 1}) == ["[Serious] q"]
    only = pairs(tmp_path, {**row, "labels": 1})
    assert of_pairs(only) == [(["[Serious] q"], "a", "b", 1)]


@pytest.mark.parametrize(
    ("names", "question"),
    [
        (("answer_0", "answer_1", "score_0", "score_1"), {"question": {"full_text": "q", "id": 7}}),  # WebGPT
        (("response_a", "response_b", "score_a", "score_b"), {"prompt": "q"}),
    ],
)
def test_the_score_of_either_reply_says_which_is_better(
    names: tuple[str, ...], question: dict[str, Any], tmp_path: Path
) -> None:
    rows = [
        {**question, **dict(zip(names, ("a", "b", *of_both), strict=True))} for of_both in ((1, -1), (2, 2.5), (0, 0))
    ]
    loaded = pairs(tmp_path, *rows)
    assert of_pairs(loaded) == [(["q"], "a", "b", 1), (["q"], "b", "a", 2)]
    assert [one.margin for one in loaded.rows] == [2, 0.5]
    assert reasons(loaded) == [(3, "tie")]
    assert of_pairs(pairs(tmp_path, rows[0])) == [(["q"], "a", "b", 1)]  # no other row is needed to tell


def test_two_summaries_and_the_number_of_the_better(tmp_path: Path) -> None:
    """The form that a post is asked in is that of Stiennon et al. 2020, table 4."""
    post = {"id": "t3", "subreddit": "aww", "title": "T", "post": "P", "article": None}
    both = [{"text": " a", "policy": "ref"}, {"text": " b"}]
    rows = [{"info": post, "summaries": both, "choice": choice, "worker": "w"} for choice in (0, 1, 2)]
    loaded = pairs(tmp_path, *rows)
    prompt = "SUBREDDIT: r/aww\n\nTITLE: T\n\nPOST: P\n\nTL;DR:"
    assert of_pairs(loaded) == [([prompt], " a", " b", 1), ([prompt], " b", " a", 2)]
    assert reasons(loaded) == [(3, "unusable label")]
    assert unread(loaded) == {"info.id": 2, "summaries.policy": 2, "worker": 2}
    article = {"info": {"article": "A", "post": None}, "summaries": both, "choice": 1}
    assert asked(tmp_path, article) == ["Article:\nA\n\nTL;DR:"]


def test_a_column_for_each_outcome_and_turns_in_lists(tmp_path: Path) -> None:
    """LMSYS 55k: the lists are JSON in text."""
    outcomes = ("winner_model_a", "winner_model_b", "winner_tie")

    def row(won: int, *texts: str) -> dict[str, Any]:
        sides = dict(zip(("prompt", "response_a", "response_b"), texts, strict=True))
        return sides | {name: int(place == won) for place, name in enumerate(outcomes)}

    one = ('["q"]', '["a"]', '["b"]')
    longer = ('["q", "r"]', '["a", "c"]', '["a", "d"]')
    loaded = pairs(tmp_path, row(0, *one), row(1, *longer), row(2, *one), row(3, *one), row(0, '["q"]', "[]", '["b"]'))
    assert of_pairs(loaded) == [(["q"], "a", "b", 1), (["q", "a", "r"], "d", "c", 2)]
    assert reasons(loaded) == [
        (3, "tie"), (4, "unusable label"), (5, "prompts and replies of different number")
    ]  # fmt: skip
    assert asked(tmp_path, row(0, *one)) == ["q"]


def test_the_turns_after_the_judged_one_are_no_part_of_the_pair(tmp_path: Path) -> None:
    """MT-Bench: both conversations have two turns, of which one was judged; in the arena `turn` is their number."""
    first, second = talk("q", "a", "r", "c"), talk("q", "b", "r", "d")
    system = [{"role": "system", "content": "s"}]
    row = {"conversation_a": first, "conversation_b": second, "winner": "model_a"}
    behind = {"conversation_a": [*system, *first], "conversation_b": [*system, *second], "winner": "model_b"}
    loaded = pairs(tmp_path, {**row, "turn": 1}, {**row, "turn": 2}, {**behind, "turn": 1})
    assert of_pairs(loaded) == [(["q"], "a", "b", 1), (["s", "q"], "b", "a", 2)]
    assert reasons(loaded) == [(2, "parts before the last turn")]
    assert unread(loaded) == {}


def test_openai_s_preferred_output(tmp_path: Path) -> None:
    reply, other = [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}]
    row = {"input": {"messages": ASK, "tools": [], "seed": 1}, "preferred_output": reply, "non_preferred_output": other}
    loaded = pairs(tmp_path, row, {**row, "input": {"messages": ASK, "tools": [{"type": "function"}]}})
    assert of_pairs(loaded) == [(["q"], "a", "b", None)]
    assert reasons(loaded) == [(2, "tools are not supported")]
    assert unread(loaded) == {"input.seed": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"context_messages": ASK, "chosen": "a", "rejected": "b"},  # OpenRLHF, RLHFlow
        {"context_messages": ASK, "chosen": talk("", "a")[1:], "rejected": talk("", "b")[1:]},
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b"},  # distilabel, axolotl
        {"prompt": "q", "chosen": talk("", "a")[1], "rejected": talk("", "b")[1]},
    ],
)
def test_other_names_of_a_pair(row: dict[str, Any], tmp_path: Path) -> None:
    loaded = pairs(tmp_path, row)
    assert of_pairs(loaded) == [(["q"], "a", "b", None)]
    assert unread(loaded) == {}


@pytest.mark.parametrize("prompt", ["q", "r"])
def test_a_prompt_that_is_one_turn_of_both_conversations(prompt: str, tmp_path: Path) -> None:
    """Capybara: the conversations are whole, and the prompt is the first or the last that the user says."""
    row = {"chosen": talk("q", "a", "r", "c"), "rejected": talk("q", "a", "r", "d"), "system": "s"}
    scores = {"rating_chosen": 5, "rating_rejected": 3}
    loaded = pairs(tmp_path, {"prompt": prompt, **row, **scores}, {"prompt": "elsewhere", **row})
    assert of_pairs(loaded) == [(["s", "q", "a", "r"], "c", "d", None)]
    assert [one.margin for one in loaded.rows] == [2]
    assert reasons(loaded) == [(2, "not one assistant turn after the prompt")]


def test_replies_in_several_styles_are_compared_style_by_style(tmp_path: Path) -> None:
    """RM-Bench: concise, detailed, detailed with markdown."""
    row = {"prompt": "q", "chosen": ["a", "a a", "# a a"], "rejected": ["b", "b b", "# b b"], "domain": "chat"}
    short = {"prompt": "r", "chosen": ["a", "same"], "rejected": ["b", "same"]}
    loaded = pairs(tmp_path, row, short, {"prompt": "t", "chosen": ["a"], "rejected": ["b", "c"]})
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [
        ("a", "b"), ("a a", "b b"), ("# a a", "# b b"), ("a", "b")
    ]  # fmt: skip
    assert (loaded.read, loaded.used, loaded.made) == (3, 2, 4)
    assert (loaded.parts, unread(loaded)) == ({"chosen equals rejected": 1}, {"domain": 1})
    assert reasons(loaded) == [(3, "chosen and rejected of different number")]
    assert asked(tmp_path, row, short) == ["q", "r"]


def test_better_and_safer_are_two_pairs(tmp_path: Path) -> None:
    """PKU-SafeRLHF; what is to be imitated must be both."""
    rows = [
        {"prompt": f"q{i}", "response_0": "a", "response_1": "b", "is_response_0_safe": True,
         "better_response_id": better, "safer_response_id": safer}
        for i, (better, safer) in enumerate([(0, 1), (1, 1)])
    ]  # fmt: skip
    loaded = pairs(tmp_path, *rows)
    assert [(pair.chosen, pair.objective, pair.position) for pair in loaded.rows] == [
        ("a", "helpful", 1), ("b", "harmless", 2), ("b", "helpful", 2), ("b", "harmless", 2)
    ]  # fmt: skip
    assert unread(loaded) == {"is_response_0_safe": 2}
    assert told(tmp_path, *rows) == [[("user", "q1"), ("assistant", "b")]]
    demonstrations = load_demonstrations([source(tmp_path, *rows)], Rows())
    assert reasons(demonstrations) == [(1, "the better and the safer reply differ")]
    safer = pairs(tmp_path, *rows, columns={"label": "safer_response_id"})
    assert [pair.chosen for pair in safer.rows] == ["b", "b"]
    assert unread(safer)["better_response_id"] == 2


def test_safe_and_unsafe_are_thumbs_on_how_harmless_a_reply_is(tmp_path: Path) -> None:
    """BeaverTails."""
    rows = [
        {"prompt": "q", "response": text, "is_safe": safe, "category": {}} for text, safe in (("b", False), ("a", True))
    ]
    (pair,) = pairs(tmp_path, *rows).rows
    assert (pair.chosen, pair.rejected, pair.objective) == ("a", "b", "harmless")
    assert told(tmp_path, *rows) == [TALK]


@pytest.mark.parametrize("name", ["overall_preference", "preference_strength"])
def test_a_signed_preference_is_which_and_by_how_much(name: str, tmp_path: Path) -> None:
    """HelpSteer2 and 3."""
    rows = [{"context": ASK, "response1": "a", "response2": "b", name: value} for value in (-3, 0, 1, "x")]
    loaded = pairs(tmp_path, *rows)
    assert [(p.prompt, p.chosen, p.margin, p.position) for p in loaded.rows] == [(ASK, "a", 3, 1), (ASK, "b", 1, 2)]
    assert reasons(loaded) == [(2, "tie"), (4, "unusable label")]
    assert unread(loaded) == {}


def test_scores_of_replies_a_row_each_are_compared_within_a_prompt(tmp_path: Path) -> None:
    """HelpSteer."""
    said = [("q", "b", 1), ("r", "alone", 4), ("Q ", "a", 4), ("q", "c", 3), ("t", "x", 2), ("t", "y", 2), ("q", "", 0)]
    rows = [{"prompt": p, "response": text, "helpfulness": score, "verbosity": 1} for p, text, score in said]
    loaded = pairs(tmp_path, *rows)
    assert [(p.chosen, p.rejected, p.margin, p.position) for p in loaded.rows] == [("a", "b", 3, 2)]
    alone, between = "no other scored reply to the prompt", "reply neither the best nor the worst"
    assert reasons(loaded) == [(2, alone), (4, between), (5, "tie"), (6, "tie"), (7, "empty reply")]
    assert (loaded.read, loaded.used, loaded.made, unread(loaded)) == (7, 2, 1, {"verbosity": 7})
    every = pairs(tmp_path, *rows, pairs="all")
    assert [(p.chosen, p.rejected) for p in every.rows] == [("a", "c"), ("a", "b"), ("c", "b")]
    every.counts()
    assert told(tmp_path, *rows) == [
        [("user", "Q "), ("assistant", "a")],
        [("user", "r"), ("assistant", "alone")],
        [("user", "t"), ("assistant", "x")],
    ]  # fmt: skip
    assert asked(tmp_path, *rows) == ["q", "r", "t"]
    thinking = [{"prompt": "q", "completion": [{"role": "assistant", "content": t, "thinking": "x"}], "helpfulness": i}
                for i, t in enumerate("ab")]  # fmt: skip
    assert pairs(tmp_path, *thinking).repaired == {"thoughts of compared replies left out": 1}
    marked = {"prompt": "q\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nr", "response": "s", "helpfulness": 1}
    with pytest.raises(DataError, match="transcript where one turn is expected"):
        pairs(tmp_path, marked)
    (pair,) = pairs(tmp_path, *({"prompt": "q", "completion": t, "score": t} for t in "12"), format="scored").rows
    assert (pair.chosen, pair.margin) == ("2", 1)


def test_the_mean_of_the_aspects_ranks_and_an_overall_score_where_there_are_none(tmp_path: Path) -> None:
    """UltraFeedback: the means are 4.5, 2 and 3; the overall score says otherwise and is not read."""

    def reply(text: str, *ratings: str, overall: float) -> dict[str, Any]:
        aspects = ("helpfulness", "honesty")
        annotations = {
            aspect: {"Rating": rating, "Rationale": "..."} for aspect, rating in zip(aspects, ratings, strict=True)
        }
        return {
            "response": text,
            "annotations": annotations,
            "overall_score": overall,
            "fine-grained_score": 1,
            "model": "m",
        }

    completions = [reply("a", "5", "4", overall=1), reply("b", "2", "N/A", overall=10), reply("c", "3", "3", overall=5)]
    loaded = pairs(tmp_path, {"instruction": "q", "completions": completions, "models": ["m"]})
    (pair,) = loaded.rows
    assert (pair.chosen, pair.rejected, pair.margin) == ("a", "b", 2.5)
    assert unread(loaded) == {"models": 1, "completions.fine-grained_score": 1, "completions.model": 1}
    unrated = [reply(text, "N/A", "N/A", overall=score) for text, score in (("a", 7.0), ("b", 2.0))]
    (pair,) = pairs(tmp_path, {"instruction": "q", "completions": unrated}).rows
    assert (pair.chosen, pair.margin) == ("a", 5)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("score_chosen", "score_rejected"),
        ("chosen-rating", "rejected-rating"),
        ("chosen_score", "rejected_score"),
        ("rating_chosen", "rating_rejected"),
    ],
)
def test_the_scores_of_both_replies_are_the_margin(better: str, worse: str, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": [*ASK, {"role": "assistant", "content": "a"}],
           "rejected": [*ASK, {"role": "assistant", "content": "b"}]}  # fmt: skip
    row["messages"] = row["chosen"]
    loaded = pairs(tmp_path, *({**row, better: one, worse: other} for one, other in ((8.5, "6"), (7, 7), (1, 2))))
    assert [(pair.chosen, pair.margin) for pair in loaded.rows] == [("a", 2.5)]
    assert reasons(loaded) == [(2, "tie"), (3, "negative margin")]
    assert unread(loaded) == {"messages": 2}


@pytest.mark.parametrize(
    "names", [None, ("annotator_1", "annotator_2", "annotator_3"), ("label_1", "label_2", "label_3")]
)
def test_of_several_labels_the_most_count_with_their_share(names: tuple[str, ...] | None, tmp_path: Path) -> None:
    votes = [["a", "a", "b"], ["b", "b", None], ["a", "b", "tie"], [None, None, None], ["a", "what", "a"]]
    rows = [
        {"prompt": f"q{i}", "response_a": "first", "response_b": "second"}
        | ({"label": of_row} if names is None else dict(zip(names, of_row, strict=True)))
        for i, of_row in enumerate(votes)
    ]
    loaded = pairs(tmp_path, *rows)
    assert [(pair.chosen, pair.position) for pair in loaded.rows] == [("first", 1), ("second", 2)]
    assert [pair.confidence for pair in loaded.rows] == pytest.approx([2 / 3, 1])
    assert reasons(loaded) == [(3, "tie"), (4, "missing field"), (5, "unusable label")]
    assert unread(loaded) == {}


def test_several_thumbs_on_one_reply(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text, "label": label} for text, label in
            (("a", [True, False, True]), ("b", [0, 0, 1]), ("c", [True, False]))]  # fmt: skip
    loaded = pairs(tmp_path, *rows)
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [("a", "b")]
    assert reasons(loaded) == [(3, "unusable label")]


def test_a_row_of_two_shapes_at_once(tmp_path: Path) -> None:
    row = {
        "conversations": SHAREGPT[:1],
        "chosen": "a",
        "rejected": "b",
        "label": 0,
        "score_chosen": 3,
        "score_rejected": 1,
    }
    (pair,) = pairs(tmp_path, row).rows
    assert (pair.prompt, pair.chosen, pair.rejected, pair.margin) == (ASK, "a", "b", 2)


# --- prompts


@pytest.mark.parametrize(
    "row",
    [
        {"goal": "q", "target": "Sure"},  # AdvBench
        {"Goal": "q", "Behavior": "name"},  # JailbreakBench
        {"Behavior": "q", "BehaviorID": "b"},  # HarmBench
        {"forbidden_prompt": "q", "category": "c"},  # StrongREJECT
        {"question": "q", "answer": "a"},
        {"query": "q"},
        {"prompt_text": "q"},
        {"text": "q"},
        {"instruction": "q", "output_1": "a"},
        {"turns": ["q", "r"]},
        {"PROMPT": "q", "response_a": "a"},
    ],
)
def test_prompts_under_their_usual_names(row: dict[str, Any], tmp_path: Path) -> None:
    assert asked(tmp_path, row) == ["q"]


def test_a_transcript_in_a_column_of_prompts_is_not_taken_for_one_turn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="transcript where one turn is expected"):
        asked(tmp_path, {"text": "### Human: q### Assistant: a"})
