"""Texts that are nearly the same: MinHash finds candidates, the exact Jaccard similarity of their shingles decides.

1. A text becomes the set of its character 5-grams, after `comparable` made case, width, white space and the final full
   stop or question mark alike. Characters rather than words, because prompts are short (HH-RLHF's have a dozen words,
   of which one changed letter would spoil every word 5-gram around it) and not every script puts spaces between words.
   In a text of under fifty characters one letter changed in the middle is already too much for a similarity of 0.8, so
   that short texts match only where they are the same; long unrelated texts share too few 5-grams to match.
2. Rensa computes MinHash signatures, a fixed number of bytes a text. Two texts that agree in all rows of one band of
   their signatures are candidates.
3. Candidates are compared by the sets themselves, so that nothing is reported that is less similar than asked for. What
   MinHash may miss: at a similarity of 0.8 one pair in 3,000 (25 bands of 5 rows), fewer above.

Sources: Broder 1997, On the resemblance and containment of documents; Leskovec et al., Mining of Massive Datasets, 3.4.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from llm_rlhf.data.checks import normalised_prompt

SHINGLE = 5  # characters
BANDS, BAND_ROWS = 25, 5
SEED = 0

_CHUNK = 500_000  # characters whose shingles are hashed at once: some 20 MB
_COMPARED = 32  # texts of a bucket that a text is compared with
_ESTIMATED = 20_000  # candidates whose signatures are compared at once: some 20 MB
_CERTAIN = 0.15  # candidates whose estimate is so far below the threshold, over four standard errors, are not compared
_END_MARKS = " .!?…。！？"

Array: TypeAlias = NDArray[np.uint64]
Signatures: TypeAlias = NDArray[np.uint32]
Progress = Callable[[int], None]


class NearPair(NamedTuple):
    """Two texts by their places in the lists that were given, and the Jaccard similarity of their shingles."""

    first: int
    second: int
    similarity: float


def near_pairs(texts: Sequence[str], threshold: float = 0.8, progress: Progress | None = None) -> list[NearPair]:
    """Pairs of `texts` with a similarity of at least `threshold`, `first` before `second`, in order.

    Not all of them: every text that is near another one stands in a pair, but two that stand in pairs already are not
    compared, so that ten thousand fillings of one template make ten thousand pairs and not fifty million. For the same
    reason a text is compared with 32 others of a bucket at most. Texts that are equal are near (similarity 1); pass
    distinct ones where those are counted elsewhere.

    Args:
        progress: called with the number of texts done since the last call.
    """
    if len(texts) < 2:
        return []
    texts = [comparable(text) for text in texts]
    signatures = _signatures(texts, progress)
    return _pairs(texts, texts, (signatures, signatures), threshold, one_list=True)


def near_matches(
    training: Sequence[str], evaluation: Sequence[str], threshold: float = 0.8, progress: Progress | None = None
) -> list[NearPair]:
    """For every text of `training` that is near one of `evaluation` one such pair: `first` in `training`.

    Otherwise as `near_pairs`.
    """
    if not training or not evaluation:
        return []
    training, evaluation = ([comparable(text) for text in texts] for texts in (training, evaluation))
    sides = _signatures(training, progress), _signatures(evaluation, progress)
    return _pairs(training, evaluation, sides, threshold, one_list=False)


def comparable(text: str) -> str:
    """The text whose shingles are compared: normalised, without the marks that end a sentence, a space at both ends."""
    normalised = normalised_prompt([{"role": "", "content": text}]).removeprefix(": ")
    return f" {normalised.strip(_END_MARKS)} ".ljust(SHINGLE)


def shingles(comparable_text: str) -> set[str]:
    """The character 5-grams of what `comparable` returns; of a very short text that is the text itself."""
    return {comparable_text[i : i + SHINGLE] for i in range(len(comparable_text) - SHINGLE + 1)}


def jaccard(first: set[str], second: set[str]) -> float:
    """Shared elements over all elements, between 0 and 1; neither set may be empty."""
    shared = len(first & second)
    return shared / (len(first) + len(second) - shared)


def shingle_vectors(texts: Sequence[str], dimensions: int = 256) -> NDArray[np.float32]:
    """Unit vectors of the texts' character 5-grams, hashed into so many places with a sign: (texts, dimensions).

    Their inner product is on average the cosine of the counts of shingles: what is alike is near, without a model.
    Source: Weinberger et al. 2009, Feature hashing for large scale multitask learning.
    """
    vectors = np.zeros((len(texts), dimensions), np.float32)
    if not texts:
        return vectors
    for start, chunk in _chunks([comparable(text) for text in texts]):
        hashes, offsets = _hashed_shingles(chunk)
        rows = np.repeat(np.arange(start, start + len(chunk)), (offsets[1:] - offsets[:-1]).astype(np.intp))
        signs = np.where(hashes >> np.uint64(63), 1, -1)
        np.add.at(vectors, (rows, (hashes % np.uint64(dimensions)).astype(np.intp)), signs)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)


def _pairs(
    first: Sequence[str], second: Sequence[str], sides: tuple[Signatures, Signatures], threshold: float, one_list: bool
) -> list[NearPair]:
    """Candidates, texts that share a bucket and do not look too different, of which the exact similarity is enough.

    A text that has been found in a pair is compared no more, but with texts that have not.

    Args:
        one_list: both sides are the same list: the first place comes before the second, and no text meets itself.
    """
    pairs: list[NearPair] = []
    paired = np.zeros(len(first), dtype=bool)
    refuted: set[tuple[int, int]] = set()
    for band in range(BANDS):
        first_keys, second_keys = (_bucket_keys(side, band) for side in sides)
        order = np.argsort(second_keys, kind="stable")
        begin, end = (np.searchsorted(second_keys[order], first_keys, side) for side in ("left", "right"))
        if one_list:
            begin[order] = np.arange(1, len(order) + 1)
        for step in range(_COMPARED):
            places = np.flatnonzero(begin + step < end)
            if not len(places):
                break
            others = order[begin[places] + step]
            open_ = ~paired[places] | ~paired[others] if one_list else ~paired[places]
            places, others = places[open_], others[open_]
            alike = _look_alike(*sides, places, others, threshold)
            for one, other in zip(places[alike].tolist(), others[alike].tolist(), strict=True):
                if (one, other) in refuted or (paired[one] and (not one_list or paired[other])):
                    continue
                similarity = jaccard(shingles(first[one]), shingles(second[other]))
                if similarity < threshold:
                    refuted.add((one, other))
                    continue
                pairs.append(NearPair(one, other, similarity))
                paired[one] = True
                if one_list:
                    paired[other] = True
    return sorted(pairs)


def _bucket_keys(signatures: Signatures, band: int) -> Array:
    """A hash of each text's rows of one band."""
    keys = np.zeros(len(signatures), dtype=np.uint64)
    for row in range(band * BAND_ROWS, (band + 1) * BAND_ROWS):
        keys = _mixed(keys, signatures[:, row])
    return keys


def _look_alike(
    first: Signatures, second: Signatures, places: NDArray[np.intp], others: NDArray[np.intp], threshold: float
) -> NDArray[np.bool_]:
    """Whether the share of equal rows, which estimates the similarity, comes near the threshold; in bounded memory."""
    alike = np.empty(len(places), dtype=bool)
    fewest = (threshold - _CERTAIN) * first.shape[1]
    for start in range(0, len(places), _ESTIMATED):
        part = slice(start, start + _ESTIMATED)
        alike[part] = np.count_nonzero(first[places[part]] == second[others[part]], axis=1) >= fewest
    return alike


def _signatures(texts: Sequence[str], progress: Progress | None) -> Signatures:
    """(texts, BANDS * BAND_ROWS): 500 bytes a text."""
    width = BANDS * BAND_ROWS
    signatures = np.empty((len(texts), width), dtype=np.uint32)
    for start, chunk in _chunks(texts):
        hashes, offsets = _hashed_shingles(chunk)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes, offsets, width, SEED)
        signatures[start : start + len(chunk)] = matrix.to_rows()
        if progress is not None:
            progress(len(chunk))
    return signatures


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of texts with about _CHUNK characters together (a longer text alone), each with the place of its first."""
    chunk: list[str] = []
    start = size = 0
    for place, text in enumerate(texts):
        if chunk and size + len(text) > _CHUNK:
            yield start, chunk
            chunk, start, size = [], place, 0
        chunk.append(text)
        size += len(text)
    yield start, chunk


def _hashed_shingles(texts: list[str]) -> tuple[Array, Array]:
    """A 64-bit hash of every shingle of the texts one after another, and where each text's begin and end.

    Equal shingles have equal hashes. Different ones could share a hash, which would only make a candidate of two texts.
    """
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    characters = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    windows = len(characters) - SHINGLE + 1
    hashes = np.zeros(windows, dtype=np.uint64)
    for step in range(SHINGLE):
        hashes = _mixed(hashes, characters[step : step + windows])
    ends = np.cumsum(lengths)
    whole = np.ones(windows, dtype=bool)  # windows that do not reach into the next text
    for step in range(1, SHINGLE):
        whole[ends[:-1] - step] = False
    return hashes[whole], np.r_[0, np.cumsum(lengths - SHINGLE + 1)].astype(np.uint64)


def _mixed(hashes: Array, values: NDArray[np.uint32]) -> Array:
    """The 64-bit hashes with one more value each hashed into them (multiply by the golden ratio, fold the top down)."""
    hashes = (hashes ^ values) * np.uint64(0x9E3779B97F4A7C15)
    return hashes ^ (hashes >> np.uint64(29))
