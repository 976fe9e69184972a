"""The parts of the report's page by themselves: what each shows of made-up estimates, worked by hand."""

from typing import Any

import pytest

from llm_rlhf.evaluation.report import reward_sections, sections, watch_section
from llm_rlhf.evaluation.report.curve_section import curves
from llm_rlhf.evaluation.report.distance_section import distance
from llm_rlhf.evaluation.report.numbers import (
    MINUS,
    NARROW,
)


def entry(name: str, estimate: float, low: float | None = None, high: float | None = None, subject: str = "policy",
          split: str = "all", n: int = 60, clusters: int | None = None) -> dict[str, Any]:  # fmt: skip
    reference = "start" if name.endswith(("_gain", "_change", "win_rate")) else None
    return {"name": name, "subject": subject, "reference": reference, "split": split, "estimate": estimate, "low": low,
            "high": high, "n": n, "method": "made up", "clusters": clusters}  # fmt: skip


def both(name: str, start: float, policy: float, split: str = "all") -> list[dict[str, Any]]:
    return [entry(name, policy, split=split), entry(name, start, subject="start", split=split)]


# ---- policies --------------------------------------------------------------------------------------------------------


def test_a_win_rate_is_coloured_where_its_interval_leaves_a_half() -> None:
    found = sections.wins([
        entry("win_rate", 0.62, 0.55, 0.69), entry("win_rate", 0.4, 0.3, 0.49, split="helpful"),
        entry("win_rate", 0.55, 0.5, 0.6), entry("length_controlled_win_rate", 0.7, None, None),
    ])  # fmt: skip
    assert [row["tone"] for row in found["rows"]] == ["good", "bad", "flat", "flat"]
    assert [row["where"] for row in found["rows"]][1:] == [
        "helpful prompts",
        "all prompts",
        "all prompts, at equal length",
    ]
    assert found["rows"][0]["text"] == f"62{NARROW}% [55, 69]"
    assert sections.wins([entry("kl", 1.0)]) is None


def test_before_and_after_stand_start_first_and_the_whole_gold_score_gives_way_to_its_parts() -> None:
    estimates = [
        *both("gold_score", 0.1, 0.2), *both("gold_helpful", 0.0, 0.5), *both("gold_harmless", 0.5, 0.25),
        *both("gold_score", 0.1, 0.2, "helpful"), entry("gold_helpful_gain", 0.5, 0.4, 0.6),
    ]  # fmt: skip
    (group,) = sections.outcomes(estimates)
    assert [(row["label"], row["where"]) for row in group["rows"]][1:] == [
        (sections.MEASURES["gold_helpful"].label, "helpful prompts"),
        (sections.MEASURES["gold_harmless"].label, "harmful prompts"),
    ]
    assert [[level["share"] for level in row["levels"]] for row in group["rows"]] == [[0.1, 0.2], [0, 0.5], [0.5, 0.25]]
    assert [row["difference"] and row["difference"]["value"] for row in group["rows"]] == [None, "+0.50", None]


def test_the_plane_takes_the_first_pair_of_measures_that_one_policy_has_both_of() -> None:
    """The start lacks the true score of harmful prompts; only the policy is drawn, until nobody has both."""
    estimates = [*both("gold_helpful", 0.0, 0.5), entry("gold_harmless", 0.25), *both("reward", 0, 1, "helpful"),
                 *both("reward", 2, 3, "harmless")]  # fmt: skip
    found = sections.plane(estimates)
    assert found["x"][0].islower()
    assert found["svg"].count("<circle") == 1
    found = sections.plane([e for e in estimates if e["name"] != "gold_harmless"])
    assert (found["x"].endswith("on helpful prompts"), found["y"].endswith("on harmful prompts")) == (True, True)
    assert found["svg"].count("<circle") == 2
    assert sections.plane(both("gold_helpful", 0, 1)) is None


def test_refusals_stand_by_policy_and_kind_with_their_changes() -> None:
    estimates = [*both("refusal_harmful", 0.9, 0.3), *both("over_refusal", 0.25, 0.5, "scary"),
                 entry("refusal_harmful_change", -0.6, -0.7, -0.5),
                 entry("refusal_harmful_corrected", 0.31, 0.2, 0.4)]  # fmt: skip
    found = sections.refusals(estimates)
    assert [row["subject"] for row in found["rows"]] == ["Start", "Policy"]
    shares = [[cell and cell["share"] for cell in row["cells"]] for row in found["rows"]]
    assert shares == [[0.9, 0.25, None], [0.3, 0.5, None]]
    assert found["rows"][1]["cells"][0]["corrected"] == f"31{NARROW}% [20, 40]"
    assert found["rows"][0]["cells"][0]["corrected"] is None
    (change, *rest) = found["changes"]
    assert (change["value"], change["word"], change["tone"]) == (f"{MINUS}60{NARROW}points", "worse", "bad")
    assert rest == [None, None]
    assert (found["scary"], found["corrected"]) == (True, True)
    assert sections.refusals([entry("kl", 1.0)]) is None


def test_the_price_names_a_change_that_is_of_another_measure() -> None:
    (tile,) = sections.price([*both("perplexity", 4.0, 5.0), entry("token_logprob_change", -0.2, -0.3, -0.1)])
    assert [level["value"] for level in tile["levels"]] == ["4.00", "5.00"]
    assert tile["change"].startswith(f"change of a token's log-probability, in nats: {MINUS}0.20")
    assert f"[{MINUS}0.30, {MINUS}0.10]" in tile["change"]


def test_what_an_interval_covers_counts_prompts_and_wordings() -> None:
    assert "(1,200 prompts were asked)" in sections.covers(entry("gold_gain", 0.1, 0, 1, n=1200))
    assert "1,200 prompts in 26 wordings were asked" in sections.covers(
        entry("gold_gain", 0.1, 0, 1, n=1200, clusters=26)
    )


def test_who_judged_and_with_what_habits() -> None:
    counts = {"rows": 1200, "judged": 1190, "flips": 30, "identical": 4, "failed": {"timeout": 7, "refused": 3},
              "prefers_first_shown": 0.512, "prefers_longer": None}  # fmt: skip
    assert sections.judge(None) is None
    people = sections.judge({"kind": "people", "people": 3, "counts": counts})
    assert people == "The judges are 3 people, who judged 1,190 of 1,200 pairs."
    told = sections.judge({"kind": "endpoint", "model": "m", "counts": counts})
    assert told.startswith("The judge is m, asked about 1,200 pairs in both orders: 30 turned round")
    assert told.endswith("10 were not judged. It took the reply shown first in 51% of its readings.")
    none = counts | {"prefers_first_shown": None}
    assert sections.judge({"kind": "local model", "counts": none}).endswith("not judged.")


def test_given_replies_are_told_apart_by_start_policy_and_reward_in_this_order() -> None:
    found = sections.hhh([
        entry("hhh_accuracy", 0.7, subject="reward"), entry("hhh_accuracy", 0.6),
        entry("hhh_accuracy", 0.5, subject="start"),
        entry("hhh_longer_reply_accuracy", 0.55, subject="baseline"), entry("hhh_accuracy", 0.8, split="honest"),
        entry("hhh_accuracy_change", 0.1, 0.05, 0.15),
    ])  # fmt: skip
    whole, honest = found["rows"]
    assert [(level["share"], level["kind"]) for level in whole["levels"]] == [
        (0.5, "start"), (0.6, "policy"), (0.7, "reward"), (0.55, "longer")
    ]  # fmt: skip
    assert (whole["where"], honest["where"], len(honest["levels"]), honest["difference"]) == (
        "all pairs", "honest", 1, None
    )  # fmt: skip
    assert whole["difference"]["word"] == "better"


def test_curves_in_episodes_where_every_point_tells_them() -> None:
    ppo = [{"step": s, "episode": 8 * s, "objective/scores": float(s), "eval_helpful/scores": 0.0, "mine": 1.0 + s}
           for s in (1, 2, 3)]  # fmt: skip
    found = curves({"ppo": ppo, "sft": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]}, "SFT")
    assert [(chart["label"], chart["x"]) for chart in found["first"]] == [("Reward-model score", "episode")]
    assert [(chart["label"], chart["x"]) for chart in found["others"]] == [("SFT loss", "step")]
    assert [chart["label"] for chart in found["more"]] == ["ppo: mine"]  # what is told by objective stands elsewhere
    del ppo[1]["episode"]
    assert curves({"ppo": ppo}, "SFT")["first"][0]["x"] == "step"


# ---- reward models ---------------------------------------------------------------------------------------------------


def calibration(before: float | None = 0.13, after: float | None = None, **more: Any) -> dict[str, Any]:
    known = {"n": 40, "temperature": 1.5, "ece_floor": 0.02, "curve_before": []}
    for name in ("ece", "brier", "log_loss"):
        for when, value in (("before", before), ("after", after)):
            known |= {f"{name}_{when}": value, f"{name}_{when}_low": 0.1, f"{name}_{when}_high": 0.2}
    return known | more


def test_what_was_found_of_reward_models_becomes_entries() -> None:
    plain = {"n": 5, "low": None, "high": None, "estimate": 0.6, "method": "m", "reference": None, "split": "all"}
    accuracy = {"name": "reward_accuracy", "subject": "reward", **plain}
    found = reward_sections.judge_estimates({
        "estimates": [accuracy, {**accuracy, "name": "another"}], "breakdown": [],
        "baselines": [{**accuracy, "clusters": 3}],
        "length": [], "calibration": {"reward": calibration(), "heldout": None},
        "ensembles": {"reward": {"auroc_doubt": {"estimate": 0.7, "low": 0.6, "high": 0.8, "n": 5, "method": "m"},
                                 "auroc_margin": None}},
    })  # fmt: skip
    told = [(e["name"], e["subject"], e["split"], e["estimate"], e["clusters"]) for e in found]
    assert told == [
        ("reward_accuracy", "reward", "all", 0.6, None),
        ("reward_accuracy", "reward", "all", 0.6, 3),
        *((name, "reward", "all", 0.13, None) for name in ("calibration_error", "brier", "log_loss")),
        ("doubt_auroc", "reward", "all", 0.7, None),
    ]
    (error,) = [e for e in found if e["name"] == "brier"]
    assert (error["low"], error["high"], error["n"]) == (0.1, 0.2, 40)


def test_accuracy_stands_beside_the_rules_and_the_rare_splits_last() -> None:
    estimates = [entry("reward_accuracy", 0.8, subject="reward", split=s) for s in ("one turn", "harmless", "all")]
    estimates += [
        entry("longer_reply_accuracy", 0.55, subject="baseline"),
        entry("reward_accuracy", 0.9, subject="joint-0"),
    ]
    found = reward_sections.accuracy(estimates)
    assert [row["where"] for row in found["rows"]] == ["all pairs", "harmful pairs"]
    assert [row["where"] for row in found["more"]] == ["one turn"]
    assert [(level["kind"], level["share"]) for level in found["rows"][0]["levels"]] == [
        ("reward", 0.8),
        ("longer", 0.55),
    ]
    assert reward_sections.accuracy([entry("reward_accuracy", 0.9, subject="joint-0")]) is None


def test_the_matrix_is_of_several_adapters_alone() -> None:
    one = [entry("reward_accuracy", 0.8, subject=who, split="helpful") for who in ("reward", "heldout")]
    assert reward_sections.matrix(one) is None
    several = [*one, entry("reward_accuracy", 0.7, subject="harmless", split="harmless")]
    found = reward_sections.matrix(several)
    assert found["columns"] == ["helpful pairs", "harmful pairs"]
    cells = {row["subject"]: [cell and cell["share"] for cell in row["cells"]] for row in found["rows"]}
    assert cells == {"Reward model": [0.8, None], "Held-out model": [0.8, None], "harmless": [None, 0.7]}


def test_calibration_in_words() -> None:
    bins = [{"certainty": 0.75, "accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6, "n": 10}]
    found = reward_sections.calibration(
        {"reward": calibration(curve_before=bins, temperature=None, no_temperature="why")}
    )
    (row,) = found["rows"]
    assert (row["temperature"], row["why_none"], row["n"]) == ("none", "why", 40)
    assert (row["ece_before"], row["ece_after"], row["floor"]) == (f"13{NARROW}%", "not measured", f"2{NARROW}%")
    assert found["named"] == [("reward", "Reward model")]
    assert reward_sections.calibration({"joint-0": calibration()}) is None


def test_scores_beside_length_and_peoples_choices() -> None:
    found = reward_sections.length([
        entry("margin_length_correlation", 0.5, subject="reward"),
        entry("margin_length_correlation", 0.4, subject="joint-0"),
        entry("longer_reply_accuracy", 0.55, subject="baseline"),
    ])  # fmt: skip
    assert [[level["share"] for level in row["levels"]] for row in found["rows"]] == [[0.5]]
    assert found["people"]["share"] == 0.55
    assert reward_sections.length([entry("longer_reply_accuracy", 0.55, subject="baseline")]) is None


def test_doubt_from_the_least_to_the_most() -> None:
    parts = [{"accuracy": a and {"estimate": a, "low": a - 0.1, "high": a + 0.1}, "n": n}
             for a, n in ((0.9, 5), (None, 0), (0.7, 6), (0.6, 7))]  # fmt: skip
    found = reward_sections.doubt({
        "by_doubt": parts, "members": 3, "unanimous": 0.5, "auroc_margin": None,
        "auroc_doubt": {"estimate": 0.666, "low": 0.5, "high": 0.75},
    })  # fmt: skip
    assert [(row["where"], row["value"], row["n"]) for row in found["rows"]] == [
        ("least doubt", f"90{NARROW}%", 5), ("", f"70{NARROW}%", 6), ("most doubt", f"60{NARROW}%", 7)
    ]  # fmt: skip
    assert found["areas"] == {"auroc_doubt": "0.67 [0.50, 0.75]", "auroc_margin": None}
    assert reward_sections.doubt(None) is None


# ---- distance --------------------------------------------------------------------------------------------------------


def curve(**more: Any) -> dict[str, Any]:
    points = [{"step": s, "kl": s * 1.0, "sqrt_kl": s**0.5, "reward": 1.0 + s, "heldout": 2.0 - s} for s in (0, 4)]
    parting = {"heldout": {"message": "fell by -0.5", "alarm": True, "distance": {"estimate": 1.25}}}
    return {"points": points, "fits": {"reward": None, "heldout": None}, "parting": parting, "prompts": 20, **more}


def test_gains_are_over_the_start_and_the_surest_judge_raises_the_alarm() -> None:
    found = distance(curve())
    assert found["named"] == [("reward", "Training reward"), ("heldout", "Held-out reward")]
    assert 'aria-label="Training reward: from 0 to +4.00; Held-out reward: from 0 to -4.00"' in found["svg"]
    assert found["messages"] == [{"judge": "Held-out reward", "text": f"fell by {MINUS}0.5"}]
    assert (found["alarm"], found["prompts"], found["best_of_n"]) == (True, 20, None)
    quiet = curve(parting={**curve()["parting"], "gold": {"message": "", "alarm": False, "distance": {"estimate": 0}}})
    assert distance(quiet)["alarm"] is False  # the true score is surer than the held-out reward
    assert distance(None) is None
    assert distance(curve(points=curve()["points"][:1])) is None


def test_the_policy_against_the_best_of_n_in_words() -> None:
    best = {
        "n": 16, "points": [{"sqrt_kl": 0.0, "reward": 1.0}, {"sqrt_kl": 1.0, "reward": 3.0}],
        "policy_over_best": {"reward": {"estimate": -0.5, "low": -0.7, "high": -0.3}}, "as_good_as": {"reward": None},
    }  # fmt: skip
    points = [{k: v for k, v in point.items() if k != "heldout"} for point in curve()["points"]]
    found = distance(curve(points=points, best_of_n=best, start="sft"))["best_of_n"]
    (line,) = found["lines"]
    assert (line["gain"], line["over"]) == ("+2.00", f"{MINUS}0.50")
    assert (line["interval"], line["as_good_as"]) == (f"[{MINUS}0.70, {MINUS}0.30]", "over 16")
    assert (found["start"], found["policy"]) == ("SFT", "Policy")
    exact = best | {
        "policy_over_best": {"reward": {"estimate": -0.5, "low": None, "high": None}},
        "as_good_as": {"reward": 4},
    }
    (line,) = distance(curve(points=points, best_of_n=exact))["best_of_n"]["lines"]
    assert (line["interval"], line["as_good_as"]) == ("", "4")


# ---- both sides in training ------------------------------------------------------------------------------------------


def guard(**more: Any) -> dict[str, Any]:
    return {"news": [], "level": "warn", "worse_at_the_end": [], "worse_in_what_is_kept": [], "kept_step": 4,
            "stopped_at": None, "too_few": {}, "measured": {}, "evaluations": 5, "prompts": {}, **more}  # fmt: skip


FELL = {"side": "harmless", "what": "worse", "text": "On harmless prompts refusals fell.", "step": 6}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"stopped_at": 6}, "PPO was stopped there (ppo.side_guard); the policy is the snapshot of step 4, in which"),
        ({}, "The policy that was kept is the snapshot of step 4, in which no side is shown to be worse."),
        ({"kept_step": 0}, "The policy that was kept is the start, in which no side is shown to be worse."),
        ({"worse_in_what_is_kept": ["harmless"]}, "The policy that was kept is as bad."),
    ],
)
def test_a_side_that_fell_is_told_with_what_was_kept(more: dict[str, Any], words: str) -> None:
    known = guard(news=[FELL | {"text": "older"}, FELL], worse_at_the_end=["harmless"], **more)
    (line,) = watch_section.watch_alarms({"guard": known})
    assert line.startswith("While PPO trained: on harmless prompts refusals fell. ")
    assert words in line


def test_a_side_that_was_foreseen_to_fall_is_told_where_training_did_not_tell_it() -> None:
    bounds = {"average": 0.5, "best": 0.1, "low": -0.5, "high": -0.3}
    side = {"prompts": 30, "different_prompts": 30, "refusal_rate": bounds, "heldout_scores": bounds}
    preview = {"n": 3, "sides": {"harmless": side}}
    (line,) = watch_section.watch_alarms({"preview": preview})
    assert "bad for the harmless side: of 3 replies" in line
    assert "refusals 50 % -> 10 %" in line
    fell = guard(news=[FELL], worse_at_the_end=["harmless"])
    assert len(watch_section.watch_alarms({"preview": preview, "guard": fell})) == 1
    assert watch_section.watch_alarms({}) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"level": None}, ["Whether a side got worse was not judged (ppo.side_guard: off)."]),
        ({"news": [FELL]}, ["On harmless prompts refusals fell."]),
        ({"measured": {"harmless": ["refusal_rate"]}, "prompts": {"harmless": 30}},
         ["No side was shown to get worse in 5 evaluations, each against the start: refusals on 30 harmless prompts."]),
        ({"news": [FELL], "too_few": {"helpful": 3}},
         ["On harmless prompts refusals fell.", "Only 3 helpful prompts were kept back (16 are needed): whether that "
          "side got worse was not judged."]),
    ],
)  # fmt: skip
def test_what_the_guard_saw_in_sentences(more: dict[str, Any], words: list[str]) -> None:
    assert watch_section.watch_section([], {"guard": guard(**more)})["guard"] == words


def test_curves_by_objective_need_two_evaluations() -> None:
    points = [{"step": s, "eval_helpful/scores": s / 4, "eval_harmless/refusal_rate": 0.5} for s in (0, 4)]
    found = watch_section.watch_section(points, {})
    assert [chart["label"] for chart in found["charts"]] == ["Refusals in training", "Training reward"]
    assert "harmless from 50 to 50" in found["charts"][0]["svg"]  # per cent
    assert "helpful from 0 to 1" in found["charts"][1]["svg"]
    assert found["named"] == ["helpful"]
    assert watch_section.watch_section(points[:1], {}) is None
