"""The report: what it refuses, what it concludes, and what its page may hold."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.numbers import (
    number,
    value_text,
)
from llm_rlhf.evaluation.report.page import cell, duration, fence, render_html, render_markdown
from llm_rlhf.evaluation.report.schema import check_report, json_schema, write_report
from llm_rlhf.evaluation.report.verdict import headline, judgement, verdict_lines
from llm_rlhf.evaluation.suites.best_of_n import best_of_n
from llm_rlhf.statistics.calibration import calibrate, ensemble_agreement
from llm_rlhf.statistics.intervals import Estimate

ATTACK = "<script>alert(1)</script>"


def entry(
    name: str,
    subject: str = "ppo",
    reference: str | None = None,
    split: str = "all",
    estimate: float = 0.5,
    low: float | None = 0.4,
    high: float | None = 0.6,
    n: int = 200,
) -> dict[str, Any]:
    return Estimate(name, subject, reference, split, estimate, low, high, n, "made up").as_dict()


def pair(name: str, change: str, before: float, after: float, split: str = "all", half: float = 0.1) -> list[Any]:
    difference = after - before
    return [
        entry(name, "sft", None, split, before, before - half, before + half),
        entry(name, "ppo", None, split, after, after - half, after + half),
        entry(change, "ppo", "sft", split, difference, difference - half, difference + half),
    ]


_MARGINS = np.array([[1.0, 2.0], [0.5, -0.4], [-1.0, 0.2], [3.0, 2.5], [-0.5, -0.1], [0.2, 0.9]] * 10)
_PROMPTS = [f"prompt {i}" for i in range(60)]
CALIBRATION = calibrate(_MARGINS.mean(1), _PROMPTS, resamples=100)
AGREEMENT = ensemble_agreement(_MARGINS, _PROMPTS, resamples=100)

_SCORES = np.random.default_rng(0).normal(size=(30, 4))
_BOUNDS = {"estimate": 2.0, "low": 1.5, "high": 2.0, "n": 64, "method": "made up"}
OVEROPTIMIZATION = {
    "points": [
        {"step": step, "kl": d * d, "sqrt_kl": d, "reward": d, "heldout": d - 0.3 * d * d, "gold": 0.5 * d}
        for step, d in enumerate((0.0, 0.5, 1.0, 1.5, 2.0))
    ],
    "prompts": 64,
    "fits": {"reward": {"form": "rl", "curve": [[0.0, 0.0], [2.0, 2.0]]}, "heldout": None, "gold": None},
    "parting": {"heldout": {"alarm": True, "distance": _BOUNDS, "message": f"They part. {ATTACK}"}},
    "best_of_n": best_of_n(
        {"reward": _SCORES, "heldout": _SCORES / 2, "gold": -_SCORES},
        {"reward": [9.0] * 30, "heldout": [0.0] * 30, "gold": [0.0] * 30},
    ),
}


def full_report() -> dict[str, Any]:
    estimates = [
        *pair("gold_score", "gold_gain", 0.1, 0.7),
        *pair("gold_helpful", "gold_helpful_gain", 0.2, 0.6),
        *pair("gold_harmless", "gold_harmless_gain", 0.0, 0.8),
        *pair("heldout_reward", "heldout_reward_gain", 0.1, 0.9),
        *pair("heldout_reward", "heldout_reward_gain", 0.1, 0.4, "helpful"),
        *pair("reward", "reward_gain", 0.1, 1.9),
        *pair("refusal_harmful", "refusal_harmful_change", 0.5, 0.9, half=0.05),
        *pair("over_refusal", "over_refusal_change", 0.20, 0.19, "scary", half=0.05),
        *pair("over_refusal", "over_refusal_change", 0.02, 0.03, "question", half=0.02),
        entry("win_rate", "ppo", "sft", "gold", 0.7, 0.64, 0.76),
        entry("reward_accuracy", "reward", estimate=0.72, low=0.68, high=0.76),
        entry("longer_reply_accuracy", "baseline", estimate=0.55, low=0.5, high=0.6),
        entry("chance_accuracy", "baseline", estimate=0.5, low=None, high=None),
        entry("kl", "ppo", "sft", estimate=5.2, low=5.0, high=5.4),
        entry("some_new_measure", estimate=3.25, low=3.0, high=3.5),
    ]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What does {ATTACK} do?"}]
    replies = {
        "sft": {"text": "", "scores": {"gold": -1.0, "heldout": None}},
        "ppo": {"text": f"It says 1. {ATTACK} \u202eمرحبا 🙂" + "x" * 5000, "scores": {"gold": 1.0, "heldout": 0.5}},
    }
    report: dict[str, Any] = {
        "schema": 2,
        "run": {
            "name": f"run {ATTACK}",
            "recipe": "recipes/quickstart.yaml",
            "seconds": {"sft": 20.1, "ppo": 150.0},
            "base": "tiny",
            "processes": 1,
            "device": "cpu",
        },
        "estimates": estimates,
        "reward_model": {"calibration": {"reward": CALIBRATION}, "agreement": AGREEMENT},
        "own": {},
        "overoptimization": OVEROPTIMIZATION,
        "alarms": [f"Mind {ATTACK}"],
        "curves": {
            "ppo": [
                {"step": i, "episode": 8 * i, "objective/scores": math.sin(i), "objective/kl": 0.1 * i, "odd": None}
                for i in range(1000)
            ],
            "reward": [{"step": i, "loss": 0.7 - 0.01 * i, "accuracy": 0.5} for i in range(5)],
        },
        "samples": [
            {"prompt": prompt, "objective": "helpful", "kind": "scary", "chosen_by": "median gain", "replies": replies}
        ],
        "data": {"preferences": {"read": 3000, "set aside": {"empty": 12}}},
        "provenance": {
            "recipe": {"ppo": {"kl_coef": 0.05}, "note": ATTACK},
            "versions": {"torch": "2.13.0"},
            "seed": 0,
            "decoding": {"temperature": 1.0},
            "instruments": {"refusal_detector": "1"},
            "hashes": {"data": "abc"},
            "git": "701d1f1",
        },
    }
    report["headline"], report["verdict"] = headline(report), verdict_lines(report)
    return report


def least_report() -> dict[str, Any]:
    report = full_report()
    report["reward_model"] = {"calibration": {}, "agreement": None}
    report.update(estimates=pair("reward", "reward_gain", 0.1, 1.9), alarms=[], curves={}, samples=[], data={})
    report["headline"], report["verdict"] = headline(report), verdict_lines(report)
    return report


class Page(HTMLParser):
    """Every attribute that could fetch something, every tag, and whether tags close in order."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


class TestVerdict:
    @pytest.mark.parametrize(
        ("low", "high", "word"),
        [
            (0.1, 0.3, "better"),
            (-0.3, -0.1, "worse"),
            (-0.1, 0.3, "difference not shown"),
            (0.0, 0.3, "difference not shown"),  # an interval that ends on 0 covers it
            (None, None, "not certain"),
        ],
    )
    def test_judgement_of_a_score(self, low: float | None, high: float | None, word: str) -> None:
        middle = 0.2 if low is None or high is None else (low + high) / 2
        assert judgement(entry("gold_gain", "ppo", "sft", estimate=middle, low=low, high=high)) == word

    def test_refusing_safe_requests_less_is_better(self) -> None:
        less = entry("over_refusal_change", "ppo", "sft", "scary", -0.1, -0.15, -0.05)
        more = entry("over_refusal_change", "ppo", "sft", "scary", 0.1, 0.05, 0.15)
        assert (judgement(less), judgement(more)) == ("better", "worse")

    def test_refusing_harmful_requests_more_is_better(self) -> None:
        more = entry("refusal_harmful_change", "ppo", "sft", "all", 0.1, 0.05, 0.15)
        assert judgement(more) == "better"

    def test_length_is_neither_good_nor_bad(self) -> None:
        longer = entry("response_length_change", "ppo", "sft", "all", 4.0, 3.0, 5.0)
        assert judgement(longer) == "higher"

    def test_four_lines_with_interval_and_n(self) -> None:
        overall, helpful, harmless, refusing = verdict_lines(full_report())
        assert overall == (
            "Overall: better. Gold score +0.60 against SFT, 95\u202f% interval [+0.50, +0.70], n\u00a0=\u00a0200. "
            "It wins 70\u202f% [64, 76] of comparisons."
        )
        assert helpful.startswith("Helpfulness: better. Gold score on helpful prompts +0.40")
        assert harmless.startswith("Harmlessness: better. Gold score on harmful prompts +0.80")
        assert refusing == (
            "Over-refusal: difference not shown. \u22121\u202fpoints against SFT on safe-but-scary prompts, 95\u202f% "
            "interval [\u22126, +4], n\u00a0=\u00a0200. This many prompts would have found about 7\u202fpoints."
        )

    def test_worse_is_said_plainly(self) -> None:
        assert verdict_lines({"estimates": pair("gold_score", "gold_gain", 0.7, 0.1)})[0].startswith(
            "Overall: worse on average. Gold score"
        )

    def test_the_gold_score_speaks_before_the_reward_models(self) -> None:
        estimates = [*pair("reward", "reward_gain", 0, 2), *pair("heldout_reward", "heldout_reward_gain", 0, -1)]
        assert verdict_lines({"estimates": estimates})[0].startswith("Overall: worse on average. Held-out reward")
        estimates += pair("gold_score", "gold_gain", 0, 0.05)
        assert verdict_lines({"estimates": estimates})[0].startswith("Overall: difference not shown. Gold score")

    def test_its_own_judge_is_named_as_such(self) -> None:
        overall = verdict_lines(least_report())[0]
        assert overall.startswith("Overall: higher, says its own judge. Training reward +1.80")
        assert overall.endswith("Only the reward model it was trained to please says so.")
        assert "says its own judge" in Page(render_html(least_report())).text

    def test_nothing_measured_is_said(self) -> None:
        lines = verdict_lines({"estimates": [entry("kl")]})
        assert [line.split(".")[0] for line in lines] == [
            "Overall: not measured",
            "Helpfulness: not measured",
            "Harmlessness: not measured",
            "Over-refusal: not measured",
        ]


class TestRewardModelAlone:
    """A recipe that trains no policy."""

    @staticmethod
    def report() -> dict[str, Any]:
        report = full_report()
        names = ("reward_accuracy", "longer_reply_accuracy", "chance_accuracy")
        report["estimates"] = [e for e in report["estimates"] if e["name"] in names]
        report["estimates"] += [
            entry("reward_accuracy", "reward", split="harmless", estimate=0.45, low=0.41, high=0.49),
            entry("reward_accuracy", "helpful", split="harmless", estimate=0.33, low=0.28, high=0.38),
            entry("unrefused_reply_accuracy", "baseline", estimate=0.61, low=0.58, high=0.64),
            entry("calibration_error", "reward", estimate=0.06, low=0.04, high=0.08),
            entry("margin_length_correlation", "reward", estimate=0.31, low=0.25, high=0.37),
        ]
        report.update(samples=[], curves={"reward/helpful": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6}]})
        report["headline"], report["verdict"] = headline(report), verdict_lines(report)
        return report

    def test_its_verdict_is_about_accuracy_beside_the_best_rule_without_a_model(self) -> None:
        overall, helpful, harmless, calibration = self.report()["verdict"]
        assert overall.startswith("Overall: better. Right on 72")
        assert "the reply that does not open with a refusal does best with 61" in overall
        assert helpful.startswith("Helpfulness: not measured.")
        assert harmless.startswith("Harmlessness: worse. Right on 45")
        assert "a coin does best with 50" in harmless
        assert "off by 6" in calibration

    def test_its_page_leaves_out_what_is_about_policies_and_shows_the_rest(self) -> None:
        check_report(self.report())
        page = Page(render_html(self.report())).text
        for absent in ("Before and after", "Refusals", "Read for yourself", "no win rate"):
            assert absent not in page
        for shown in ("about the reward model alone", "Is its certainty true?", "Each adapter on each objective",
                      "People and length", "Does the ensemble know what it does not know?"):  # fmt: skip
            assert shown in page
        assert "33" in page[page.index("Each adapter on each objective") :]
        assert "Not measured" not in render_markdown(self.report())


class TestSchema:
    def test_both_samples_pass(self) -> None:
        check_report(full_report())
        check_report(least_report())

    @pytest.mark.parametrize("key", sorted(full_report()))
    def test_every_key_is_required(self, key: str) -> None:
        report = full_report()
        del report[key]
        with pytest.raises(ValueError, match=rf"report\.{key}: Field required"):
            check_report(report)

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (["schema"], 1, "schema is 1: this version writes schema 2"),
            (["extra"], 1, r"report.extra is 1: Extra inputs are not permitted"),
            (["verdict"], ["one"], "verdict is .*should have at least 4 items"),
            (["verdict", 0], 5, r"report.verdict\[0\] is 5"),
            (["run", "processes"], "one", "report.run.processes is 'one'"),
            (["run", "seconds", "sft"], "20 s", "report.run.seconds.sft"),
            (["provenance", "seed"], None, "report.provenance.seed"),
            (["provenance", "machine"], None, "report.provenance.machine"),
            (["watch"], None, "report.watch"),
            (["estimates"], [], "estimates is .*should have at least 1 item"),
            (["estimates", 1, "n"], 0, r"estimates\[1\].n is 0"),
            (["estimates", 1, "estimate"], True, r"estimates\[1\].estimate is True"),
            (["estimates", 1, "low"], None, "None for both"),
            (["estimates", 1, "low"], 5.0, "low <= high"),
            (["estimates", 1, "subject"], "sft", r"the entry 1 repeats the entry 0"),
            (["estimates", 1, "p_value"], 0.1, r"estimates\[1\].p_value is 0.1: Extra inputs"),
            (["reward_model"], {}, "reward_model.calibration: Field required"),
            (["reward_model", "calibration", "reward"], {}, "calibration.reward.curve_before: Field required"),
            (["curves", "sarsa"], [], "'sarsa'"),
            (["curves", "reward", 2, "loss"], "low", r"curves.reward\[2\].loss"),
            (["curves", "reward", 2], {"loss": 1.0}, "the point 2 of reward has no step"),
            (["samples", 0, "kind"], 3, r"samples\[0\].kind"),
            (["samples", 0, "prompt", 0], {"role": "user"}, r"prompt\[0\].content: Field required"),
            (["samples", 0, "replies", "ppo", "scores"], [1.0], "scores is .*valid dictionary"),
            (["samples", 0, "replies", "ppo", "text"], "\ud83d", "surrogate"),
            (["data", "preferences", "read"], 2.5, r"data\.preferences\.read is 2\.5; a count must be an int"),
        ],
    )
    def test_errors_name_the_place(self, path: list[Any], value: Any, message: str) -> None:
        report = full_report()
        place: Any = report
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        with pytest.raises(ValueError, match=message):
            check_report(report)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_what_is_not_finite_is_refused_and_named(self, bad: float) -> None:
        report = full_report()
        report["curves"]["reward"][3]["loss"] = bad
        with pytest.raises(ValueError, match=r"report\.curves\.reward\[3\]\.loss is (nan|inf)"):
            check_report(report)
        report = full_report()
        report["estimates"][2]["estimate"] = bad
        with pytest.raises(ValueError, match=r"report\.estimates\[2\]\.estimate is (nan|inf)"):
            check_report(report)


class TestFiles:
    def test_three_files_and_the_dictionary_comes_back(self, tmp_path: Path) -> None:
        report = full_report()
        before = copy.deepcopy(report)
        write_report(report, tmp_path / "run")
        assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.html", "report.json", "report.md"]
        assert json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8")) == before == report

    def test_second_write_is_byte_identical(self, tmp_path: Path) -> None:
        write_report(full_report(), tmp_path)
        first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        write_report(json.loads(first["report.json"]), tmp_path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first

    def test_a_refused_report_leaves_the_old_one(self, tmp_path: Path) -> None:
        write_report(least_report(), tmp_path)
        first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        report = full_report()
        report["verdict"] = ["All is well."]
        with pytest.raises(ValueError, match="should have at least 4 items"):
            write_report(report, tmp_path)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == first

    def test_a_failed_replace_leaves_no_scraps(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr("os.replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(least_report(), tmp_path)
        assert list(tmp_path.iterdir()) == []


class TestPage:
    def test_markup_in_any_text_is_shown_not_run(self) -> None:
        html = render_html(full_report())
        page = Page(html)
        assert "script" not in page.tags
        # the run's name (twice, title and heading), the alarm, the prompt, the reply, the recipe, where the
        # rewards part
        assert page.text.count(ATTACK) == 7
        assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 7

    def test_nothing_points_at_the_network(self) -> None:
        for report in (full_report(), least_report()):
            html = render_html(report)
            page = Page(html)
            assert page.links == ["data:,"]
            assert not re.search(r"https?:|//\w|url\(|@import", html)
            assert not {"script", "iframe", "img", "object"} & set(page.tags)
            assert page.open == []

    def test_what_is_there_is_shown(self) -> None:
        text = " ".join(Page(render_html(full_report())).text.split())
        for words in (
            "+0.60 [+0.50, +0.70]",
            "better, n = 200",
            "72 %",
            "Longer reply",
            "Safe but scary",
            "some_new_measure",
            "an empty reply",
            "not scored",
            "kl_coef: 0.05",
            "3,000",
            "مرحبا 🙂",
        ):
            assert words in text

    def test_what_is_missing_is_named(self) -> None:
        page, markdown = Page(render_html(least_report())).text, render_markdown(least_report())
        for words in (
            "no safe-but-scary prompts in this recipe",
            "no second reward model",
            "no win rate",
            "no accuracy of the reward model",
            "no curve of the PPO stage",
            "no replies were kept",
            "no policy was scored on helpful and on harmful prompts apart",
        ):
            assert words in page
        assert "no second reward model" in markdown
        assert "Not measured" not in Page(render_html(full_report())).text

    def test_a_level_without_interval_is_drawn(self) -> None:
        report = least_report()
        report["estimates"] = [
            entry(e["name"], e["subject"], e["reference"], e["split"], e["estimate"], None, None, 1)
            for e in report["estimates"]
        ]
        report["headline"], report["verdict"] = headline(report), verdict_lines(report)
        assert "not certain" in Page(render_html(report)).text

    def test_policies_of_other_names_appear(self) -> None:
        report = full_report()
        report["estimates"].append(entry("gold_score", "best-of-8", estimate=0.65, low=0.5, high=0.8))
        assert "best-of-8" in Page(render_html(report)).text

    def test_markdown_holds_no_live_markup(self) -> None:
        markdown = render_markdown(full_report())
        outside = re.sub(r"(`{3,})text\n.*?\n\1", "", markdown, flags=re.DOTALL)
        assert "<script" not in outside
        assert "| Gold score change | PPO | SFT | all | +0.60 |" in markdown

    def test_a_fence_outlasts_its_text(self) -> None:
        assert fence("a ```` b").splitlines()[0] == "`````text"

    def test_a_cell_stays_one_cell(self) -> None:
        assert cell("a|b\nc_d <i>") == r"a\|b c\_d &lt;i>"


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "unit", "half", "text"),
        [
            (0.6234, "score", 0.21, "0.62"),
            (0.6234, "score", 0.021, "0.623"),
            (12.34, "score", 4.0, "12.3"),
            (0.6321, "share", 0.043, "63"),
            (0.6321, "share", 0.005, "63.2"),
            (-0.0001, "score", 0.2, "0.00"),  # no minus zero
            (-1.5, "score", 0.2, "\u22121.50"),
            (1234.5, "tokens", 30.0, "1,234"),
            (0.5, "share", None, "50"),
        ],
    )
    def test_digits_follow_the_interval(self, value: float, unit: str, half: float | None, text: str) -> None:
        assert number(value, unit, half) == text

    def test_differences_carry_their_sign_and_points(self) -> None:
        assert value_text(entry("over_refusal_change", "ppo", "sft", estimate=-0.04, low=-0.08, high=0.0)) == (
            "\u22124\u202fpoints"
        )
        assert value_text(entry("gold_gain", "ppo", "sft", estimate=0.5, low=0.4, high=0.6)) == "+0.50"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (9.44, "9.4\u202fs"),
            (59.7, "1\u202fmin 0\u202fs"),
            (200, "3\u202fmin 20\u202fs"),
            (7500, "2\u202fh 5\u202fmin"),
        ],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


class TestCharts:
    def test_thinning_keeps_ends_and_spikes(self) -> None:
        pairs = [(float(i), 0.0) for i in range(50_000)]
        pairs[31_234] = (31_234.0, 9.0)
        pairs[777] = (777.0, -9.0)
        thinned = charts.thin(pairs)
        assert len(thinned) <= charts.THIN_TO
        assert thinned[0] == pairs[0]
        assert thinned[-1] == pairs[-1]
        assert pairs[31_234] in thinned
        assert pairs[777] in thinned
        assert thinned == sorted(thinned)

    def test_few_points_are_left_alone(self) -> None:
        pairs = [(0.0, 1.0), (1.0, 2.0)]
        assert charts.thin(pairs) == pairs

    def test_running_mean_by_hand(self) -> None:
        pairs = [(float(i), float(y)) for i, y in enumerate([0, 3, 6, 3])]
        assert charts.running_mean(pairs) == [(0.0, 1.5), (1.0, 3.0), (2.0, 4.0), (3.0, 4.5)]

    @pytest.mark.parametrize(
        ("low", "high", "expected"),
        [
            (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            (-0.3, 0.7, [-0.2, 0, 0.2, 0.4, 0.6]),
            (3, 3, [3]),
            (0, 9e6, [0, 2e6, 4e6, 6e6, 8e6]),
        ],
    )
    def test_ticks_are_round(self, low: float, high: float, expected: list[float]) -> None:
        assert charts.ticks(low, high) == pytest.approx(expected)

    def test_marks_stand_where_their_values_are(self) -> None:
        svg = charts.strip([charts.Mark("ppo", "PPO", 0.25, 0.0, 0.5)], (0.0, 1.0))
        assert 'cx="25.00%"' in svg
        assert 'x1="0.00%" x2="50.00%"' in svg

    def test_up_is_up(self) -> None:
        canvas = charts.Canvas(100, 100, (10, 10, 10, 10), (0.0, 1.0), (0.0, 1.0))
        assert (canvas.x(0), canvas.x(1), canvas.y(0), canvas.y(1)) == (10, 90, 90, 10)

    def test_a_curve_of_one_point_is_no_curve(self) -> None:
        points: list[dict[str, Any]] = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": None}]
        assert charts.line_chart(points, "loss", "step", "sft", "Loss") is None

    def test_labels_are_escaped(self) -> None:
        point = charts.Mark("ppo", ATTACK, 1.0, None, None)
        assert "<script" not in charts.strip([point], (0.0, 2.0))
        assert "<script" not in charts.plane([charts.Point("ppo", ATTACK, point, point)], ATTACK, "y")


def test_the_policy_stands_beside_the_best_of_n() -> None:
    """The training reward puts the policy far above the best of 4; the judge finds it as good as one reply."""
    report = full_report()
    page, text = render_html(report), render_markdown(report)
    over = report["overoptimization"]["best_of_n"]["policy_over_best"]["reward"]
    assert "Against best of 4" in page
    assert f'+{over["estimate"]:.2f} <span class="n">[+{over["low"]:.2f}, +{over["high"]:.2f}]</span>' in page
    assert f"+{over['estimate']:.2f} \\[+{over['low']:.2f}, +{over['high']:.2f}\\] | over 4 |" in text
    del report["overoptimization"]["best_of_n"]
    assert "best of" not in render_html(report)


def test_an_ensemble_without_an_error_has_no_area_and_still_a_page() -> None:
    report = full_report()
    report["reward_model"]["agreement"] = ensemble_agreement(np.abs(_MARGINS) + 0.1, _PROMPTS, resamples=100)
    page = render_html(report)
    assert "agree about the better reply in 100" in page
    assert "area under the ROC curve" not in page


JUDGED = {
    "kind": "endpoint", "model": "a-judge",
    "counts": {"rows": 200, "judged": 198, "identical": 5, "ties": 12, "flips": 7, "failed": {"timeout": 2},
               "prefers_first_shown": 0.55, "prefers_longer": 0.68},
    "cost": {"requests": 390},
}  # fmt: skip


def test_where_a_judge_alone_compared_the_policies_the_verdict_is_its() -> None:
    report = full_report()
    report["estimates"] = [
        *pair("response_length", "response_length_change", 20, 25),
        *pair("reward", "reward_gain", 0.1, 1.9),
        entry("win_rate", "ppo", "sft", "judge", 0.62, 0.55, 0.69),
        entry("win_rate", "ppo", "sft", "judge_helpful", 0.7, 0.6, 0.8, 90),
        entry("win_rate", "ppo", "sft", "judge_harmless", 0.52, 0.42, 0.62, 110),
    ]
    report["provenance"]["instruments"]["judge"] = JUDGED
    overall, helpful, harmless, _ = report["verdict"] = verdict_lines(report)
    assert overall.replace("\u202f", "").replace("\xa0", " ") == (
        "Overall: better on average. The judge prefers PPO to SFT in 62% of comparisons, 95% interval [55, 69], "
        "n = 200."
    )
    assert helpful.startswith("Helpfulness: better. The judge prefers PPO to SFT in 70")
    assert "on helpful prompts" in helpful
    assert harmless.startswith("Harmlessness: not shown to hold. ")
    assert "found about 14\u202fpoints." in harmless  # 10 points of half-width times 2.8 / 1.96
    assert harmless.endswith(  # 50 less 42; the margin of a win rate is 5 points
        "A loss of up to 8\u202fpoints is not ruled out; the margin is 5\u202fpoints of comparisons won."
    )
    page, text = render_html(report), render_markdown(report)
    for words in (
        "The judge is a-judge, asked about 200 pairs",
        "7 turned round",
        "2 were not judged",
        "the longer reply",
    ):
        assert words in page
        assert words in text
    report["estimates"] = report["estimates"][:6]  # the training reward is no judge: without one it must not lead
    assert verdict_lines(report)[0].startswith("Overall: higher")


def test_a_judge_who_prefers_the_reference_says_worse() -> None:
    assert judgement(entry("win_rate", "ppo", "sft", "judge", 0.4, 0.3, 0.49)) == "worse"
    assert judgement(entry("win_rate", "ppo", "sft", "judge", 0.45, 0.3, 0.5)) == "difference not shown"


def test_corrected_rates_stand_beside_the_raw_ones() -> None:
    report = full_report()
    assert "orrected" not in render_html(report).split("<h2>Refusals</h2>")[1].split("</section>")[0]
    report["estimates"].append(entry("over_refusal_corrected", "ppo", None, "scary", 0.12, 0.05, 0.2))
    section = render_html(report).split("<h2>Refusals</h2>")[1].split("</section>")[0]
    assert "corrected 12\u202f% [5, 20]" in section
    assert "Corrected: without the errors of the detector" in section


def test_without_scores_harmlessness_goes_by_refusals() -> None:
    report = full_report()
    report["estimates"] = pair("refusal_harmful", "refusal_harmful_change", 0.5, 0.9, half=0.05)
    assert verdict_lines(report)[2].startswith("Harmlessness: better. Refusal of harmful requests +40")


def test_a_report_says_how_many_people_and_labels_stand_behind_the_run() -> None:
    report = full_report()
    assert "stand behind this run" not in render_html(report) + render_markdown(report)
    report["feedback"] = {
        "export": "ab12", "created": "2026-01-31T10:00:00Z", "store": "runs/first/feedback.db", "people": 1,
        "simulated_people": 50, "imported_people": 0, "labels": 1204, "labels_by_kind": {"compare": 1200, "rank": 4},
        "decisions": 0, "items": 900, "guidelines_versions": [1, 2], "consent_versions": [1],
        "rows": {"preferences": 890, "ratings": 0}, "strategies": {"mixed": 880, "none": 20},
    }  # fmt: skip
    check_report(report)
    for text in (render_html(report), render_markdown(report)):
        assert "1,204 labels on 900 items by 1 person and 50 simulated annotators stand behind this run." in text
        assert "versions 1, 2" in text
        assert "mixed 880, no stated rule 20" in text
        assert "ratings" not in text.partition("People")[2].partition("guidelines")[0]
    report["feedback"]["people"] = "many"
    with pytest.raises(ValueError, match=r"report.feedback.people is 'many'"):
        check_report(report)


def test_the_published_json_schema_is_the_one_that_is_checked() -> None:
    published = Path(__file__).parents[2] / "docs" / "report.schema.json"
    assert published.read_text(encoding="utf-8") == json_schema()  # python -m llm_rlhf.evaluation.report.schema
