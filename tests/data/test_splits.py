import json
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from llm_rlhf.data.checks import normalised_prompt, opening, prompt_of, prompt_share
from llm_rlhf.data.rows import Demonstration, Preference, Prompt
from llm_rlhf.data.sources import load_preferences
from llm_rlhf.data.splits import Splits, divide_pairs, load_splits
from llm_rlhf.errors import DataError
from llm_rlhf.recipe.sections import DataSection, Source


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def talks(tmp_path: Path) -> str:
    """300 talks, each cut into a pair after its first turn and one after its second, as in HH-RLHF."""
    rows = []
    for i in range(300):
        first = f"\n\nHuman: What is {i}?\n\nAssistant: A number"
        rows.append({"chosen": first, "rejected": f"\n\nHuman: What is {i}?\n\nAssistant: Guess"})
        second = f"{first}\n\nHuman: Is it even?\n\nAssistant: "
        rows.append({"chosen": f"{second}Let me see", "rejected": f"{second}Who cares"})
    return write(tmp_path / "talks.jsonl", rows)


def section(path: str, **keys: object) -> DataSection:
    return DataSection(preferences=[Source(source=path)], **keys)  # type: ignore[arg-type]


def training_rows(splits: Splits) -> list[Preference | Demonstration | Prompt]:
    return [*splits.reward_pairs, *splits.heldout_pairs, *splits.demonstrations, *splits.prompts]


def openings(rows: Iterable[Preference | Demonstration | Prompt]) -> set[str]:
    """The normalised first user turns of some rows."""
    return {normalised_prompt(opening(prompt_of(row))) for row in rows}


def test_no_talk_straddles_training_and_evaluation(talks: str) -> None:
    splits, set_aside = load_splits(section(talks, evaluation_share=0.2, heldout_share=0.5))
    assert set_aside == []
    held = openings([*splits.evaluation_pairs, *splits.evaluation_prompts])
    assert openings(training_rows(splits)).isdisjoint(held)
    assert openings(splits.reward_pairs).isdisjoint(openings(splits.heldout_pairs))
    # Both rows of a talk are on one side; by the whole prompt about a third of the talks would be torn apart.
    assert len(splits.evaluation_pairs) == 2 * len(held)


def test_shares_are_met_and_every_pair_is_somewhere(talks: str) -> None:
    splits, _ = load_splits(section(talks, evaluation_share=0.2, heldout_share=0.25))
    sizes = splits.counts["splits"]
    assert sizes["reward_pairs"] + sizes["heldout_pairs"] + sizes["evaluation_pairs"] == 600
    # Of 300 talks 60, 60 and 180 are expected, with standard deviations of 7, 7 and 8.5; four of them are allowed.
    assert abs(sizes["evaluation_pairs"] / 2 - 60) < 28
    assert abs(sizes["heldout_pairs"] / 2 - 60) < 28
    assert abs(sizes["reward_pairs"] / 2 - 180) < 34
    assert splits.counts["preferences"]["read"] == 600
    assert sizes["demonstrations"] == sizes["reward_pairs"] + sizes["heldout_pairs"]
    assert splits.counts["leaks_removed"] == {"reward_pairs": 0, "heldout_pairs": 0, "demonstrations": 0, "prompts": 0}
    json.dumps(splits.counts)


def test_the_order_of_rows_does_not_matter(talks: str, tmp_path: Path) -> None:
    lines = Path(talks).read_text(encoding="utf-8").splitlines()
    turned = write(tmp_path / "turned.jsonl", [json.loads(line) for line in reversed(lines)])
    one, _ = load_splits(section(talks))
    other, _ = load_splits(section(turned))
    for name in ("reward_pairs", "heldout_pairs", "evaluation_pairs", "prompts"):
        keys = [sorted(normalised_prompt(prompt_of(r)) for r in getattr(s, name)) for s in (one, other)]
        assert keys[0] == keys[1], name


def test_borders_by_hand(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(500)]
    pairs = load_preferences([Source(source=write(tmp_path / "pairs.jsonl", rows))]).rows
    found = divide_pairs(pairs, evaluation_share=0.3, heldout_share=0.5)
    share = {pair.origin.row: prompt_share(opening(pair.prompt), "split") for pair in pairs}
    numbers = {name: {pair.origin.row for pair in of_split} for name, of_split in found.items()}
    assert numbers["evaluation_pairs"] == {row for row, s in share.items() if s < 0.3}
    assert numbers["heldout_pairs"] == {row for row, s in share.items() if 0.3 <= s < 0.65}
    assert numbers["reward_pairs"] == {row for row, s in share.items() if s >= 0.65}


def test_a_limited_source_still_reaches_every_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(1000)]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    splits, _ = load_splits(DataSection(preferences=[Source(source=pairs, limit=100)]))
    # The limit and the split use different hashes. With one hash these 100 pairs would all be for evaluation; so they
    # are 10, with a standard deviation of 3.
    assert 1 <= len(splits.evaluation_pairs) <= 22
    assert splits.counts["preferences"]["left_out"] == {"beyond the source's limit": 900}


def test_a_sample_of_evaluation_prompts_is_not_chosen_by_the_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(1000)]
    splits, _ = load_splits(section(write(tmp_path / "pairs.jsonl", rows), evaluation_share=0.2))
    shares = [prompt_share(prompt.messages) for prompt in splits.evaluation_prompts]
    assert max(shares) > 0.5  # under the split's own hash all are below 0.2, and come before any longer conversation


def test_given_evaluation_prompts_leave_training(talks: str, tmp_path: Path) -> None:
    asked = [{"prompt": f"what  is {i}?"} for i in range(50)]
    prompts = write(tmp_path / "prompts.jsonl", asked)
    demonstrations = write(
        tmp_path / "demonstrations.jsonl",
        [{"prompt": f"What is {i}?", "completion": "A number."} for i in range(40, 60)]
        + [{"prompt": f"Who are you, {i}?", "completion": "A model."} for i in range(10)],
    )
    splits, _ = load_splits(
        section(
            talks,
            evaluation_prompts=[Source(source=prompts)],
            demonstrations=[Source(source=demonstrations)],
            leaks="remove",
        )
    )
    assert len(splits.evaluation_prompts) == 50
    assert splits.evaluation_pairs  # still there for the reward model's accuracy
    held = openings([*splits.evaluation_prompts, *splits.evaluation_pairs])
    assert openings(training_rows(splits)).isdisjoint(held)
    leaks = splits.counts["leaks_removed"]
    assert leaks["demonstrations"] >= 10  # numbers 40 to 49, and those of 50 to 59 that fell to evaluation
    assert leaks["demonstrations"] == 30 - len(splits.demonstrations)
    pairs_held = 2 * len({str(i) for i in range(50)})  # two pairs a talk
    in_evaluation = sum(
        normalised_prompt(opening(p.prompt)) in openings(splits.evaluation_prompts) for p in splits.evaluation_pairs
    )
    assert leaks["reward_pairs"] + leaks["heldout_pairs"] == pairs_held - in_evaluation


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"evaluation_share": 0.0}, "data.evaluation_share"),  # evaluation prompts are to come from held-out pairs
        ({"evaluation_share": 1e-9}, "data.evaluation_share"),
        ({"evaluation_share": 0.999999999}, "data.evaluation_share"),
        ({"heldout_share": 0.999999999}, "data.heldout_share"),
        ({"heldout_share": 1e-9}, "data.heldout_share"),
    ],
)
def test_an_empty_split_names_the_key(talks: str, keys: dict[str, float], named: str) -> None:
    with pytest.raises(DataError, match=named):
        load_splits(section(talks, **keys))


def test_no_judge_and_no_held_out_pairs_where_nobody_asks(talks: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}])
    data = section(talks, evaluation_share=0.0, heldout_share=0.0, evaluation_prompts=[Source(source=prompts)])
    splits, _ = load_splits(data)
    assert [len(splits.reward_pairs), len(splits.heldout_pairs), len(splits.evaluation_pairs)] == [600, 0, 0]


def test_demonstrations_that_all_leak_are_an_error(talks: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}])
    told = write(tmp_path / "told.jsonl", [{"prompt": "who are you?", "completion": "A model."}])
    with pytest.raises(DataError, match=r"demonstrations is empty after 1 rows .* 'data\.demonstrations'"):
        load_splits(
            section(
                talks,
                evaluation_prompts=[Source(source=prompts)],
                demonstrations=[Source(source=told)],
                leaks="remove",
            )
        )


def test_no_preferences_at_all(tmp_path: Path) -> None:
    told = write(tmp_path / "told.jsonl", [{"prompt": "Who are you?", "completion": "A model."}])
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "What can you do?"}])
    data = DataSection(demonstrations=[Source(source=told)], prompts=[Source(source=asked)], evaluation_prompts=[])
    splits, _ = load_splits(data)
    assert [len(splits.demonstrations), len(splits.prompts), len(splits.evaluation_prompts)] == [1, 1, 0]
    with pytest.raises(DataError, match="preferences"):
        load_splits(DataSection(demonstrations=[Source(source=told)]))


def test_rows_set_aside_come_back_for_the_quarantine(talks: str) -> None:
    with Path(talks).open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    splits, set_aside = load_splits(section(talks))
    assert [(item.origin.row, item.reason) for item in set_aside] == [(601, "malformed JSON")]
    assert splits.counts["preferences"]["set_aside"] == {"malformed JSON": 1}


# --- evaluation named explicitly, leaks, duplicates, weights


@pytest.fixture
def named(tmp_path: Path) -> dict[str, str]:
    """20 pairs to train on; of the pairs to evaluate on one is the same but for case, one shares its opening alone."""
    pairs = [{"prompt": f"What is {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(20)]
    first = [{"role": "user", "content": "What is 7?"}, {"role": "assistant", "content": "Seven."}]
    tests = [
        {"prompt": "what is  3?", "chosen": "Three", "rejected": "Two"},
        {"prompt": [*first, {"role": "user", "content": "And 8?"}], "chosen": "Eight", "rejected": "Nine"},
        {"prompt": "Who are you?", "chosen": "A model", "rejected": "A king"},
    ]
    return {"pairs": write(tmp_path / "pairs.jsonl", pairs), "tests": write(tmp_path / "tests.jsonl", tests)}


def named_section(named: dict[str, str], **keys: object) -> DataSection:
    return section(named["pairs"], evaluation_preferences=[Source(source=named["tests"])], heldout_share=0.0, **keys)


def test_named_evaluation_pairs_take_the_place_of_the_held_out_ones(named: dict[str, str]) -> None:
    splits, _ = load_splits(named_section(named, leaks="allow"))
    assert [pair.origin.source for pair in splits.evaluation_pairs] == [named["tests"]] * 3
    assert len(splits.reward_pairs) == 20  # nothing is held out of them
    both, _ = load_splits(named_section(named, leaks="allow", evaluation_share=0.5))
    assert len(both.evaluation_pairs) == 3 + (20 - len(both.reward_pairs))
    assert 0 < len(both.reward_pairs) < 20


def test_fault_52_a_leak_exact_or_normalised_is_an_error_unless_allowed(named: dict[str, str]) -> None:
    with pytest.raises(
        DataError, match=r"reward_pairs: 1 with the same prompt, 1 with the same first user turn"
    ) as error:
        load_splits(named_section(named))
    for part in (f"{named['pairs']}, row 4", f"{named['tests']}, row 1", "'data.leaks'", "'remove'", "'allow'"):
        assert part in str(error.value)

    removed, _ = load_splits(named_section(named, leaks="remove"))
    assert {pair.origin.row for pair in removed.reward_pairs} == set(range(1, 21)) - {4, 8}
    assert {row.origin.row for row in removed.demonstrations} == set(range(1, 21)) - {4, 8}
    assert removed.counts["leaks_removed"]["reward_pairs"] == 2

    allowed, _ = load_splits(named_section(named, leaks="allow"))
    assert len(allowed.reward_pairs) == 20
    assert allowed.counts["leaks"]["prompts"] == {"same prompt": 1, "same first user turn": 1}
    assert allowed.counts["leaks_removed"]["prompts"] == 0


def test_a_source_may_say_itself_what_becomes_of_its_leaks(named: dict[str, str], tmp_path: Path) -> None:
    more = write(tmp_path / "more.jsonl", [{"prompt": "Who are you?", "chosen": "A model", "rejected": "Guess"}])
    data = named_section(named, leaks="remove")
    data.preferences.append(Source(source=more, leaks="error"))
    with pytest.raises(DataError, match=r"\(reward_pairs: 1 with the same prompt; .*The first is .*more.jsonl, row 1"):
        load_splits(data)
    data.preferences[1].leaks = "allow"  # also as prompts that reuse the pairs
    splits, _ = load_splits(data)
    assert len(splits.reward_pairs) == 20 - 2 + 1
    assert [row.origin.source for row in splits.prompts][-1] == more
    data.leaks, data.preferences[0].leaks, data.preferences[1].leaks = "error", "remove", "remove"
    splits, _ = load_splits(data)
    assert (len(splits.reward_pairs), len(splits.prompts)) == (18, 18)


def test_fault_52_named_evaluation_prompts_leak_as_well(named: dict[str, str]) -> None:
    data = section(named["pairs"], evaluation_share=0.0, evaluation_prompts=[Source(source=named["tests"])])
    with pytest.raises(DataError, match="ask what a source of evaluation asks"):
        load_splits(data)


def test_fault_52_similar_openings_leak_where_a_threshold_is_given(
    named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def near_matches(training: list[str], evaluation: list[str], threshold: float) -> list[types.SimpleNamespace]:
        assert (threshold, evaluation) == (0.8, ["what is  3?", "What is 7?", "Who are you?"])
        return [types.SimpleNamespace(first=training.index("What is 5?"), second=2)]

    monkeypatch.setattr("llm_rlhf.data.splits.near_matches", near_matches)
    splits, _ = load_splits(named_section(named, leaks="remove", near_duplicates=0.8))
    assert {pair.origin.row for pair in splits.reward_pairs} == set(range(1, 21)) - {4, 6, 8}
    assert splits.counts["leaks"]["reward_pairs"]["similar first user turn"] == 1


def test_fault_51_duplicates_in_training_are_counted_and_removed_only_if_asked(tmp_path: Path) -> None:
    row = {"prompt": "What is 1?", "chosen": "A number", "rejected": "Guess"}
    other = {**row, "rejected": "No idea"}  # another pair, but the same demonstration
    path = write(tmp_path / "pairs.jsonl", [row, row, other, {**row, "prompt": "What is 2?"}])
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}])
    keys = {"evaluation_share": 0.0, "heldout_share": 0.0, "evaluation_prompts": [Source(source=prompts)]}
    kept, _ = load_splits(section(path, **keys))
    counted = {"reward_pairs": 1, "heldout_pairs": 0, "demonstrations": 2, "prompts": 0}
    assert kept.counts["duplicates"] == counted
    assert (len(kept.reward_pairs), len(kept.demonstrations)) == (4, 4)
    removed, _ = load_splits(section(path, duplicates="remove", **keys))
    assert removed.counts["duplicates_removed"] == counted
    assert [pair.origin.row for pair in removed.reward_pairs] == [1, 3, 4]
    assert [row.origin.row for row in removed.demonstrations] == [1, 4]


def test_weights_thin_out_or_repeat_training_rows_and_nothing_else(tmp_path: Path) -> None:
    files = {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"What is {name} {i}?", "chosen": "A number", "rejected": "Guess"} for i in range(400)],
        )
        for name in ("thin", "plain", "thick")
    }
    weights = {"thin": 0.25, "plain": 1.0, "thick": 2.5}
    sources = [Source(source=files[name], weight=weight) for name, weight in weights.items()]
    splits, _ = load_splits(DataSection(preferences=sources, evaluation_share=0.5, heldout_share=0.0))
    plain, _ = load_splits(
        DataSection(
            preferences=[Source(source=path) for path in files.values()], evaluation_share=0.5, heldout_share=0.0
        )
    )
    assert list(splits.evaluation_pairs) == list(plain.evaluation_pairs)
    assert list(splits.prompts) == list(plain.prompts)  # `from: preferences` has a weight of its own
    for name, weight in weights.items():
        before = [pair.origin.row for pair in plain.reward_pairs if pair.origin.source == files[name]]
        after = [pair.origin.row for pair in splits.reward_pairs if pair.origin.source == files[name]]
        # Of 200 rows a share of a quarter or a half has a standard deviation of 7 at most; five of them are allowed.
        assert abs(len(after) - weight * len(before)) < 35
        assert {after.count(row) for row in before} <= {int(weight), int(weight) + (weight % 1 > 0)}
    counts = splits.counts["weights"]["reward_pairs"]
    assert len(splits.reward_pairs) == len(plain.reward_pairs) - counts["left_out"] + counts["repeats"]


def test_rows_are_chosen_without_decoding_them_and_read_like_a_list(talks: str, tmp_path: Path) -> None:
    other = write(tmp_path / "more.jsonl", [{"prompt": "Who?", "chosen": "I", "rejected": "You"}] * 3)
    rows = load_preferences([Source(source=talks), Source(source=other)]).rows
    listed = list(rows)
    assert len(rows) == len(listed) == 603
    assert [rows[0], rows[599], rows[600], rows[-1]] == [listed[0], listed[599], listed[600], listed[602]]
    assert list(rows[598:602]) == listed[598:602]
    chosen = np.array([602, 5, 5, 601, 0])
    assert list(rows.select(chosen)) == [listed[i] for i in chosen]
    assert list(rows.select(np.arange(603) % 100 == 1)) == listed[1::100]
    assert list(rows.select(np.zeros(0, int))) == []
    with pytest.raises(IndexError):
        rows[603]
