"""What to do next: a few findings of a report, the gravest first, each with the recipe key that answers it.

The order of RULES is that of gravity. Where no rule sees anything, the one step is what comes after a good run.
"""

from collections.abc import Callable
from typing import Any

from llm_rlhf.evaluation.report import findings, reward_findings
from llm_rlhf.evaluation.report.findings import Known, Step
from llm_rlhf.evaluation.report.headline import BY_OWN, headline_of
from llm_rlhf.evaluation.report.labels import by_role, start_called
from llm_rlhf.evaluation.report.measures import contest, with_own
from llm_rlhf.evaluation.report.numbers import alike
from llm_rlhf.evaluation.report.verdict import has_policy
from llm_rlhf.recipe.sections import METHODS

MOST = 5  # steps; a reader does not take up more

# Losses that are shown come before instruments that cannot be believed, and these before what is merely open.
RULES: tuple[Callable[[Known], list[Step]], ...] = (
    findings.harm_refused_less,
    findings.hacked,
    findings.best_snapshot,
    findings.side_lost,
    findings.own_lost,
    findings.over_refusal,
    findings.lost_language,
    reward_findings.pays_against,
    reward_findings.weak_reward,
    reward_findings.follows_length,
    findings.cut_off,
    findings.longer,
    findings.value_blind,
    findings.unmoved,
    findings.unproven,
    findings.no_better_than_choosing,
    reward_findings.unproven_reward,
)


def next_steps(report: dict[str, Any]) -> list[dict[str, str]]:
    """The report's `next`: at most MOST steps, the gravest first, each {"rule", "finding", "remedy"}."""
    estimates = report["estimates"]
    with start_called(report), with_own(report["own"]), by_role(estimates) as roles, alike(estimates):
        named = [
            {
                **e,
                "subject": roles.get(e["subject"], e["subject"]),
                "reference": roles.get(e["reference"], e["reference"]),
            }
            for e in estimates
        ]
        known = Known(named, report, _method(report, contest(estimates)[0]))
        steps = [step for rule in RULES for step in rule(known)][:MOST] or [_onward(known)]
        return [{"rule": step.rule, "finding": step.finding, "remedy": step.remedy} for step in steps]


def _method(report: dict[str, Any], policy: str) -> str:
    """The recipe's section that made the policy: as it is recorded, else by the policy's name, which is the stage's."""
    recipe = report["provenance"]["recipe"]
    if isinstance(recipe.get("policy"), dict) and (method := recipe["policy"].get("method")):  # of `llm-rlhf evaluate`
        return str(method)
    return policy if policy in ("sft", *METHODS) else "ppo"


def _onward(known: Known) -> Step:
    if not has_policy(known.report["estimates"]):
        return Step(
            "onward", "Nothing here speaks against the reward model.", "Train a policy by it: add a ppo section."
        )
    of_run = known.run != "RUN"
    judge, own = ("evaluate.judge", "evaluate.own") if of_run else ("--judge", "--own")
    word = headline_of(known.estimates).word
    if word == "not measured":
        return Step(
            "unjudged",
            "Nothing here judged the replies: no true score, reward model, judge, refusals or suite of your own.",
            f"Name a judge ({judge}), or a suite of your own ({own}).",
        )
    if word == BY_OWN:
        seed = f", and train another seed ({_other_seed(known)})" if of_run else ""
        return Step(
            "onward",
            "Nothing here asks for a change; but suites of your own alone judged the policy.",
            f"Name a judge where they are not all that counts ({judge}){seed}.",
        )
    if not of_run:
        return Step("onward", "Nothing here asks for a change.", "Ask other prompts (--prompts), or a judge (--judge).")
    return Step(
        "onward",
        "Nothing here asks for a change; but it is one training, and intervals cover prompts alone.",
        f"Train another seed ({_other_seed(known)}), put both on one page (llm-rlhf compare {known.run} "
        f"{known.run}-1), hold the policy to thresholds (llm-rlhf gate {known.run}), and hand it on (llm-rlhf export "
        f"{known.run}).",
    )


def _other_seed(known: Known) -> str:
    return f"llm-rlhf run {known.run}/recipe.yaml seed=1 output_dir={known.run}-1"
