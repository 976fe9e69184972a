"""Near-duplicates: the similarity by hand, what is found of planted ones, and that nothing else is."""

import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_rlhf.data.near_duplicates import (
    NearPair,
    _chunks,
    _hashed_shingles,
    comparable,
    jaccard,
    near_matches,
    near_pairs,
    shingles,
)

LONG = "how do i get the red wine out of a white wool carpet without calling a cleaner"


def similarity(first: str, second: str) -> float:
    return jaccard(shingles(comparable(first)), shingles(comparable(second)))


def test_the_shingles_and_the_similarity_by_hand() -> None:
    # " abcdef " has the 5-grams " abcd", "abcde", "bcdef", "cdef "; " abcdeg " shares the first two.
    assert shingles(" abcdef ") == {" abcd", "abcde", "bcdef", "cdef "}
    assert similarity("abcdef", "abcdeg") == 2 / 6
    assert similarity("abcdef", "abcdef?") == 1.0  # the mark at the end says nothing
    assert similarity("2 + 2 is", "2 - 2 is") < 0.5  # marks inside may say everything


def test_one_letter_in_a_long_text_is_near_and_in_a_short_one_is_not() -> None:
    # LONG has 78 characters, 76 shingles with its spaces, all different; one letter changed is in 5 of them: 71 / 81.
    changed = LONG.replace("wool", "pool")
    assert near_pairs([LONG, changed]) == [NearPair(0, 1, 71 / 81)]
    assert near_pairs(["stain", "strain"], threshold=0.5) == []


@pytest.mark.parametrize("texts", [["hi", "ok", "no", "yes", "a", "b", "", "?", "it"], ["", "", "a"][1:], [], ["a"]])
def test_very_short_texts_do_not_match_each_other(texts: list[str]) -> None:
    found = near_pairs(texts)
    assert all(comparable(texts[a]) == comparable(texts[b]) for a, b, _ in found)
    assert len(found) <= 1  # "" and "?" are alike: nothing


def test_two_sides() -> None:
    training = ["something else altogether", LONG, LONG + " please"]
    evaluation = ["no match for this one at all", LONG.replace("wool", "pool")]
    found = near_matches(training, evaluation)
    # " please" adds 7 shingles: 71 / (83 + 76 - 71)
    assert found == [NearPair(1, 1, 71 / 81), NearPair(2, 1, 71 / 88)]
    assert near_matches(training, []) == near_matches([], evaluation) == []


def _sentence(draw: random.Random, words: int) -> str:
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=draw.randint(2, 9))) for _ in range(words))


def test_planted_near_duplicates_are_found_and_nothing_else() -> None:
    """100 of 500 random texts get a near-duplicate: one word of twelve to forty exchanged."""
    draw = random.Random(1)
    texts = [_sentence(draw, draw.randint(12, 40)) for _ in range(500)]
    planted = []
    for place in draw.sample(range(500), 100):
        words = texts[place].split()
        words[draw.randrange(len(words))] = _sentence(draw, 1)
        planted.append(" ".join(words))
    sets, planted_sets = ([shingles(comparable(text)) for text in side] for side in (texts, planted))
    expected = {
        (a, 500 + b)
        for b, of_planted in enumerate(planted_sets)
        for a in range(500)
        if jaccard(sets[a], of_planted) >= 0.8
    }
    assert len(expected) > 75  # else the test would show nothing
    found = {(pair.first, pair.second) for pair in near_pairs(texts + planted)}
    assert found == expected  # 1 in 3,000 may be missed at 0.8, fewer above: none here, and the seeds are fixed


def test_many_fillings_of_one_template_on_both_sides_are_one_match_each() -> None:
    training = [f"{LONG}, and please answer in the style of number {n}" for n in range(100)]
    evaluation = [f"{LONG}, and please answer in the style of number {n}" for n in range(100, 200)]
    found = near_matches([*training, "something else altogether"], evaluation)
    assert [pair.first for pair in found] == list(range(100))
    assert all(pair.similarity == similarity(training[pair.first], evaluation[pair.second]) for pair in found)


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(2)
    texts = [_sentence(draw, 20) for _ in range(50)]
    texts += [text + " again" for text in texts[:10]]
    whole = near_pairs(texts)
    assert len(whole) == 10
    backwards = near_pairs(texts[::-1])
    assert {(59 - b, 59 - a) for a, b, _ in backwards} == {(a, b) for a, b, _ in whole}
    monkeypatch.setattr("llm_rlhf.data.near_duplicates._CHUNK", 100)
    assert near_pairs(texts) == whole


def test_a_template_filled_in_makes_few_comparisons_and_loses_no_text() -> None:
    texts = [f"{LONG}, and please answer in the style of number {n}" for n in range(200)]
    found = near_pairs(texts)
    assert {place for pair in found for place in pair[:2]} == set(range(200))
    assert len(found) < 200  # each pair names a text that no other pair has named


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=12), st.floats(0.1, 1.0))
def test_no_false_positives_whatever_the_text(texts: list[str], threshold: float) -> None:
    pairs = near_pairs(texts, threshold)
    assert pairs == sorted(set(pairs))
    for first, second, score in pairs:
        assert first < second
        assert score == similarity(texts[first], texts[second]) >= threshold
    written = [comparable(text) for text in texts]
    repeated = {place for place, text in enumerate(written) if written.count(text) > 1}
    assert repeated <= {place for first, second, _ in pairs for place in (first, second)}


def test_hashes_are_of_whole_shingles_only() -> None:
    texts = [comparable(text) for text in ("abcdef", "", "abcdefg \U0001f600")]
    assert list(_chunks([" abcdef "])) == [(0, [" abcdef "])]
    hashes, offsets = _hashed_shingles(texts)
    counts = [len(text) - 4 for text in texts]
    assert np.diff(offsets.astype(int)).tolist() == counts
    assert hashes[:3].tolist() == hashes[5:8].tolist()  # " abcd", "abcde", "bcdef"
    assert len(set(hashes.tolist())) == len({text[i : i + 5] for text in texts for i in range(len(text) - 4)})
