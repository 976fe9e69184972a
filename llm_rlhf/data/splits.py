"""Divides the rows of a recipe's data section among the stages, so that nothing evaluated on was trained on.

1. Every preference pair falls to evaluation, the held-out reward model or the one that PPO sees, by the hash of its
   first user turn.
   The first user turn, not the whole prompt: conversations are often cut into several rows, one a turn, and the prompt
   of one row then holds the reply that another is asked for. Rows with the same opening stay together. Where
   `evaluation_preferences` are named, these are evaluated on, and nothing is held out unless `evaluation_share` is set.
2. `from: preferences` gives training stages the pairs of the training side and evaluation those of the other. Ratings
   are trained on beside the pairs of the reward model: none opens as a pair of evaluation or of the held-out model.
3. A training row that asks what a named evaluation source asks is a leak, and an error unless `leaks` says otherwise.
   A row from elsewhere that shares its opening with the held-out pairs falls to neither side, and is counted.
4. Duplicates are counted, and weights applied, within each list to train on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from llm_rlhf.data.checks import SetAside, key_of, normalised_prompt, opening, prompt_of
from llm_rlhf.data.near_duplicates import near_matches
from llm_rlhf.data.rows import Demonstration, Preference, Prompt, Rating
from llm_rlhf.data.sources import Loaded, load_demonstrations, load_preferences, load_prompts, load_ratings, shares
from llm_rlhf.data.storage import Rows
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import DataSection

TRAINING = ("reward_pairs", "heldout_pairs", "ratings", "demonstrations", "prompts")


@dataclass
class Splits:
    """The rows each stage works on. A conversation's opening is on one side only: training or evaluation."""

    reward_pairs: Sequence[Preference]  # train the reward model
    heldout_pairs: Sequence[Preference]  # train the held-out reward model, which PPO never sees
    evaluation_pairs: Sequence[Preference]  # how often a reward model agrees with people
    demonstrations: Sequence[Demonstration]
    prompts: Sequence[Prompt]  # what PPO samples replies to
    evaluation_prompts: Sequence[Prompt]
    counts: dict[str, Any]  # plain values: rows read, kept and set aside by kind, sizes of splits, leaks, duplicates
    ratings: Sequence[Rating] = field(default_factory=Rows)  # train KTO's policy, beside the reward model's pairs


def load_splits(data: DataSection) -> tuple[Splits, list[SetAside]]:
    """Read all sources and divide them; also the rows set aside on the way, for the quarantine file.

    Raises:
        DataError: when a source cannot be used, a split that is asked for is empty, or training rows leak.
    """
    loaded: dict[str, Loaded[Any]] = {"preferences": load_preferences(data.preferences)}
    if data.evaluation_preferences:
        loaded["evaluation_preferences"] = load_preferences(data.evaluation_preferences)
    named_pairs = loaded["evaluation_preferences"].rows if data.evaluation_preferences else Rows()
    pairs = divide_pairs(loaded["preferences"].rows, data.share_for_evaluation, data.heldout_share)
    evaluation_pairs = pairs["evaluation_pairs"] + named_pairs
    training_pairs = pairs["reward_pairs"] + pairs["heldout_pairs"]
    _refuse_empty(data, {name: len(rows) for name, rows in (pairs | {"evaluation_pairs": evaluation_pairs}).items()})

    loaded["demonstrations"] = load_demonstrations(data.demonstrations, training_pairs)
    loaded["prompts"] = load_prompts(data.prompts, training_pairs)
    loaded["evaluation_prompts"] = load_prompts(data.evaluation_prompts, evaluation_pairs)
    evaluation_prompts = loaded["evaluation_prompts"].rows

    named_prompts = Rows(part for part in evaluation_prompts.parts if part.source.from_ is None)
    training: dict[str, Rows[Any]] = {
        "reward_pairs": pairs["reward_pairs"],
        "heldout_pairs": pairs["heldout_pairs"],
        "demonstrations": loaded["demonstrations"].rows,
        "prompts": loaded["prompts"].rows,
    }
    if data.ratings:
        loaded["ratings"] = load_ratings(data.ratings)
        training["ratings"] = loaded["ratings"].rows
    training, leaks = _without_leaks(data, training, pairs, [named_pairs, named_prompts])
    training, trained_on = _weighted(data, training)
    splits = Splits(**training, evaluation_pairs=evaluation_pairs, evaluation_prompts=evaluation_prompts, counts={})
    silent = {"counts"} if data.ratings else {"counts", "ratings"}
    splits.counts = {
        **{name: of_list.counts() for name, of_list in loaded.items()},
        "splits": {f.name: len(getattr(splits, f.name)) for f in fields(Splits) if f.name not in silent},
        **leaks,
        **trained_on,
    }
    _refuse_empty(data, splits.counts["splits"], leaks["leaks_removed"])
    return splits, [item for of_list in loaded.values() for item in of_list.set_aside]


def divide_pairs(pairs: Rows[Preference], evaluation_share: float, heldout_share: float) -> dict[str, Rows[Preference]]:
    """Pairs for the reward model, the held-out one and evaluation, by the share of their first user turn."""
    share = (pairs.column("opening") >> np.uint64(11)) / 2**53  # as checks.prompt_share
    return {name: pairs.select(mask) for name, mask in sides_of(share, evaluation_share, heldout_share).items()}


def sides_of(share: np.ndarray, evaluation_share: float, heldout_share: float) -> dict[str, np.ndarray]:
    """Which pairs are on which side, as masks (N,), by the shares of their first user turns, (N,) in [0, 1).

    Shares below `evaluation_share` are for evaluation; of the rest, the lower `heldout_share` for the held-out model.
    """
    held, judged = share < evaluation_share, share < evaluation_share + (1 - evaluation_share) * heldout_share
    return {"reward_pairs": ~judged, "heldout_pairs": judged & ~held, "evaluation_pairs": held}


def seen_in_training(splits: Splits, rows: Iterable[Preference | Prompt]) -> int:
    """How many rows open with a first user turn that rows to train on open with: there a policy may remember."""
    trained = np.concatenate([getattr(splits, name).column("opening") for name in TRAINING])
    keys = [key_of(normalised_prompt(opening(prompt_of(row))), "split") for row in rows]
    return int(np.isin(np.array(keys, np.uint64), trained).sum())


def _without_leaks(
    data: DataSection, training: dict[str, Rows[Any]], pairs: dict[str, Rows[Preference]], named: list[Rows[Any]]
) -> tuple[dict[str, Rows[Any]], dict[str, Any]]:
    """The lists to train on without what evaluation holds, and the counts.

    Raises:
        DataError: for a row that a named source of evaluation holds, where `leaks` of its source, or of the data, is
            "error".
    """
    held, heldout = (pairs[name].column("opening") for name in ("evaluation_pairs", "heldout_pairs"))
    openings, prompts = (np.concatenate([rows.column(name) for rows in named]) for name in ("opening", "prompt"))
    near = _near(data, training, named)
    kept, found, removed, first = {}, {}, {}, None
    refused: dict[str, dict[str, int]] = {}
    for name, rows in training.items():
        of_row = rows.column("opening")
        same = np.isin(rows.column("prompt"), prompts)
        leaked = {
            "same prompt": same,
            "same first user turn": np.isin(of_row, openings) & ~same,
            "similar first user turn": near[name] & ~np.isin(of_row, openings),
        }
        found[name] = {kind: int(mask.sum()) for kind, mask in leaked.items() if mask.any()}
        leak = np.logical_or.reduce(list(leaked.values()))
        rule = _rules(data, rows)
        refused[name] = {
            kind: int(count) for kind, mask in leaked.items() if (count := (mask & (rule == "error")).sum())
        }
        if refused[name] and first is None:
            first = rows[int(np.flatnonzero(leak & (rule == "error"))[0])]
        away = np.isin(of_row, held) | (leak & (rule != "allow"))
        if name == "ratings":
            away |= np.isin(of_row, heldout)
        removed[name] = int(away.sum())
        kept[name] = rows.select(~away) if away.any() else rows
    if first is not None:
        raise DataError(_leak_message(refused, first, named))
    counts: dict[str, Any] = {"leaks_removed": removed}
    if any(found.values()):
        counts["leaks"] = found
    return kept, counts


def _rules(data: DataSection, rows: Rows[Any]) -> np.ndarray:
    """What each row's source says of leaks: error, remove or allow."""
    rules = [np.full(len(part.lines), part.source.leaks or data.leaks, dtype="<U6") for part in rows.parts]
    return np.concatenate(rules) if rules else np.zeros(0, "<U6")


def _leak_message(found: dict[str, dict[str, int]], row: Any, named: list[Rows[Any]]) -> str:
    key = opening(prompt_of(row))
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{count} with the {kind}" for kind, count in kinds.items())
        for name, kinds in found.items()
        if kinds
    )
    twin = _twin(row, named)
    return (
        f"Rows to train on ask what a source of evaluation asks ({listed}). The first is {row.origin}, beside "
        f"{twin}: {key[0]['content'][:80]!r}. Take them out of the sources, or set 'data.leaks' to 'remove' (they are "
        "not trained on, and counted) or to 'allow'."
    )


def _twin(row: Any, named: list[Rows[Any]]) -> str:
    """Where in evaluation the opening of a row stands, or the source where it is only similar."""
    key = np.uint64(key_of(normalised_prompt(opening(prompt_of(row))), "split"))
    for rows in named:
        places = np.flatnonzero(rows.column("opening") == key)
        if len(places):
            return str(rows[int(places[0])].origin)
    return "a similar one"


def _near(data: DataSection, training: dict[str, Rows[Any]], named: list[Rows[Any]]) -> dict[str, np.ndarray]:
    """Which training rows open almost as a row of a named source of evaluation; none where nobody asked."""
    if data.near_duplicates is None or not any(len(rows) for rows in named):
        return {name: np.zeros(len(rows), bool) for name, rows in training.items()}
    texts = {name: _opening_texts([rows]) for name, rows in training.items()}
    distinct = list(dict.fromkeys(text for of_list in texts.values() for text in of_list))  # lists repeat each other
    similar = near_openings(distinct, _opening_texts(named), data.near_duplicates)
    near = {text for text, found in zip(distinct, similar, strict=True) if found}
    return {name: np.array([text in near for text in of_list], bool) for name, of_list in texts.items()}


def _opening_texts(lists: list[Rows[Any]]) -> list[str]:
    return [opening(prompt_of(row))[0]["content"] for rows in lists for row in rows]


def near_openings(training: Sequence[str], evaluation: Sequence[str], threshold: float) -> np.ndarray:
    """A mask over first user turns to train on: True where one is similar to one of evaluation.

    This is the one place where near-duplicates enter the splits.
    """
    near = np.zeros(len(training), bool)
    near[[pair.first for pair in near_matches(training, evaluation, threshold)]] = True
    return near


def _weighted(data: DataSection, training: dict[str, Rows[Any]]) -> tuple[dict[str, Rows[Any]], dict[str, Any]]:
    """The lists to train on with duplicates counted (and removed, if asked) and their sources' weights applied."""
    found: dict[str, Rows[Any]] = {}
    duplicates, weights = {}, {}
    for name, rows in training.items():
        keys = rows.column("imitated" if name == "demonstrations" else "content")
        first = np.zeros(len(rows), bool)
        first[np.unique(keys, return_index=True)[1]] = True
        duplicates[name] = int((~first).sum())
        if data.duplicates == "remove" and duplicates[name]:
            rows = rows.select(first)
        found[name] = rows
        if any(part.source.weight != 1 for part in rows.parts):
            times = _times(rows)
            found[name] = rows.select(np.concatenate([np.flatnonzero(times > i) for i in range(max(1, times.max()))]))
            weights[name] = {"left_out": int((times == 0).sum()), "repeats": int(np.maximum(times - 1, 0).sum())}
    counts: dict[str, Any] = {"duplicates_removed" if data.duplicates == "remove" else "duplicates": duplicates}
    return found, counts | ({"weights": weights} if weights else {})


def _times(rows: Rows[Any]) -> np.ndarray:
    """How often each row is to come: its source's weight, rounded down or up by a hash of the row."""
    weight = np.concatenate([np.full(len(part.lines), part.source.weight) for part in rows.parts])
    return (np.floor(weight) + (shares(rows, "weight") < weight % 1)).astype(int)


def _refuse_empty(data: DataSection, sizes: dict[str, int], leaks: dict[str, int] | None = None) -> None:
    """DataError for a split that the section asks for and that came out empty, with the key to change."""
    pairs_read = bool(data.preferences)
    reused = any(source.from_ == "preferences" for source in data.evaluation_prompts)
    evaluation_share = f"'data.evaluation_share' ({data.share_for_evaluation})"
    heldout_share = f"'data.heldout_share' ({data.heldout_share})"
    needed = {
        "evaluation_pairs": (pairs_read and (data.share_for_evaluation > 0 or reused), f"raise {evaluation_share}"),
        "reward_pairs": (pairs_read, f"lower {heldout_share} or {evaluation_share}"),
        "heldout_pairs": (
            pairs_read and data.heldout_share > 0,
            f"raise {heldout_share}, set it to 0, or lower {evaluation_share}",
        ),
        "ratings": (bool(data.ratings), "name another source in 'data.ratings'"),
        "demonstrations": (bool(data.demonstrations), "name another source in 'data.demonstrations'"),
        "prompts": (bool(data.prompts), "name another source in 'data.prompts'"),
        "evaluation_prompts": (bool(data.evaluation_prompts), "name another source in 'data.evaluation_prompts'"),
    }
    for name, (is_needed, remedy) in needed.items():
        if is_needed and sizes.get(name) == 0:
            leaked = (leaks or {}).get(name, 0)
            why = f" after {leaked} rows that share a first user turn with evaluation were removed" if leaked else ""
            raise DataError(f"The split {name} is empty{why}; {remedy}, or add rows to the sources.")
