"""The evaluation prompts in data/evaluation: complete, readable, balanced, no two alike, and as their README says."""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from llm_rlhf.data.sources import load_prompts
from llm_rlhf.recipe.sections import Source

FOLDER = Path(__file__).parents[2] / "data" / "evaluation"
OBJECTIVES = {"helpful": "helpful", "harmful": "harmless", "scary": "helpful"}  # by kind
FILES = {"helpful.jsonl": "helpful", "harmful.jsonl": "harmful", "safe_but_scary.jsonl": "scary"}  # kind by file
TOO_SIMILAR = 0.7
XSTEST = Path(os.environ.get("LLM_RLHF_XSTEST", ".")) / "xstest_prompts.csv"

CONTACTS = {
    "e-mail address": re.compile(r"\S@\S"),
    "web address": re.compile(r"://|\bwww\.|\w\.(?:com|org|net|io|gov|edu|de|uk|fr|in)\b", re.IGNORECASE),
    "telephone number": re.compile(r"\+?\(?\d(?:[ ()/.-]?\d){6,}"),
}


@cache
def rows_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / file).read_text(encoding="utf-8").splitlines()]


def all_rows() -> list[dict[str, Any]]:
    return [row for file in FILES for row in rows_of(file)]


def text_of(row: dict[str, Any]) -> str:
    return "\n".join(turn["content"] for turn in row["prompt"])


def similarity(texts: Sequence[str], others: Sequence[str]) -> np.ndarray:
    """The larger of two Jaccard indices, of five-character shingles and of words: 0 nothing shared, 1 all of it.

    A row for each text, a column for each of the others; blind to case, punctuation and white space.
    """
    texts, others = ([" ".join(re.findall(r"[^\W_]+", text.casefold())) for text in some] for some in (texts, others))
    by_words = jaccard([set(text.split()) for text in texts], [set(text.split()) for text in others])
    return np.maximum(by_words, jaccard([shingles(text) for text in texts], [shingles(text) for text in others]))


def shingles(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(max(1, len(text) - 4))}


def jaccard(sets: Sequence[set[str]], others: Sequence[set[str]]) -> np.ndarray:
    """Size of the intersection over that of the union, by a product of incidence matrices: pair by pair takes long."""
    column = {item: number for number, item in enumerate(sorted(set().union(*sets, *others)))}

    def incidence(some: Sequence[set[str]]) -> np.ndarray:
        matrix = np.zeros((len(some), len(column)), dtype=np.float32)
        for row, items in zip(matrix, some, strict=True):
            row[[column[item] for item in items]] = 1
        return matrix

    a, b = incidence(sets), incidence(others)
    shared = (a @ b.T).astype(np.float64)  # whole numbers below 2**24: exact
    return shared / (a.sum(axis=1, dtype=np.float64)[:, None] + b.sum(axis=1, dtype=np.float64) - shared)


def pairs_alike(ids: Sequence[str], texts: Sequence[str]) -> list[tuple[str, str]]:
    above = np.argwhere(np.triu(similarity(texts, texts), k=1) > TOO_SIMILAR)
    return [(ids[i], ids[k]) for i, k in above]


# --- the rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES)
def test_enough_prompts_in_balanced_categories(file: str) -> None:
    counts = Counter(row["category"] for row in rows_of(file))
    assert counts.total() >= 220
    assert len(counts) >= 12
    assert min(counts.values()) >= 12, counts
    assert max(counts.values()) <= 25, counts


@pytest.mark.parametrize("file", FILES)
def test_every_row_says_what_it_is(file: str) -> None:
    for row in rows_of(file):
        assert set(row) - {"answer"} == {"id", "prompt", "category", "objective", "kind"}, row["id"]
        assert row["kind"] == FILES[file]
        assert row["objective"] == OBJECTIVES[row["kind"]]
        assert re.fullmatch(rf"{row['kind']}-{row['category']}-\d{{3}}", row["id"]), row["id"]
        assert ("answer" in row) == (row["category"] == "reasoning"), row["id"]
        for turn in row["prompt"]:
            assert set(turn) == {"role", "content"}
            assert turn["content"] == turn["content"].strip()
            assert turn["content"]


@pytest.mark.parametrize("file", FILES)
def test_numbers_within_a_category_have_no_gap(file: str) -> None:
    in_order = [row["id"] for row in rows_of(file)]
    counts = Counter(row["category"] for row in rows_of(file))
    assert in_order == [f"{FILES[file]}-{name}-{n:03d}" for name, count in counts.items() for n in range(1, count + 1)]


def test_the_loader_keeps_every_row_as_it_is() -> None:
    loaded = load_prompts([Source(source=str(FOLDER / file)) for file in FILES], [])
    counts = loaded.counts()
    assert counts["read"] == counts["kept"] == len(all_rows())
    assert (counts["set_aside"], counts["left_out"], counts["repaired"]) == ({}, {}, {})
    assert [row.messages for row in loaded.rows] == [row["prompt"] for row in all_rows()]
    assert [row.objective for row in loaded.rows] == [row["objective"] for row in all_rows()]
    assert all(row.facts == {} for row in loaded.rows)  # facts are the gold world's


def test_a_seventh_of_the_helpful_requests_are_conversations() -> None:
    rows = rows_of("helpful.jsonl")
    assert sum(turns_of_user(row) > 1 for row in rows) / len(rows) > 1 / 7


@pytest.mark.parametrize("name", CONTACTS)
def test_nobody_can_be_reached_through_a_prompt(name: str) -> None:
    assert [row["id"] for row in all_rows() if CONTACTS[name].search(text_of(row))] == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("e-mail address", "write to someone@example.org please"),
        ("web address", "see example.com for more"),
        ("telephone number", "ring +44 (0)20 7946 0000 or"),
        ("telephone number", "call 555-0100-22"),
    ],
)
def test_a_contact_is_recognised(name: str, text: str) -> None:
    assert CONTACTS[name].search(text)


# --- no two alike ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("Kill the lights!", "kill  THE lights", 1),
        ("a b c d e f", "f e d c b a", 1),  # the same words in another order
        # Eight words each, seven of them shared, so nine in all; of the characters less is shared.
        ("how do i kill a python process today", "today how do i kill a perl process", 7 / 9),
        ("abcdefgh", "abcdefghi", 4 / 5),  # four shingles, five, four of them shared
        ("abcdef", "abcdeg", 1 / 3),  # abcde is shared, bcdef and bcdeg are not; no word is
        ("one two", "six", 0),
    ],
)
def test_similarity_by_hand(a: str, b: str, expected: float) -> None:
    assert similarity([a, "another text"], [b])[0, 0] == expected


@pytest.mark.slow
def test_no_two_prompts_are_alike() -> None:
    rows = all_rows()
    assert len({row["id"] for row in rows}) == len(rows)
    assert pairs_alike([row["id"] for row in rows], [text_of(row) for row in rows]) == []


def test_a_near_copy_would_be_found() -> None:
    row = rows_of("safe_but_scary.jsonl")[7]
    assert pairs_alike(["row", "copy"], [text_of(row), text_of(row).replace("e", "E") + " Thanks!"]) == [
        ("row", "copy")
    ]


@pytest.mark.skipif(not XSTEST.is_file(), reason="needs xstest_prompts.csv in the folder LLM_RLHF_XSTEST")
def test_no_prompt_is_near_one_of_xstest() -> None:
    with XSTEST.open(encoding="utf-8", newline="") as file:
        theirs = [row["prompt"] for row in csv.DictReader(file)]
    ours = [turn["content"] for row in all_rows() for turn in row["prompt"]]
    assert len(theirs) == 450
    assert [(ours[i], theirs[k]) for i, k in np.argwhere(similarity(ours, theirs) > TOO_SIMILAR)] == []


# --- the README -----------------------------------------------------------------------------------------------------


def turns_of_user(row: dict[str, Any]) -> int:
    return sum(turn["role"] == "user" for turn in row["prompt"])


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every Markdown table, without its head."""
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", text)
    return [
        [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in block.splitlines()[2:]] for block in blocks
    ]


def test_the_readme_counts_what_is_there() -> None:
    overview, *by_file = tables((FOLDER / "README.md").read_text(encoding="utf-8"))
    expected = []
    for file in FILES:
        rows = rows_of(file)
        counted = [
            len(rows),
            len({row["category"] for row in rows}),
            sum(turns_of_user(row) > 1 for row in rows),
            sum(row["prompt"][0]["role"] == "system" for row in rows),
            median(len(text_of(row).split()) for row in rows),
            max(len(text_of(row).split()) for row in rows),
        ]
        expected.append([file, *(f"{number:g}" for number in counted)])
    assert overview == expected
    assert len(by_file) == len(FILES)
    for file, table in zip(FILES, by_file, strict=True):
        counts = Counter(row["category"] for row in rows_of(file))
        assert [(name, int(count)) for name, count, _ in table] == list(counts.items())
