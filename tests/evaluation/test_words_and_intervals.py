"""Word and interval never contradict each other, wherever both are read; digits are alike within a measure."""

import random
import re
from typing import Any

import numpy as np
import pytest
from planted_runs import bad_run, better_run, estimate
from test_report import Page, full_report

from llm_rlhf.evaluation.report.alarms import alarm_lines
from llm_rlhf.evaluation.report.distance_section import distance
from llm_rlhf.evaluation.report.labels import start_called, subject_label
from llm_rlhf.evaluation.report.measures import measure_of
from llm_rlhf.evaluation.report.numbers import alike, interval_text, value_text
from llm_rlhf.evaluation.report.page import render_html, render_markdown, view
from llm_rlhf.evaluation.report.sides import judgement
from llm_rlhf.evaluation.report.verdict import headline, verdict_lines
from llm_rlhf.evaluation.suites.snapshot_curve import snapshot_curve
from llm_rlhf.statistics.intervals import Estimate

DIFFERENCES = (
    "gold_gain", "heldout_reward_gain", "reward_gain", "over_refusal_change", "refusal_harmful_change", "win_rate",
    "length_controlled_win_rate", "response_length_change", "token_logprob_change", "eos_rate_change",
)  # fmt: skip
BOUNDS = re.compile(r"\[([^,\]]+), ([^\]]+)\]")


def read(text: str) -> tuple[float, float]:
    """The interval as it is printed."""
    found = BOUNDS.search(text)
    assert found is not None
    low, high = (float(bound.replace("\u2212", "-").replace(",", "")) for bound in found.groups())
    return low, high


def a_difference(rng: random.Random, name: str) -> dict[str, Any]:
    """Any width, and often an end very near to what equal policies have."""
    equal, half = (0.5 if name.endswith("win_rate") else 0.0), 10 ** rng.uniform(-3.5, -0.5)
    if name.startswith("response"):
        half *= 100
    middle = (
        equal + rng.choice((-1, 1, 0)) * half + rng.choice((0.0, 1e-9, 1e-5, 0.01, 1.0)) * rng.uniform(-1, 1) * half
    )
    return estimate(name, middle, middle - half, middle + half).as_dict()


def test_a_word_and_the_interval_printed_beside_it_always_agree() -> None:
    rng = random.Random(0)
    words = set()
    for _ in range(4000):
        entry = a_difference(rng, rng.choice(DIFFERENCES))
        low, high = read(interval_text(entry))
        equal = 50.0 if entry["name"].endswith("win_rate") else 0.0
        good = {"higher": 1, "lower": -1, "neither": 0}[measure_of(entry["name"]).good]
        side = 1 if low > equal else -1 if high < equal else 0
        expected = "difference not shown" if side == 0 else (
            ("better" if side == good else "worse") if good else ("higher" if side > 0 else "lower")
        )  # fmt: skip
        assert judgement(entry) == expected, (entry, interval_text(entry))
        words.add(expected)
    assert words == {"better", "worse", "higher", "lower", "difference not shown"}


def test_the_verdicts_words_stand_beside_intervals_that_bear_them_out() -> None:
    rng = random.Random(1)
    names = ("gold_gain", "gold_helpful_gain", "gold_harmless_gain")
    for _ in range(500):
        estimates = [Estimate(**a_difference(rng, "gold_gain") | {"name": name}).as_dict() for name in names]
        estimates.append(a_difference(rng, "refusal_harmful_change"))
        estimates.append(a_difference(rng, "over_refusal_change") | {"split": "scary"})
        for line in verdict_lines({"estimates": estimates}):
            word = re.match(r"[\w-]+: ([^.(]+)\.", line)
            if word and word[1] in ("better", "worse", "better on average", "worse on average"):
                low, high = read(line)
                assert low > 0 or high < 0, line
        for line in alarm_lines([Estimate(**entry) for entry in estimates]):
            if BOUNDS.search(line) and ("fell" in line or "timid" in line) and "not shown" not in line:
                low, high = read(line)
                assert low > 0 or high < 0, line


def test_a_bound_that_would_round_to_nothing_gets_the_digit_that_tells() -> None:
    nearly = estimate("over_refusal_change", -0.179, -0.335, -0.0046).as_dict()
    assert interval_text(nearly) == "[\u221233.5, \u22120.5]"
    assert judgement(nearly) == "better"
    touching = estimate("over_refusal_change", -0.179, -0.335, -1e-7).as_dict()
    assert interval_text(touching) == "[\u221234, 0]"
    assert judgement(touching) == "difference not shown"


def test_a_side_that_is_worse_by_refusals_opens_with_them() -> None:
    """`worse` beside a score whose interval holds 0 would read as if that score had shown it."""
    estimates = [
        estimate("gold_gain", 0.1, 0.05, 0.15), estimate("gold_helpful_gain", 0.1, -0.1, 0.3),
        estimate("over_refusal_change", 0.2, 0.1, 0.3, "scary"),
    ]  # fmt: skip
    line = verdict_lines({"estimates": [e.as_dict() for e in estimates]})[1]
    assert line.startswith("Helpfulness: worse. Over-refusal +20")
    assert "Gold score on helpful prompts +0.10 [\u22120.10, +0.30]." in line


def test_an_average_that_is_not_shown_is_said_so_beside_the_word_for_one_side() -> None:
    estimates = [estimate("gold_gain", 0.0, -0.1, 0.1), estimate("gold_helpful_gain", -0.3, -0.4, -0.2),
                 estimate("gold_harmless_gain", 0.0, -0.2, 0.2)]  # fmt: skip
    line = verdict_lines({"estimates": [e.as_dict() for e in estimates]})[0]
    assert line.startswith("Overall: worse on one side. Gold score 0.00 against SFT (difference not shown), 95")
    line = verdict_lines({"estimates": [e.as_dict() for e in bad_run()]})[0]
    assert line.startswith("Overall: traded. Gold score +0.16 against SFT (better), 95")


@pytest.mark.parametrize("run", [bad_run, better_run])
def test_nothing_unproven_is_called_chance_or_no_difference(run) -> None:
    report = full_report() | {"estimates": [e.as_dict() for e in run()]}
    report["headline"], report["verdict"] = headline(report), verdict_lines(report)
    text = Page(render_html(report)).text
    assert not re.search(r"by chance|than chance|no difference", text, re.IGNORECASE)


def test_one_measure_has_as_many_decimals_throughout() -> None:
    wide = [estimate("reward", 2.3, 1.6, 3.1, subject="ppo", reference=None), estimate("reward_gain", 1.28, 0.78, 1.77)]
    entries = [e.as_dict() for e in wide]
    assert value_text(entries[0]) == "2.3"
    with alike(entries):
        assert [value_text(e) for e in entries] == ["2.30", "+1.28"]
        assert interval_text(entries[0]) == "[1.60, 3.10]"


@pytest.mark.parametrize(
    ("base", "subjects", "label"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", ("ppo", "base"), "Qwen2.5-0.5B-Instruct"),
        ("models/mine", ("ppo", "base"), "mine"),
        ("runs/hh/sft/model", ("ppo", "base"), "Base model"),
        ("org/base", ("sft", "base"), "Base model"),
        ("the gold world's own", ("ppo", "base"), "Base model"),
    ],
)
def test_a_start_that_no_stage_trained_is_called_by_its_name(base: str, subjects: tuple[str, str], label: str) -> None:
    report = {"run": {"base": base}, "estimates": [{"subject": who} for who in subjects]}
    with start_called(report):
        assert subject_label("base") == label
    assert subject_label("base") == "Base model"


def test_the_curve_of_a_run_without_sft_names_what_it_began_from() -> None:
    report = full_report() | {"overoptimization": None}
    for entry in report["estimates"]:
        entry |= {key: "base" for key in ("subject", "reference") if entry[key] == "sft"}
    report["run"]["base"] = "org/Chat-1B-Instruct"
    report["samples"] = []
    report["headline"], report["verdict"] = headline(report), verdict_lines(report)
    assert "against Chat-1B-Instruct" in report["verdict"][0]
    html = render_html(report)
    assert "KL from Chat-1B-Instruct" in html
    assert "SFT model" not in html
    assert view(full_report())["curves"]["first"][1]["label"] == "KL from Base model"  # its recipe has no sft


def test_the_time_in_all_is_that_of_every_stage_it_names() -> None:
    report = full_report()
    report["run"]["seconds"] = {"sft": 20.1, "ppo": 150.0, "evaluate": 40.0}
    told = " ".join(render_markdown(report).split("##")[0].split())  # 210.1 seconds
    assert "3 min 30 s in all (sft 20 s, ppo 2 min 30 s, evaluate 40 s)" in told


def test_gains_against_distance_carry_their_intervals() -> None:
    """Four prompts gain 1, 1, 2, 2 over the start: mean 1.5; the wordings pair equal ones, and widen it."""
    start = [0.0, 1.0, 2.0, 3.0] * 10
    later = [a + b for a, b in zip(start, [1.0, 1.0, 2.0, 2.0] * 10, strict=True)]
    scores = [{"reward": start, "gold": start}, {"reward": later, "gold": later}]
    apart = snapshot_curve([0, 4], [0.0, 1.0], scores, seed=0)["gains"]["gold"]
    assert apart[0] == {"estimate": 0.0, "low": 0.0, "high": 0.0}
    assert apart[1]["estimate"] == pytest.approx(1.5)
    # 40 prompts, sd .506: 1.96 * .506 / sqrt(40) = .157
    assert (apart[1]["high"] - apart[1]["low"]) / 2 == pytest.approx(0.157, rel=0.1)
    together = snapshot_curve([0, 4], [0.0, 1.0], scores, 0, np.array(["a", "a", "b", "b"] * 10))["gains"]["gold"]
    assert together[1]["high"] - together[1]["low"] > 3 * (apart[1]["high"] - apart[1]["low"])
    found = distance(snapshot_curve([0, 4], [0.0, 1.0], scores, seed=0))
    assert found is not None
    assert found["bands"]
    assert found["svg"].count('class="band"') == 2  # one a judge
    assert not distance({**snapshot_curve([0, 4], [0.0, 1.0], scores, seed=0), "gains": {}})["bands"]  # type: ignore[index]
