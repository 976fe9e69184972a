"""What to do next: each rule fires where its fault was planted, and is silent a little on this side of it."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from planted_runs import bad_run, better_run, estimate
from test_report import full_report

from llm_rlhf.evaluation.report.findings import SHIPPED, Known, prompts_needed
from llm_rlhf.evaluation.report.next_steps import MOST, RULES, next_steps
from llm_rlhf.evaluation.report.page import render_html, render_markdown
from llm_rlhf.evaluation.report.schema import check_report
from llm_rlhf.recipe.loading import config_class_of
from llm_rlhf.recipe.sections import METHODS, OFFLINE, option_names
from llm_rlhf.statistics.intervals import Estimate

REWARD = {"subject": "reward", "reference": None, "n": 300}
RECIPE = {"evaluate": {"prompts": 300}, "ppo": {"kl_coef": 0.05, "response_length": 32, "keep": "last"}}


def report_of(*changed: Estimate, run: list[Estimate] | None = None, **more: Any) -> dict[str, Any]:
    """The run as it should go, with some of its estimates replaced, and nothing else to find."""
    named = {(e.name, e.subject, e.split) for e in changed}
    kept = [e for e in (better_run() if run is None else run) if (e.name, e.subject, e.split) not in named]
    report = full_report() | {"overoptimization": None, "curves": {}, "alarms": []} | more
    report["run"] = report["run"] | {"recipe": "runs/hh/recipe.yaml"}
    report["provenance"] = report["provenance"] | {"recipe": RECIPE}
    return report | {"estimates": [e.as_dict() for e in (*kept, *changed)]}


def level(
    name: str, value: float, low: float, high: float, who: str = "ppo", split: str = "all", **more: Any
) -> Estimate:
    return estimate(name, value, low, high, split, **{"subject": who, "reference": None} | more)


def snapshots(alarm: bool = True, over: tuple[float, float] = (0.1, 0.5), checkpoint: int = 2) -> dict[str, Any]:
    bounds = {"estimate": -0.4, "low": -0.6, "high": -0.2, "n": 64, "method": "planted", "clusters": None}
    parting = {"alarm": alarm, "checkpoint": checkpoint, "heldout_change": bounds}
    against = {
        "estimate": sum(over) / 2,
        "low": over[0],
        "high": over[1],
        "n": 64,
        "method": "planted",
        "clusters": None,
    }
    points = [{"step": 8 * i, "sqrt_kl": 0.5 * i, "kl": 0.25 * i * i} for i in range(5)]
    return {"points": points, "parting": {"gold": parting}, "start": "sft",
            "best_of_n": {"n": 16, "policy_over_best": {"gold": against}}}  # fmt: skip


def values(share: float) -> dict[str, Any]:
    return {"ppo": [{"step": i, "val/explained_variance": share} for i in range(20)]}


def preview(change: float) -> dict[str, Any]:
    """Refusals of harmful prompts by the reply that the training reward likes best, less the average, +- .1."""
    bounds = {"low": change - 0.1, "high": change + 0.1, "average": 0.5, "best": 0.5 + change}
    return {
        "preview": {"n": 8, "sides": {"harmless": {"prompts": 64, "different_prompts": 64, "refusal_rate": bounds}}}
    }


BREVITY = {
    "brevity": {"function": "m:f", "good": "lower", "unit": "score", "prompts": 60, "not_scored": {"ppo": 0, "sft": 0}}
}
LESS_HARM = estimate("refusal_harmful_change", -0.25, -0.40, -0.10)
UNSURE_HARM = estimate("refusal_harmful_change", -0.05, -0.09, 0.01)
FIRES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("harm_refused_less", report_of(LESS_HARM), ("\u221225\u202fpoints [\u221240, \u221210]", "side_guard: stop")),
    ("hacked", report_of(estimate("gold_gain", -0.3, -0.5, -0.1)), ("\u22120.30 [\u22120.50, \u22120.10]",
                                                                   "ppo.kl_coef (it is 0.05)")),
    ("best_snapshot", report_of(overoptimization=snapshots()), ("step 16", "evaluate runs/hh:step-16", "keep: best")),
    ("side_lost", report_of(estimate("gold_helpful_gain", -0.3, -0.4, -0.2)), ("\u22120.30", "helpful pairs")),
    ("own_lost", report_of(estimate("brevity_gain", 4.0, 2.0, 6.0), own=BREVITY),
     ("suite brevity", "+4.0 [+2.0, +6.0]", "replies_brevity.jsonl")),
    ("over_refusal", report_of(estimate("over_refusal_change", 0.2, 0.1, 0.3, "scary")), ("+20", "data.prompts")),
    ("lost_language", report_of(level("kl", 60.0, 55.0, 65.0)), ("60.0\u202fnats", "Raise ppo.kl_coef")),
    ("lost_language", report_of(level("perplexity", 4.0, 3.8, 4.2, "sft"), level("perplexity", 9.0, 8.5, 9.5),
                                estimate("token_logprob_change", -0.8, -0.9, -0.7)), ("4.0", "9.0", "ptx_coef")),
    ("longer", report_of(level("response_length", 20, 19, 21, "sft"), level("response_length", 31, 30, 32)),
     ("20\u202ftokens", "31\u202ftokens", "length_control: residual")),
    ("cut_off", report_of(level("eos_rate", 0.4, 0.34, 0.46)), ("40", "ppo.response_length (it is 32)")),
    ("value_blind", report_of(curves=values(0.01)), ("1 %", "ppo.vf_coef")),
    ("unmoved", report_of(level("kl", 0.02, 0.01, 0.03), estimate("gold_gain", 0.1, -0.1, 0.3)),
     ("0.020", "Lower ppo.kl_coef")),
    ("unproven", report_of(estimate("gold_gain", 0.1, -0.1, 0.3)), ("+0.10 [\u22120.10, +0.30]", "evaluate.prompts")),
    ("no_better_than_choosing", report_of(overoptimization=snapshots(alarm=False, over=(-0.2, 0.2))),
     ("best of 16", "training bought little")),
    ("pays_against", report_of(watch=preview(-0.3)), ("harmless side", "data.preferences")),
    ("weak_reward", report_of(level("reward_accuracy", 0.6, 0.55, 0.65, **REWARD),
                              level("accuracy_over_shorter", -0.1, -0.15, -0.05, **REWARD)),
     ("the shorter reply", "\u221210")),
    ("unproven_reward", report_of(level("reward_accuracy", 0.6, 0.55, 0.65, **REWARD),
                                  level("accuracy_over_shorter", 0.02, -0.03, 0.07, **REWARD)), ("not shown to beat",)),
    ("follows_length", report_of(level("margin_length_correlation", 0.5, 0.4, 0.6, **REWARD)),
     ("likes longer replies", "0.50 [0.40, 0.60]", "length_control: residual", "is the shorter one")),
    ("follows_length", report_of(level("score_length_correlation", 0.86, 0.82, 0.9, **REWARD),
                                 level("margin_length_correlation", -0.05, -0.35, 0.26, **REWARD)),
     ("its scores and lengths", "0.860 [0.820, 0.900]", "is the shorter one")),
    ("follows_length", report_of(level("score_length_correlation", -0.55, -0.65, -0.45, **REWARD),
                                 level("margin_length_correlation", 0.45, 0.35, 0.55, **REWARD)),
     ("likes longer replies: its margins", "is the shorter one")),
    ("follows_length", report_of(level("margin_length_correlation", -0.62, -0.78, -0.4, **REWARD)),
     ("likes shorter replies", "\u22120.62", "is the longer one")),
]  # fmt: skip
SILENT = {
    "harm_refused_less": report_of(UNSURE_HARM),
    "hacked": report_of(estimate("gold_gain", -0.3, -0.61, 0.01)),
    "best_snapshot": report_of(overoptimization=snapshots(alarm=False)),
    "side_lost": report_of(estimate("gold_helpful_gain", -0.3, -0.61, 0.01)),
    "own_lost": report_of(estimate("brevity_gain", 4.0, -1.0, 9.0), own=BREVITY),
    "over_refusal": report_of(estimate("over_refusal_change", 0.1, -0.01, 0.21, "scary")),
    "lost_language": report_of(level("kl", 40.0, 35.0, 45.0), level("perplexity", 4.0, 3.8, 4.2, "sft"),
                               level("perplexity", 7.0, 6.5, 7.5), estimate("token_logprob_change", -0.5, -0.6, -0.4)),
    "longer": report_of(level("response_length", 20, 19, 21, "sft"), level("response_length", 29, 28, 30)),
    "cut_off": report_of(level("eos_rate", 0.78, 0.72, 0.84)),
    "value_blind": report_of(curves=values(0.3)),
    "unmoved": report_of(level("kl", 0.02, 0.01, 0.03)),  # it gained all the same
    "unproven": report_of(),
    "no_better_than_choosing": report_of(overoptimization=snapshots(alarm=False)),
    "pays_against": report_of(watch=preview(-0.05)),
    "weak_reward": report_of(level("reward_accuracy", 0.6, 0.55, 0.65, **REWARD),
                             level("accuracy_over_shorter", 0.1, 0.05, 0.15, **REWARD)),
    "unproven_reward": report_of(level("reward_accuracy", 0.6, 0.55, 0.65, **REWARD),
                                 level("accuracy_over_shorter", 0.1, 0.05, 0.15, **REWARD)),
    "follows_length": report_of(level("margin_length_correlation", 0.25, 0.2, 0.3, **REWARD)),
}  # fmt: skip


def rules(report: dict[str, Any]) -> list[str]:
    return [step["rule"] for step in next_steps(report)]


@pytest.mark.parametrize(("rule", "report", "words"), FIRES, ids=[rule for rule, _, _ in FIRES])
def test_a_planted_fault_is_found_with_its_number_and_its_key(
    rule: str, report: dict[str, Any], words: tuple[str]
) -> None:
    step = next(step for step in next_steps(report) if step["rule"] == rule)
    said = f"{step['finding']} {step['remedy']}"
    assert [word for word in words if word not in said] == []
    check_report(report | {"next": next_steps(report)})


@pytest.mark.parametrize("rule", sorted(SILENT))
def test_what_is_not_shown_is_no_fault(rule: str) -> None:
    assert rule not in rules(SILENT[rule])


def of_method(report: dict[str, Any], method: str, section: dict[str, Any]) -> dict[str, Any]:
    """The same report of a policy that another method made."""
    estimates = [
        {**e, **{key: method for key in ("subject", "reference") if e[key] == "ppo"}} for e in report["estimates"]
    ]
    recipe = {"evaluate": {"prompts": 300, "response_length": 32}, method: section}
    provenance = report["provenance"] | {"recipe": recipe}
    return report | {"estimates": estimates, "provenance": provenance}


POLICY_FIRES = [(rule, report) for rule, report, _ in FIRES if rule not in ("value_blind", "pays_against")]


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ppo"])
@pytest.mark.parametrize(("rule", "report"), POLICY_FIRES, ids=[rule for rule, _ in POLICY_FIRES])
def test_a_remedy_names_keys_that_the_method_has(rule: str, report: dict[str, Any], method: str) -> None:
    step = next(step for step in next_steps(of_method(report, method, {})) if step["rule"] == rule)
    known = {field.name for field in dataclasses.fields(config_class_of(method))} | option_names(method)
    named = re.findall(rf"\b({'|'.join(METHODS)})\.(\w+)", step["remedy"])
    assert [key for section, key in named if section != method or key not in known] == []
    if method in OFFLINE and rule not in ("weak_reward", "unproven_reward", "follows_length", "unproven"):
        assert not re.search(r"reward|prompts", step["remedy"])  # pairs alone make its policy


@pytest.mark.parametrize(
    ("method", "section", "remedy"),
    [
        ("dpo", {"beta": 0.5}, "Lower dpo.beta (it is 0.5), or raise dpo.num_train_epochs or dpo.learning_rate."),
        ("grpo", {"beta": 0.02}, "Lower grpo.beta (it is 0.02), or raise grpo.total_episodes or grpo.learning_rate."),
        ("grpo", {}, "Raise grpo.total_episodes or grpo.learning_rate."),  # TRL's beta is 0
        ("rloo", {}, "Lower rloo.beta, or raise rloo.total_episodes or rloo.learning_rate."),
        ("best_of_n", {"n": 4}, "Raise best_of_n.n (it is 4) or best_of_n.learning_rate."),
    ],
)
def test_what_lets_a_policy_go_further_is_its_methods_own(method: str, section: dict[str, Any], remedy: str) -> None:
    report = report_of(level("kl", 0.02, 0.01, 0.03), estimate("gold_gain", 0.1, -0.1, 0.3))
    steps = next_steps(of_method(report, method, section))
    assert next(step["remedy"] for step in steps if step["rule"] == "unmoved") == remedy


def test_every_rule_is_tried_both_ways() -> None:
    known = {rule.__name__ for rule in RULES}
    assert {rule for rule, _, _ in FIRES} == known == set(SILENT)


def test_a_good_run_is_told_what_comes_after_it() -> None:
    (step,) = next_steps(report_of())
    assert step["rule"] == "onward"
    assert "seed=1 output_dir=runs/hh-1" in step["remedy"]
    assert "llm-rlhf gate runs/hh" in step["remedy"]


@pytest.mark.parametrize(("recipe", "judge"), [("runs/hh/recipe.yaml", "evaluate.judge"), ("none", "--judge")])
def test_what_nothing_judged_is_not_called_good_nor_held_to_a_gate(recipe: str, judge: str) -> None:
    planted = [estimate("response_length_change", 0.0, -1.0, 1.0)]
    report = report_of(run=planted)
    report["run"]["recipe"] = recipe
    (step,) = next_steps(report)
    assert step["rule"] == "unjudged"
    assert f"({judge})" in step["remedy"]
    report = report_of(run=[*planted, estimate("brevity_gain", -4.0, -6.0, -2.0)], own=BREVITY)
    report["run"]["recipe"] = recipe
    (step,) = next_steps(report)
    assert "suites of your own alone" in step["finding"]
    assert f"({judge})" in step["remedy"]
    assert "gate" not in step["remedy"]
    assert ("seed=1" in step["remedy"]) is (recipe != "none")


def test_the_gravest_come_first_and_no_more_than_a_reader_takes_up() -> None:
    """The run that learnt to evade, where seven rules see something."""
    report = report_of(
        level("kl", 60.0, 55.0, 65.0), level("eos_rate", 0.4, 0.3, 0.5),
        level("response_length", 20, 19, 21, "sft"), level("response_length", 40, 39, 41),
        estimate("over_refusal_change", 0.2, 0.1, 0.3, "scary"),
        run=bad_run(), curves=values(0.0), overoptimization=snapshots(),
    )  # fmt: skip
    assert rules(report) == ["harm_refused_less", "best_snapshot", "side_lost", "over_refusal", "lost_language"]
    assert len(rules(report)) == MOST


def test_as_many_prompts_as_the_width_of_the_interval_asks_for() -> None:
    """+.10 [-.10, +.30]: found four times in five is (1.960 + .842) / 1.960 * .20 = .286, so 2.859^2 = 8.17 times."""
    gain = estimate("gold_gain", 0.1, -0.1, 0.3).as_dict()
    assert prompts_needed(gain, 0.0) == pytest.approx(8.17, abs=0.01)
    # .15 from a loss of .05: (.2859 / .15)^2
    assert prompts_needed(gain, 0.05) == pytest.approx(3.63, abs=0.01)
    assert prompts_needed(gain | {"estimate": 0.0}, 0.0) == float("inf")
    (step,) = (s for s in next_steps(report_of(estimate("gold_gain", 0.1, -0.1, 0.3))) if s["rule"] == "unproven")
    assert "Set evaluate.prompts to about 2,500 (it is 300)" in step["remedy"]  # 300 * 8.17 = 2,452
    few = report_of(estimate("gold_gain", 0.1, -0.1, 0.3), level("eos_rate", 0.9, 0.8, 1.0, n=41))
    (step,) = (s for s in next_steps(few) if s["rule"] == "unproven")  # 41 * 8.17 = 335
    assert "All 41 prompts that there are were asked (evaluate.prompts is 300)" in step["remedy"]
    assert (
        "Add more to data.evaluation_prompts (or raise data.evaluation_share), and set evaluate.prompts to as many"
        in (step["remedy"])
    )
    assert "about 340 in all" in step["remedy"]
    (step,) = (s for s in next_steps(report_of(estimate("gold_gain", 0.001, -0.2, 0.2))) if s["rule"] == "unproven")
    assert "more prompts than can be asked" in step["remedy"]


def test_other_names_and_another_method_name_their_own_keys() -> None:
    names = {"ppo": "dpo", "sft": "base"}
    estimates = [
        dataclasses.replace(e, subject=names.get(e.subject, e.subject), reference=e.reference and names[e.reference])
        for e in (*bad_run(), level("kl", 60.0, 55.0, 65.0), level("perplexity", 4.0, 3.8, 4.2, "sft"))
    ]  # fmt: skip
    report = report_of(run=estimates)
    report["provenance"]["recipe"] = {"dpo": {"beta": 0.1}}
    report["run"]["base"] = "org/Chat-1B-Instruct"
    steps = {step["rule"]: f"{step['finding']} {step['remedy']}" for step in next_steps(report)}
    assert "side_guard" not in steps["harm_refused_less"]
    assert "dpo.beta (it is 0.1)" in steps["lost_language"]
    assert "from Chat-1B-Instruct" in steps["lost_language"]


def test_more_refusal_prompts_than_there_are_are_not_asked_for() -> None:
    """0 +- .115 is told from a loss of .10 by (.1644 / .1)^2 = 2.70 times as many: of 60 by 162, of 200 by 540."""
    remedies = []
    for n in (60, 200):
        planted = estimate("refusal_harmful_change", 0.0, -0.115, 0.115, n=n)
        no_true_score = [e for e in better_run() if "gold" not in e.name]
        (step,) = (s for s in next_steps(report_of(planted, run=no_true_score)) if s["rule"] == "unproven")
        remedies.append(step["remedy"])
    assert remedies[0].startswith("Set evaluate.refusal_prompts to about 170 (it is 60)")
    assert remedies[1].startswith("It takes about 550 requests of a kind, and some 250 come with the package")
    folder = Path(__file__).parents[2] / "data" / "evaluation"
    shipped = [len((folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
               for name in ("harmful", "safe_but_scary")]  # fmt: skip
    assert all(SHIPPED <= count <= SHIPPED + 50 for count in shipped)


FAULTY = (
    level("kl", 60.0, 55.0, 65.0), level("eos_rate", 0.4, 0.34, 0.46), level("response_length", 20, 19, 21, "sft"),
    level("response_length", 31, 30, 32), estimate("gold_gain", -0.3, -0.5, -0.1),
    estimate("gold_helpful_gain", -0.3, -0.4, -0.2),
)  # fmt: skip
STUCK = (level("kl", 0.02, 0.01, 0.03), estimate("gold_gain", 0.1, -0.1, 0.3))


def remedies_of(method: str, *changed: Estimate, section: dict[str, Any] | None = None) -> dict[str, str]:
    """Remedies by rule, all that see something, of a run whose policy was made by this method."""
    report = report_of(*changed, overoptimization=snapshots(over=(-0.2, 0.2), checkpoint=0))
    entries = [{**e, "subject": method if e["subject"] == "ppo" else e["subject"]} for e in report["estimates"]]
    recipe = {"evaluate": {"prompts": 300}, method: section or {}}
    report |= {"estimates": entries, "provenance": report["provenance"] | {"recipe": recipe}}
    found = Known([{**e, "subject": "policy" if e["subject"] == method else e["subject"],
                    "reference": "start" if e["reference"] == "sft" else e["reference"]} for e in entries],
                  report, method)  # fmt: skip
    for entry in found.estimates:
        entry["subject"] = "start" if entry["subject"] == "sft" else entry["subject"]
    return {step.rule: step.remedy for rule in RULES for step in rule(found)}


@pytest.mark.parametrize("method", list(METHODS))
def test_every_key_that_is_named_is_one_of_the_methods_section(method: str) -> None:
    steps = remedies_of(method, *FAULTY) | remedies_of(method, *STUCK)
    assert {"hacked", "best_snapshot", "side_lost", "lost_language", "longer", "cut_off", "unmoved"} <= steps.keys()
    known = {f.name for f in dataclasses.fields(config_class_of(method))} | option_names(method)
    named = {rule: re.findall(rf"\b{method}\.(\w+)", remedy) for rule, remedy in steps.items()}
    assert {rule: keys for rule, keys in named.items() if set(keys) - known} == {}
    for rule in ("hacked", "best_snapshot", "side_lost", "lost_language", "unmoved"):
        assert named[rule], rule


def test_what_a_method_has_not_is_not_asked_of_it() -> None:
    """TRL's GRPO holds nothing to the start, best of n has no penalty, DPO neither samples nor is paid by a model."""
    grpo, dpo, best = (remedies_of(method, *FAULTY) for method in ("grpo", "dpo", "best_of_n"))
    assert "Raise grpo.max_completion_length, or grpo.missing_eos_penalty" in grpo["cut_off"]
    assert grpo["hacked"] == "Raise grpo.beta, or stop earlier: the reward model is being fooled."
    assert remedies_of("grpo", *STUCK)["unmoved"] == "Raise grpo.total_episodes or grpo.learning_rate."
    held = remedies_of("grpo", *STUCK, section={"beta": 0.1})["unmoved"]
    assert held == "Lower grpo.beta (it is 0.1), or raise grpo.total_episodes or grpo.learning_rate."
    assert remedies_of("rloo", *STUCK)["unmoved"].startswith("Lower rloo.beta, or raise")
    assert remedies_of("kto", *STUCK)["unmoved"].endswith("or raise kto.num_train_epochs or kto.learning_rate.")
    assert "reward model" not in dpo["hacked"] + dpo["no_better_than_choosing"]
    assert dpo["longer"] == "Add pairs whose better reply is the shorter one, or raise dpo.beta."
    assert dpo["cut_off"].startswith("Raise evaluate.response_length, or train sft")
    assert best["hacked"].startswith("Lower best_of_n.num_train_epochs or best_of_n.learning_rate, or stop earlier")


def test_a_world_has_rows_under_keys_of_its_own_and_an_evaluation_by_hand_its_options() -> None:
    report = report_of(LESS_HARM, estimate("gold_gain", 0.1, -0.1, 0.3))
    report["provenance"]["recipe"] = RECIPE | {"world": {"preferences": 9000}}
    steps = {step["rule"]: step["remedy"] for step in next_steps(report)}
    assert "Give world.preferences more" in steps["harm_refused_less"]
    assert "with world.evaluation_prompts" in steps["unproven"]
    report["provenance"]["recipe"] = {"policy": {"kind": "model"}, "reference": {}, "limit": 200}
    steps = {step["rule"]: step["remedy"] for step in next_steps(report)}
    assert "ppo.side_guard" in steps["harm_refused_less"]
    assert "Set --limit to about 1,700 (it is 200)" in steps["unproven"]  # 200 * 8.17 = 1,635


@pytest.mark.parametrize(("method", "key"), [("rloo", "rloo.beta"), ("sft", "sft.num_train_epochs")])
def test_a_snapshot_or_the_sft_model_evaluated_by_hand_has_the_keys_of_what_made_it(method: str, key: str) -> None:
    report = report_of(*FAULTY, LESS_HARM, estimate("over_refusal_change", 0.2, 0.1, 0.3, "scary"))
    for entry in report["estimates"]:
        entry["subject"] = "step-4" if entry["subject"] == "ppo" else entry["subject"]
    report["provenance"]["recipe"] = {"policy": {"kind": "model", "method": method}, "reference": {}, "limit": 200}
    steps = {step["rule"]: step["remedy"] for step in next_steps(report)}
    assert key in steps["lost_language"]
    assert ("hacked" in steps) is (method != "sft")
    said = " ".join(steps.values())
    assert "ppo." not in said
    assert ("pair" in said) is (method != "sft")  # of which it knows nothing
    assert ("demonstrations" in steps["harm_refused_less"]) is (method == "sft")


def test_the_page_and_the_markdown_say_it() -> None:
    report = report_of(LESS_HARM)
    report["next"] = next_steps(report)
    for text in (render_html(report), render_markdown(report)):
        assert "What to do next" in text
        assert "side\\_guard: stop" in text or "side_guard: stop" in text
    assert "What to do next" not in render_html(report | {"next": []})
