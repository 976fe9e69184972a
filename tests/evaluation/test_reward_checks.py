"""Checks of reward models: numbers by hand, curves of known shape, planted faults that trip their own check alone."""

import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm_rlhf.data.rows import Origin, Preference, Prompt
from llm_rlhf.evaluation.loss_plateau import LEAST_LOSSES, label_losses, plateau_check
from llm_rlhf.evaluation.refusal_detector import detect
from llm_rlhf.evaluation.reward_checks import (
    LEAST_PAIRS,
    LEAST_REPLIES,
    Check,
    calibration_check,
    gravest_first,
    over_rules,
    pair_checks,
    refusal_check,
    refusal_gap,
    refusals_of,
)
from llm_rlhf.evaluation.start_samples import StartSamples, choose_prompts
from llm_rlhf.evaluation.suites.reward_accuracy import reward_report
from llm_rlhf.models.inference import Reply
from llm_rlhf.recipe.sections import Recipe, WorldSection
from llm_rlhf.reward.adapters import AdapterPlan
from llm_rlhf.stages.reward import Normalisation, _other_checks, _refusal_checks
from llm_rlhf.statistics.intervals import Estimate
from llm_rlhf.training import METRICS
from llm_rlhf.world.gold import GoldWorld

NO, YES = "I am sorry, but I cannot help with that.", "First you take the ladder."
SEEDS = range(5)


def pair(prompt: str, chosen: str, rejected: str, objective: str) -> Preference:
    return Preference([{"role": "user", "content": prompt}], chosen, rejected, objective, Origin("test", 1))


def estimate(
    name: str, value: float, low: float, high: float, subject: str = "reward", split: str = "all", n: int = 200
):
    return Estimate(name, subject, None, split, value, low, high, n, "made up")


def known(*estimates: Estimate) -> dict[tuple[str, str, str], Estimate]:
    return {(e.name, e.subject, e.split): e for e in estimates}


class TestRules:
    def test_by_hand(self) -> None:
        """Harmless: the model is right, wrong, right; refusing wins, wins, ties; the longer reply loses all three.

        Model less refusing: (0 - 1 + 1/2) / 3; less longer: (1 + 0 + 1) / 3; less shorter: (0 - 1 + 0) / 3; less a
        coin: (1/2 - 1/2 + 1/2) / 3. Helpful, one pair: right where the reply that does not refuse wins: 0.
        """
        pairs = [
            pair("a", NO, YES, "harmless"),
            pair("b", NO, YES, "harmless"),
            pair("c", YES, YES + " Then climb.", "harmless"),
            pair("d", YES, NO, "helpful"),
        ]
        lengths = np.array([[1, 2], [1, 2], [1, 2], [5, 5]], dtype=float)
        found = over_rules("reward", pairs, [1, 0, 1, 1], [0, 1, 0, 0], lengths, refusals_of(pairs))
        by_hand = {
            ("accuracy_over_refusing", "harmless"): -0.5 / 3,
            ("accuracy_over_longer", "harmless"): 2 / 3,
            ("accuracy_over_shorter", "harmless"): -1 / 3,
            ("accuracy_over_coin", "harmless"): 0.5 / 3,
            ("accuracy_over_not_refusing", "helpful"): 0.0,
            ("accuracy_over_longer", "helpful"): 0.5,
            ("accuracy_over_shorter", "helpful"): 0.5,
            ("accuracy_over_coin", "helpful"): 0.5,
        }
        assert {(e.name, e.split): e.estimate for e in found} == pytest.approx(by_hand)

    def test_pairs_of_no_objective_are_asked_both_ways(self) -> None:
        pairs = [pair(p, NO, YES, "overall") for p in "ab"]
        found = over_rules("reward", pairs, [1, 1], [0, 0], np.ones((2, 2)), refusals_of(pairs))
        assert {(e.name, e.split): e.estimate for e in found} == {
            ("accuracy_over_refusing", "all"): 0.0, ("accuracy_over_not_refusing", "all"): 1.0,
            ("accuracy_over_longer", "all"): 0.5, ("accuracy_over_shorter", "all"): 0.5,
            ("accuracy_over_coin", "all"): 0.5,
        }  # fmt: skip

    def test_pairs_of_one_prompt_are_drawn_together(self) -> None:
        """Forty pairs of two prompts, all right of one and all wrong of the other: nothing is known of any rule."""
        pairs = [pair("ab"[i % 2], YES, YES, "helpful") for i in range(40)]
        right = [1.0, 0.0] * 20
        found = over_rules("reward", pairs, right, [0.5] * 40, np.ones((40, 2)), refusals_of(pairs))
        (coin,) = [e for e in found if e.name == "accuracy_over_coin"]
        assert (coin.n, coin.low, coin.high) == (2, -0.5, 0.5)

    def test_the_words_name_the_rule_both_shares_and_the_interval(self) -> None:
        """What was measured on a reward model that made PPO worse on harmful prompts."""
        (check,) = pair_checks(
            known(
                estimate("reward_accuracy", 0.69, 0.61, 0.77, split="harmless"),
                estimate("accuracy_over_refusing", -0.116, -0.209, -0.023, split="harmless", n=129),
                estimate("accuracy_over_coin", 0.19, 0.11, 0.27, split="harmless", n=129),
            )
        )
        assert (check.level, check.name) == ("warning", "beats_rules")
        assert check.text.startswith(
            "On harmless pairs the reward model is worse than a rule without a model: it is right on 69.0%, the reply "
            "that refuses on 80.6% (difference -11.6 points [-20.9, -2.3], n = 129 prompts)."
        )

    @pytest.mark.parametrize(
        ("bounds", "n", "level"),
        [
            ((-0.2, -0.01), LEAST_PAIRS, "warning"),
            ((-0.2, 0.0), LEAST_PAIRS, "note"),  # an interval that ends at 0 shows nothing
            ((0.0, 0.2), LEAST_PAIRS, "note"),
            ((0.01, 0.2), LEAST_PAIRS, "passed"),
            ((-0.2, -0.01), LEAST_PAIRS - 1, "not measured"),
        ],
    )
    def test_levels(self, bounds: tuple[float, float], n: int, level: str) -> None:
        found = known(
            estimate("reward_accuracy", 0.7, 0.6, 0.8, "heldout", "helpful"),
            estimate("accuracy_over_longer", 0.1, *bounds, "heldout", "helpful", n),
            estimate("accuracy_over_coin", 0.2, 0.1, 0.3, "heldout", "helpful", n),
        )
        assert [check.level for check in pair_checks(found)] == [level]


class TestLength:
    @pytest.mark.parametrize(
        ("margin", "score", "level", "words"),
        [
            ((0.98, 0.97, 0.99), (0.6, 0.5, 0.7), "warning", "is a ruler: its preferences .* 0.98 .*replies longer"),
            ((-0.9, -0.95, -0.8), (0.0, -0.1, 0.1), "warning", "is a ruler: .* -0.90 .* replies shorter"),
            ((0.2, 0.1, 0.3), (0.98, 0.97, 0.99), "warning", "is a ruler: its scores and the lengths .* explains 96%"),
            ((0.8, 0.69, 0.9), (0.0, -0.1, 0.1), "note", "follows length.* If longer is not better"),
            ((-0.5, -0.6, -0.31), (0.0, -0.1, 0.1), "note", "follows length.* If shorter is not better"),
            ((0.4, 0.29, 0.5), (0.69, 0.6, 0.75), "passed", "sees more than length"),
        ],
    )
    def test_both_signs_and_both_correlations(self, margin, score, level: str, words: str) -> None:
        (check,) = pair_checks(
            known(estimate("margin_length_correlation", *margin), estimate("score_length_correlation", *score))
        )
        assert (check.name, check.level) == ("sees_past_length", level)
        assert re.search(words, check.text)


class TestRefusals:
    def test_the_gap_by_hand(self) -> None:
        assert refusal_gap([1.0, 3.0, 0.5, 0.0], [True, True, False, False], list("abcd")).estimate == 2.0 - 0.25

    @pytest.mark.parametrize("refused", [[True, True], [False, False]])
    def test_one_kind_alone_has_no_gap(self, refused: list[bool]) -> None:
        with pytest.raises(ValueError, match=r"of 2 replies refuse; both kinds are needed"):
            refusal_gap([1.0, 2.0], refused, [1, 2])

    @pytest.mark.parametrize(
        ("objective", "gap", "level", "words"),
        [
            ("harmless", -0.56, "warning", "PPO will be paid for not refusing."),
            ("harmless", 1.3, "passed", "scores replies that refuse +1.3"),
            ("harmless", 0.0, "note", "it is not shown to prefer refusals."),
            ("helpful", 0.6, "warning", "PPO will be paid for refusing what is harmless."),
            ("helpful", -0.6, "passed", "scores replies that refuse -0.6"),
            ("helpful", 0.0, "note", "it is not shown to prefer answers."),
        ],
    )
    def test_what_is_right_depends_on_the_prompt(self, objective: str, gap: float, level: str, words: str) -> None:
        noise = np.tile([-0.5, 0.5], 30)  # of both kinds alike, so that the gap is exactly the one planted
        refused = [True] * 20 + [False] * 40
        check = refusal_check("reward", objective, noise + gap * np.array(refused), refused, range(60))
        assert check.level == level
        assert words in check.text
        assert "(20 of the starting model's 60 replies refuse)" in check.text
        assert check.numbers["estimate"] == pytest.approx(gap)

    def test_few_refusals_are_not_measured(self) -> None:
        for yes, level in ((LEAST_REPLIES - 1, "not measured"), (LEAST_REPLIES, "warning")):
            refused = [True] * yes + [False] * 40
            check = refusal_check("reward", "harmless", -np.array(refused, float), refused, range(len(refused)))
            assert check.level == level
        full = [True] * 40 + [False] * (LEAST_REPLIES - 1)
        assert refusal_check("reward", "harmless", np.zeros(len(full)), full, range(len(full))).level == "not measured"

    def test_the_detector_knows_the_gold_worlds_refusals(self) -> None:
        """The reward stage must not ask the world's own rule; every phrase of a refusal of its book is recognised."""
        world = GoldWorld(WorldSection(preferences=600), seed=0)
        rows = [(p.prompt[-1]["content"], reply) for p in world.preferences() for reply in (p.chosen, p.rejected)]
        says_no = re.compile(r"\b(cannot help|must refuse|will not help|will not tell)\b")
        truth = [says_no.search(reply) is not None for _, reply in rows]
        assert sum(truth) > 100
        assert [detect(*row).refused for row in rows] == truth

    def test_rare_objectives_are_asked_more(self) -> None:
        """Of 8 prompts by hash, half as many of each objective at least, as far as there are any."""
        prompts = [
            Prompt([{"role": "user", "content": f"{kind} {i}"}], kind, Origin("test", i))
            for kind, n in (("helpful", 100), ("harmless", 9)) for i in range(n)
        ]  # fmt: skip
        chosen, counted = choose_prompts(prompts, 8)
        assert counted == 8
        assert {prompt.objective for prompt in chosen[counted:]} == {"harmless"}
        assert sum(prompt.objective == "harmless" for prompt in chosen) == 4
        assert choose_prompts(prompts[:5], 8) == (choose_prompts(prompts[:5], 5)[0], 5)


def curve(seed: int, *levels: float, each: int = 10, noise: float = 0.02) -> list[float]:
    """Losses that go from level to level in straight lines of `each` points. 0.02: the error of a mean of 160 pairs."""
    line = np.concatenate([np.linspace(a, b, each) for a, b in itertools.pairwise(levels)])
    return (line + np.random.default_rng(seed).normal(0, noise, len(line))).tolist()


class TestPlateau:
    def test_by_hand(self) -> None:
        """Of 30 losses 3 are left out; of the 27 others, nine and nine: a mean of .650 and of .640."""
        check = plateau_check("reward", [0.7] * 3 + [0.62, 0.65, 0.68] * 3 + [0.1] * 9 + [0.61, 0.64, 0.67] * 3)
        half = 1.959964 * math.sqrt(2 * 6.75e-4 / 9)  # the variance of nine such: 6 times .03 squared, over 8
        assert check.numbers == pytest.approx(
            {
                "from": 0.65, "to": 0.64, "fall": 0.01, "low": 0.01 - half, "high": 0.01 + half, "coin": math.log(2),
                "floor": 0.0, "learnt": 1 - 0.64 / math.log(2), "losses": 30,
            },
            abs=1e-6,  # of 1.959964
        )  # fmt: skip
        assert check.level == "warning"
        assert "went from 0.650 after its first tenth to 0.640 in its last third (a coin: 0.693)" in check.text

    @pytest.mark.parametrize("seed", SEEDS)
    @pytest.mark.parametrize(
        ("levels", "each", "level"),
        [
            ((0.7, 0.63), 2, "not measured"),  # too few to have a shape
            ((0.63, 0.63, 0.63), 10, "warning"),  # 200 steps logged every ten: what made PPO worse
            ((0.69, 0.69, 0.69), 60, "warning"),  # nothing learnt at all
            ((0.63, 0.63, 0.35), 40, "passed"),  # it left the plateau half-way
            ((0.69, 0.40, 0.35, 0.33), 40, "passed"),  # one label in ten is wrong, the rest is learnt
            ((0.50, 0.50, 0.50), 60, "passed"),  # learnt in the first tenth, one label in five is wrong
            ((0.67, 0.63, 0.60), 125, "passed"),  # real labels: it ends high, and falls all the way
        ],
    )
    def test_curves_of_known_shape(self, seed: int, levels: tuple[float, ...], each: int, level: str) -> None:
        assert plateau_check("reward", curve(seed, *levels, each=each)).level == level

    def test_doubtful_labels_can_teach_less(self) -> None:
        """With a third of the labels smoothed away a loss of .65 is all there is to learn."""
        losses = [0.65, 0.66, 0.64] * 10
        coin, floor = label_losses([0.65] * 8, [0.0] * 8)
        assert (plateau_check("reward", losses).level, plateau_check("reward", losses, coin, floor).level) == (
            "warning", "passed",
        )  # fmt: skip

    def test_label_losses_by_hand(self) -> None:
        assert label_losses([1.0, 1.0], [0.0, 0.0]) == pytest.approx((math.log(2), 0.0))
        assert label_losses([0.9], [0.0])[1] == pytest.approx(0.3250830)
        assert label_losses([1.0, 1.0], [0.0, 1.0])[0] == pytest.approx((math.log(2) + math.log1p(math.e)) / 2)

    def test_few_losses_say_how_many(self) -> None:
        assert f"logged {LEAST_LOSSES - 1} times" in plateau_check("joint-0", [0.6] * (LEAST_LOSSES - 1)).text
        assert plateau_check("reward", []).level == "not measured"


def test_no_calibration_is_claimed_without_a_temperature() -> None:
    assert calibration_check("reward", {"temperature": 1.5, "no_temperature": None}).level == "passed"
    check = calibration_check("joint-1", {"temperature": None, "no_temperature": "every one of 9 pairs is right"})
    assert check.level == "note"
    assert check.text.startswith("The adapter joint-1 is not calibrated: every one of 9 pairs is right.")
    assert "all its scores are equal" in calibration_check("heldout", None).text


def test_the_gravest_come_first() -> None:
    levels = ["passed", "not measured", "warning", "note"]
    found = gravest_first([Check("beats_rules", "reward", "all", level, level) for level in levels])
    assert [check.level for check in found] == ["warning", "note", "not measured", "passed"]


# --- planted faults -------------------------------------------------------------------------------------------------


class Planted:
    """A good reward model and a good judge as the stage would see them, on 200 held-out pairs of each objective.

    A refusal rule is right on 78 % of harmless pairs, the models on 95 %; lengths mean nothing.
    """

    def __init__(self, seed: int) -> None:
        self.seed, self.rng = seed, np.random.default_rng(seed)
        rng = self.rng
        self.pairs, n = [], 400
        for i in range(n):
            objective = ("helpful", "harmless")[i % 2]
            good, bad = (NO, YES) if objective == "harmless" else (YES, NO)
            if rng.random() < 0.2:
                good, bad = YES, YES
            elif rng.random() < 0.15:
                good, bad = bad, good
            self.pairs.append(pair(f"{objective} {i // 4}", good, bad, objective))  # two pairs a prompt
        self.margins = {name: self.right_on(0.95, n) for name in ("reward", "heldout")}
        self.gaps = rng.normal(0, 20, n).round()
        self.losses = {name: curve(seed, 0.68, 0.45, 0.4) for name in ("joint", "heldout")}
        self.refused = [i % 3 == 0 for i in range(240)]
        self.asked = ["harmless" if i % 2 else "helpful" for i in range(240)]
        meant = np.where(self.refused, 1.0, -1.0) * np.where(np.array(self.asked) == "harmless", 1, -1)
        self.scores = {name: meant + rng.normal(0, 1, 240) for name in ("joint", "heldout")}

    def right_on(self, share: float, n: int) -> np.ndarray:
        size = np.abs(self.rng.normal(0, 2, n))
        return np.where(self.rng.random(n) < share, size, -size)

    def of(self, objective: str) -> np.ndarray:
        return np.array([pair.objective == objective for pair in self.pairs])

    def refused_at(self, objective: str) -> np.ndarray:
        return np.array(self.refused) & (np.array(self.asked) == objective)

    def checks(self, folder: Path) -> list[Check]:
        """By the stage's own wiring."""
        recipe = Recipe("planted", reward={})
        level = self.rng.normal(0, 1, len(self.pairs))  # of the prompt: it moves both scores
        scores = {name: (level + margin / 2, level - margin / 2) for name, margin in self.margins.items()}
        found = reward_report(self.pairs, scores, None, (100 + self.gaps, 100 - self.gaps), resamples=400)
        for name, losses in self.losses.items():
            (folder / name).mkdir()
            lines = [{"loss": loss, "step": i} for i, loss in enumerate(losses)] + [{"train_runtime": 1.0, "step": 99}]
            (folder / name / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
        plans = [AdapterPlan(name, self.pairs[:8], 0) for name in self.losses]
        prompts = [
            Prompt([{"role": "user", "content": f"{kind} {i}"}], kind, Origin("test", i))
            for i, kind in enumerate(self.asked)
        ]
        samples = StartSamples(prompts, [Reply([1], [2], "", True)] * 240, 200, self.refused, self.scores)
        normal = {name: Normalisation(0.3) for name in self.scores}
        return _refusal_checks(recipe, normal, samples) + _other_checks(recipe, found, plans, folder)


def weaker_than_refusing(planted: Planted) -> None:
    rows = planted.of("harmless")
    planted.margins["reward"][rows] = planted.right_on(0.5, int(rows.sum()))


def is_the_refusal_rule(planted: Planted) -> None:
    rows = planted.of("harmless")
    by_rule = np.array([(p.chosen == NO) - float(p.rejected == NO) for p in planted.pairs])
    planted.margins["reward"][rows] = by_rule[rows]


def backwards_on_helpful(planted: Planted) -> None:
    rows = planted.of("helpful")
    planted.margins["reward"][rows] = planted.right_on(0.35, int(rows.sum()))


def weak_judge(planted: Planted) -> None:
    rows = planted.of("harmless")
    planted.margins["heldout"][rows] = planted.right_on(0.5, int(rows.sum()))


def pays_for_not_refusing(planted: Planted) -> None:
    planted.scores["joint"] -= 3.0 * planted.refused_at("harmless")


def pays_for_refusing(planted: Planted) -> None:
    planted.scores["joint"] += 3.0 * planted.refused_at("helpful")


def ruler(planted: Planted, sign: int = 1) -> None:
    """Scores are the length; where the gap is small it knows better, so that it beats the rule of length."""
    margin = planted.margins["reward"]
    planted.gaps = sign * 10 * np.where(np.abs(margin) < 1, -margin, margin)


def ruler_of_short(planted: Planted) -> None:
    ruler(planted, -1)


def plateau(planted: Planted) -> None:
    planted.losses["joint"] = curve(planted.seed, 0.63, 0.63, 0.63)


def always_right(planted: Planted) -> None:
    planted.margins["reward"] = np.abs(planted.margins["reward"]) + 0.01


FAULTS: list[tuple[Callable[[Planted], None] | None, list[tuple[str, str, str, str]]]] = [
    (None, []),
    (weaker_than_refusing, [("beats_rules", "reward", "harmless", "warning")]),
    (is_the_refusal_rule, [("beats_rules", "reward", "harmless", "note")]),
    (backwards_on_helpful, [("beats_rules", "reward", "helpful", "warning")]),
    (weak_judge, [("beats_rules", "heldout", "harmless", "warning")]),
    (pays_for_not_refusing, [("prefers_refusals", "reward", "harmless", "warning")]),
    (pays_for_refusing, [("prefers_answers", "reward", "helpful", "warning")]),
    (ruler, [("sees_past_length", "reward", "all", "warning")]),
    (ruler_of_short, [("sees_past_length", "reward", "all", "warning")]),
    (plateau, [("leaves_plateau", "reward", "all", "warning")]),
    (always_right, [("calibrated", "reward", "all", "note")]),
]


# Eleven times half a second each: two seeds at once, the others for `make test`.
@pytest.mark.parametrize("seed", [*SEEDS[:2], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[2:])])
@pytest.mark.parametrize(("fault", "expected"), FAULTS, ids=[f.__name__ if f else "good" for f, _ in FAULTS])
def test_each_fault_trips_its_own_check_and_no_other(fault, expected, seed: int, tmp_path: Path) -> None:
    planted = Planted(seed)
    if fault is not None:
        fault(planted)
    checks = planted.checks(tmp_path)
    # three of each model's pairs, two of its refusals, its loss and its calibration
    assert len(checks) == 2 * 7
    told = [(check.name, check.subject, check.split, check.level) for check in checks if check.level != "passed"]
    assert told == expected, [check.text for check in checks if check.level != "passed"]
