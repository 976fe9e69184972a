import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from llm_rlhf.data.checks import DataError, normalised_prompt, opening, openings, prompt_of, prompt_share
from llm_rlhf.data.rows import Origin, Preference
from llm_rlhf.data.splits import Splits, divide_pairs, load_splits
from llm_rlhf.recipe import DataSection, Source


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


def training_rows(splits: Splits) -> list[object]:
    return [*splits.reward_pairs, *splits.judge_pairs, *splits.demonstrations, *splits.prompts]


def test_no_talk_straddles_training_and_evaluation(talks: str) -> None:
    splits, set_aside = load_splits(section(talks, held_out=0.2, judge_share=0.5))
    assert set_aside == []
    held = openings([*splits.evaluation_pairs, *splits.evaluation_prompts])
    assert openings(training_rows(splits)).isdisjoint(held)  # type: ignore[arg-type]
    assert openings(splits.reward_pairs).isdisjoint(openings(splits.judge_pairs))
    # Both rows of a talk are on one side; by the whole prompt about a third of the talks would be torn apart.
    assert len(splits.evaluation_pairs) == 2 * len(held)


def test_shares_are_met_and_every_pair_is_somewhere(talks: str) -> None:
    splits, _ = load_splits(section(talks, held_out=0.2, judge_share=0.25))
    sizes = splits.counts["splits"]
    assert sizes["reward_pairs"] + sizes["judge_pairs"] + sizes["evaluation_pairs"] == 600
    # Of 300 talks 60, 60 and 180 are expected, with standard deviations of 7, 7 and 8.5; four of them are allowed.
    assert abs(sizes["evaluation_pairs"] / 2 - 60) < 28
    assert abs(sizes["judge_pairs"] / 2 - 60) < 28
    assert abs(sizes["reward_pairs"] / 2 - 180) < 34
    assert splits.counts["preferences"]["read"] == 600
    assert sizes["demonstrations"] == sizes["reward_pairs"] + sizes["judge_pairs"]
    assert splits.counts["leaks_removed"] == {"reward_pairs": 0, "judge_pairs": 0, "demonstrations": 0, "prompts": 0}
    json.dumps(splits.counts)


def test_the_order_of_rows_does_not_matter(talks: str, tmp_path: Path) -> None:
    lines = Path(talks).read_text(encoding="utf-8").splitlines()
    turned = write(tmp_path / "turned.jsonl", [json.loads(line) for line in reversed(lines)])
    one, _ = load_splits(section(talks))
    other, _ = load_splits(section(turned))
    for name in ("reward_pairs", "judge_pairs", "evaluation_pairs", "prompts"):
        keys = [sorted(normalised_prompt(prompt_of(r)) for r in getattr(s, name)) for s in (one, other)]
        assert keys[0] == keys[1], name


def test_borders_by_hand() -> None:
    pairs = [
        Preference([{"role": "user", "content": f"q{i}"}], "a", "b", "overall", Origin("x", i)) for i in range(500)
    ]
    reward, judge, evaluation = divide_pairs(pairs, held_out=0.3, judge_share=0.5)
    share = {pair.origin.row: prompt_share(opening(pair.prompt), "split") for pair in pairs}
    assert {p.origin.row for p in evaluation} == {row for row, s in share.items() if s < 0.3}
    assert {p.origin.row for p in judge} == {row for row, s in share.items() if 0.3 <= s < 0.65}
    assert {p.origin.row for p in reward} == {row for row, s in share.items() if s >= 0.65}


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
    splits, _ = load_splits(section(write(tmp_path / "pairs.jsonl", rows), held_out=0.2))
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
        )
    )
    assert len(splits.evaluation_prompts) == 50
    assert splits.evaluation_pairs  # still there for the reward model's accuracy
    held = openings([*splits.evaluation_prompts, *splits.evaluation_pairs])
    assert openings(training_rows(splits)).isdisjoint(held)  # type: ignore[arg-type]
    leaks = splits.counts["leaks_removed"]
    assert leaks["demonstrations"] >= 10  # numbers 40 to 49, and those of 50 to 59 that fell to evaluation
    assert leaks["demonstrations"] == 30 - len(splits.demonstrations)
    pairs_held = 2 * len({str(i) for i in range(50)})  # two pairs a talk
    in_evaluation = sum(
        normalised_prompt(opening(p.prompt)) in openings(splits.evaluation_prompts) for p in splits.evaluation_pairs
    )
    assert leaks["reward_pairs"] + leaks["judge_pairs"] == pairs_held - in_evaluation


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"held_out": 0.0}, "data.held_out"),  # evaluation prompts are to come from held-out pairs
        ({"held_out": 1e-9}, "data.held_out"),
        ({"held_out": 0.999999999}, "data.held_out"),
        ({"judge_share": 0.999999999}, "data.judge_share"),
        ({"judge_share": 1e-9}, "data.judge_share"),
    ],
)
def test_an_empty_split_names_the_key(talks: str, keys: dict[str, float], named: str) -> None:
    with pytest.raises(DataError, match=named):
        load_splits(section(talks, **keys))


def test_no_judge_and_no_held_out_pairs_where_nobody_asks(talks: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}])
    data = section(talks, held_out=0.0, judge_share=0.0, evaluation_prompts=[Source(source=prompts)])
    splits, _ = load_splits(data)
    assert (len(splits.reward_pairs), splits.judge_pairs, splits.evaluation_pairs) == (600, [], [])


def test_demonstrations_that_all_leak_are_an_error(talks: str, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Who are you?"}])
    told = write(tmp_path / "told.jsonl", [{"prompt": "who are you?", "completion": "A model."}])
    with pytest.raises(DataError, match=r"demonstrations is empty after 1 rows .* 'data\.demonstrations'"):
        load_splits(section(talks, evaluation_prompts=[Source(source=prompts)], demonstrations=[Source(source=told)]))


def test_no_preferences_at_all(tmp_path: Path) -> None:
    told = write(tmp_path / "told.jsonl", [{"prompt": "Who are you?", "completion": "A model."}])
    asked = write(tmp_path / "asked.jsonl", [{"prompt": "What can you do?"}])
    data = DataSection(demonstrations=[Source(source=told)], prompts=[Source(source=asked)], evaluation_prompts=[])
    splits, _ = load_splits(data)
    assert (len(splits.demonstrations), len(splits.prompts), splits.evaluation_prompts) == (1, 1, [])
    with pytest.raises(DataError, match="preferences"):
        load_splits(DataSection(demonstrations=[Source(source=told)]))


def test_rows_set_aside_come_back_for_the_quarantine(talks: str) -> None:
    with Path(talks).open("a", encoding="utf-8") as file:
        file.write("{broken\n")
    splits, set_aside = load_splits(section(talks))
    assert [(item.origin.row, item.reason) for item in set_aside] == [(601, "malformed JSON")]
    assert splits.counts["preferences"]["set_aside"] == {"malformed JSON": 1}
