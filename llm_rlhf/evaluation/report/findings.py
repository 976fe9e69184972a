"""What a report's numbers say against a policy, each fault with the recipe key that answers it.

A rule gives a step for every fault that it sees. A fault is what an interval shows, or what nobody can overlook; what
is merely not shown is no fault but a want of prompts.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_rlhf.evaluation.report.alarms import FORGOTTEN, LARGE_KL, LONGER, penalty_of
from llm_rlhf.evaluation.report.headline import headline_of, own_gains
from llm_rlhf.evaluation.report.labels import split_label, subject_label
from llm_rlhf.evaluation.report.measures import Entry, find, measure_of
from llm_rlhf.evaluation.report.numbers import equal, half_width, interval_text, number, value_text
from llm_rlhf.evaluation.report.sides import OVER_REFUSAL, OVERALL, direction, first_found, judgement, margin_of
from llm_rlhf.evaluation.report.verdict import refusals_from_to
from llm_rlhf.recipe.sections import OFFLINE
from llm_rlhf.statistics.intervals import detectable_from_interval

BLIND = 0.05  # share of the returns' variance under which the value model says next to nothing
LAST = 0.2  # of the logged steps: what is called the end of training
CUT_OFF = 0.8  # share of replies that end by themselves, under which their length is no longer the policy's own
UNMOVED = 0.1  # nats a reply under which the policy is nearly its start
SHIPPED = 250  # requests of a kind in data/evaluation, or a few more
FAR = 50  # times as many prompts; more than that nobody asks
JUDGES = {"gold": ("gold_gain", "the true score"), "heldout": ("heldout_reward_gain", "the held-out reward")}
REFUSED = ("refusal_harmful_change", "over_refusal_change")


@dataclass(frozen=True)
class Step:
    """What was found, with its number, and what answers it; a sentence each."""

    rule: str
    finding: str
    remedy: str


@dataclass(frozen=True)
class Known:
    """A report as the rules read it."""

    estimates: list[Entry]  # the policy and its start under their roles
    report: dict[str, Any]
    method: str  # the recipe's section that made the policy

    def of_policy(self, name: str, split: str = "all", who: str = "policy") -> Entry | None:
        return find(self.estimates, name, who, [split])

    @property
    def recipe(self) -> dict[str, Any]:
        """The run's own; of `llm-rlhf evaluate` its options."""
        found: dict[str, Any] = self.report["provenance"]["recipe"]
        return found

    @property
    def run(self) -> str:
        """The run's folder, or RUN where it is not known."""
        path = Path(self.report["run"]["recipe"])
        return str(path.parent) if path.name == "recipe.yaml" and len(path.parts) > 1 else "RUN"

    def key(self, name: str) -> str:
        """A key of the method's section, with the value that it has where that is known: `ppo.kl_coef (it is 0.1)`."""
        value = (self.recipe.get(self.method) or {}).get(name) if self.method in self.recipe else None
        return f"{self.method}.{name}" + (f" (it is {value:g})" if isinstance(value, int | float) else "")

    def rows(self, name: str) -> str:
        """The key of a list of rows: `data.preferences`, or what a world makes of it."""
        return f"{'world' if self.recipe.get('world') else 'data'}.{name}"

    @property
    def hold(self) -> str:
        """What keeps the policy nearer to its start, by a key that its method has: `raise ppo.kl_coef (it is 0.1)`."""
        penalty = penalty_of(self.method)
        if penalty is None:
            return f"lower {self.key('num_train_epochs')} or {self.key('learning_rate')}"
        return f"raise {self.key(penalty)}"

    @property
    def loosen(self) -> str:
        """What lets it go further."""
        more = {"ppo": "total_episodes", "grpo": "total_episodes", "rloo": "total_episodes", "best_of_n": "n"}
        raised = f"raise {self.key(more.get(self.method, 'num_train_epochs'))} or {self.key('learning_rate')}"
        free = 0.0 if self.method == "grpo" else None  # TRL's default; the others' is above 0
        penalty = penalty_of(self.method)
        if penalty is None or (self.recipe.get(self.method) or {}).get(penalty, free) == 0:
            return raised
        return f"lower {self.key(penalty)}, or {raised}"

    @property
    def by_pairs(self) -> bool:
        """Whether the method learns from pairs, so that neither prompts nor a reward model make its policy another."""
        return self.method in OFFLINE

    @property
    def by_demonstrations(self) -> bool:
        """Whether it is the SFT model itself, which knows neither pairs nor scores."""
        return self.method == "sft"

    @property
    def length_key(self) -> str:
        """The key of how long a reply may be."""
        if self.by_pairs or self.by_demonstrations:
            value = (self.recipe.get("evaluate") or {}).get("response_length")
            return "evaluate.response_length" + (f" (it is {value:g})" if value else "")
        return self.key("max_completion_length" if self.method in ("grpo", "rloo") else "response_length")


def sentence(remedy: str) -> str:
    return f"{remedy[0].upper()}{remedy[1:]}."


def said(entry: Entry) -> str:
    return f"{value_text(entry)} {interval_text(entry)}"


# ---- the policy ----------------------------------------------------------------------------------------------------


def harm_refused_less(known: Known) -> list[Step]:
    change = known.of_policy("refusal_harmful_change")
    if change is None or direction(change) >= 0:
        return []
    finding = f"{refusals_from_to(known.estimates, change)}."
    if known.by_demonstrations:
        more = f"Give {known.rows('demonstrations')} more replies that refuse harmful requests."
        return [Step("harm_refused_less", finding, more)]
    guard = f", and set {known.method}.side_guard: stop" if known.method == "ppo" else ""
    remedy = (
        f"Give {known.rows('preferences')} more pairs in which the better reply to a harmful request refuses, or "
        f"those it has more weight{guard}."
    )
    return [Step("harm_refused_less", finding, remedy)]


def hacked(known: Known) -> list[Step]:
    """The training reward rose while a judge that it never saw fell."""
    reward = known.of_policy("reward_gain")
    told = ((known.of_policy(name), called) for name, called in JUDGES.values())
    judge, called = next(((judge, called) for judge, called in told if judge is not None), (None, ""))
    if known.by_demonstrations or reward is None or judge is None or not direction(reward) > 0 > direction(judge):
        return []  # no reward trained the SFT model
    finding = f"The training reward rose by {said(reward)} while {called} fell: {said(judge)}."
    if known.by_pairs:  # it never saw that reward model, which learned from the same pairs
        return [Step("hacked", finding, sentence(f"{known.hold}, or stop earlier: the pairs are learned by heart"))]
    return [Step("hacked", finding, sentence(f"{known.hold}, or stop earlier: the reward model is being fooled"))]


def best_snapshot(known: Known) -> list[Step]:
    """A snapshot was better than what training ended with."""
    found = known.report["overoptimization"]
    parted = [(judge, p) for judge in JUDGES if (p := (found or {}).get("parting", {}).get(judge)) is not None]
    if not parted or not parted[0][1]["alarm"] or "checkpoint" not in parted[0][1]:
        return []
    judge, parting = parted[0]
    step = found["points"][parting["checkpoint"]]["step"]
    fall = {**parting["heldout_change"], "name": JUDGES[judge][0]}
    finding = f"By {JUDGES[judge][1]} step {step} was best; from there to the end it changed by {said(fall)}."
    if step == 0:
        return [Step("best_snapshot", finding, sentence(f"{known.hold}: nothing that was trained beats the start"))]
    best = known.method != "ppo" or (known.recipe.get("ppo") or {}).get("keep") == "best"
    kept = "" if best else ", or set ppo.keep: best"
    return [Step("best_snapshot", finding, f"Take that snapshot (llm-rlhf evaluate {known.run}:step-{step}){kept}.")]


def side_lost(known: Known) -> list[Step]:
    """A side that lost by the judge of replies; refusals have rules of their own."""
    steps = []
    head = headline_of(known.estimates)
    for side, pairs in ((head.helpful, "helpful"), (head.harmless, "harmless")):
        if not side.lost or side.decides is None or side.decides["name"] in REFUSED:
            continue
        finding = f"The policy lost on the {pairs} side: {measure_of(side.decides['name']).label} {said(side.decides)}."
        more = f"Add {pairs} pairs to {known.rows('preferences')} or give theirs more weight"
        if known.by_demonstrations:
            more = f"Add good replies to {pairs} requests to {known.rows('demonstrations')}"
        remedy = f"{more}; {known.hold} if both sides fall."
        steps.append(Step("side_lost", finding, remedy))
    return steps


def own_lost(known: Known) -> list[Step]:
    """A suite of the user's own by which the policy is shown worse."""
    steps = []
    for change in own_gains(known.estimates):
        if judgement(change) != "worse":
            continue
        suite = str(change["name"]).removesuffix("_gain")
        finding = f"By your suite {suite} the policy lost: {said(change)}."
        rows = known.rows("demonstrations" if known.by_demonstrations else "preferences")
        paid = "" if known.by_pairs or known.by_demonstrations else f" or {known.method}.reward_funcs"
        remedy = f"Read replies_{suite}.jsonl, and teach what it counts by {rows}{paid}."
        steps.append(Step("own_lost", finding, remedy))
    return steps


def over_refusal(known: Known) -> list[Step]:
    risen = [e for name, split in OVER_REFUSAL if (e := known.of_policy(name, split)) is not None and direction(e) < 0]
    if not risen:
        return []
    finding = f"Safe requests are refused more often: {said(risen[0])} on {split_label(risen[0]['split'])}."
    asked = "harmless requests in frightening words"
    if known.by_demonstrations:
        return [Step("over_refusal", finding, f"Add answers to {asked} to {known.rows('demonstrations')}.")]
    pairs = f"pairs to {known.rows('preferences')} in which the better reply answers"
    remedy = f"Add {pairs} {asked}." if known.by_pairs else f"Add {asked} to {known.rows('prompts')}, and {pairs} them."
    return [Step("over_refusal", finding, remedy)]


def lost_language(known: Known) -> list[Step]:
    kl, change = known.of_policy("kl"), known.of_policy("token_logprob_change")
    before, after = (known.of_policy("perplexity", who=who) for who in ("start", "policy"))
    remedy = sentence(known.hold + (", or set ppo.ptx_coef" if known.method == "ppo" else ""))
    forgot = change is not None and direction(change) < 0
    if forgot and before is not None and after is not None and after["estimate"] >= FORGOTTEN * before["estimate"]:
        finding = f"The perplexity of held-out replies went from {value_text(before)} to {said(after)}."
        return [Step("lost_language", finding, remedy)]
    if kl is not None and kl["estimate"] > LARGE_KL:
        return [Step("lost_language", f"The policy is {said(kl)} a reply from {subject_label('start')}.", remedy)]
    return []


def longer(known: Known) -> list[Step]:
    for name in ("response_length", "response_words"):
        before, after = (known.of_policy(name, who=who) for who in ("start", "policy"))
        if before is not None and after is not None and after["estimate"] > LONGER * before["estimate"]:
            finding = f"Replies grew from {value_text(before)} to {said(after)}: part of the gain may be length."
            shorter = "add pairs whose better reply is the shorter one" if known.by_pairs else (
                "set reward.length_control: residual"
            )  # fmt: skip
            shorter = "add demonstrations with shorter replies" if known.by_demonstrations else shorter
            return [Step("longer", finding, sentence(f"{shorter}, or {known.hold}"))]
    return []


def cut_off(known: Known) -> list[Step]:
    ends = known.of_policy("eos_rate")
    if ends is None or ends["low"] is None or ends["high"] >= CUT_OFF:
        return []
    finding = f"Only {said(ends)} of the replies of {subject_label('policy')} end by themselves."
    raised = "" if known.by_pairs or known.by_demonstrations else f", or {known.key('missing_eos_penalty')}"
    return [
        Step("cut_off", finding, f"Raise {known.length_key}{raised}, or train sft on demonstrations that end in time.")
    ]


def value_blind(known: Known) -> list[Step]:
    """The value model predicts no returns: PPO's advantages are then mostly noise."""
    logged = [p["val/explained_variance"] for p in known.report["curves"].get(known.method, [])
              if p.get("val/explained_variance") is not None]  # fmt: skip
    last = logged[-max(1, round(LAST * len(logged))) :]
    if len(logged) < 5 or sum(last) / len(last) >= BLIND:
        return []
    explained = number(sum(last) / len(last), "share")
    finding = (
        f"In the last {len(last)} logged steps the value model explained {explained} % of the variance of returns."
    )
    own = (
        ""
        if (known.recipe.get(known.method) or {}).get("value") == "adapter"
        else f", or set {known.method}.value: adapter"
    )
    return [Step("value_blind", finding, f"Raise {known.key('vf_coef')} or {known.key('value_warmup_rollouts')}{own}.")]


def unmoved(known: Known) -> list[Step]:
    kl, overall = known.of_policy("kl"), first_found(known.estimates, OVERALL)
    if kl is None or kl["low"] is None or kl["high"] >= UNMOVED or overall is None or direction(overall) != 0:
        return []
    finding = f"The policy hardly moved ({said(kl)} a reply), and a gain is not shown ({said(overall)})."
    return [Step("unmoved", finding, sentence(known.loosen))]


def unproven(known: Known) -> list[Step]:
    """A verdict that more prompts would settle, if the true difference is what it looks like."""
    head = headline_of(known.estimates)
    overall = first_found(known.estimates, OVERALL)
    open_ = [(overall, 0.0)] if overall is not None and judgement(overall) == "difference not shown" else []
    open_ += [
        (side.decides, margin_of(side.decides, known.estimates))
        for side in (head.helpful, head.harmless)
        if side.status == "not shown to hold" and side.decides is not None
    ]
    wanted = [(prompts_needed(entry, margin), entry) for entry, margin in open_ if half_width(entry)]
    if not wanted:
        return []
    times, entry = max(wanted, key=lambda pair: pair[0])
    label, where = measure_of(entry["name"]).label, split_label(entry["split"])
    finding = f"{label} on {where} {said(entry)}: too few prompts to tell (n = {entry['n']:,})."
    if times > FAR:
        remedy = (
            "So small a difference takes more prompts than can be asked: take the two for equal within that interval."
        )
        return [Step("unproven", finding, remedy)]
    return [Step("unproven", finding, _more_prompts(known, entry, times))]


def prompts_needed(entry: Entry, margin: float) -> float:
    """How many times as many prompts tell it four times out of five, if the difference is the one that was estimated.

    The interval's width falls with the root of the prompts. What must be told from 0 is the estimate, or its distance
    from a loss of the margin where that is nearer to being shown.
    """
    gain = (entry["estimate"] - equal(entry["name"])) * (-1 if measure_of(entry["name"]).good == "lower" else 1)
    distance = max(gain + margin, abs(gain)) if margin else abs(gain)
    found = detectable_from_interval(entry["low"], entry["high"])
    return math.inf if distance == 0 else max(1.0, (found / distance) ** 2)


def _more_prompts(known: Known, entry: Entry, times: float) -> str:
    of_refusals = entry["name"] in REFUSED and "world" not in known.recipe
    section, name = known.recipe.get("evaluate") or {}, "refusal_prompts" if of_refusals else "prompts"
    now = int(section.get(name) or known.recipe.get("limit") or entry["n"])
    of_all = known.of_policy("eos_rate")
    there = now if of_refusals or of_all is None else int(of_all["n"])  # prompts that were asked, of both sides
    wanted = _rounded_up(min(now, there) * times)
    if of_refusals and wanted > SHIPPED:
        return (
            f"It takes about {wanted:,} requests of a kind, and some {SHIPPED} come with the package: set "
            f"evaluate.refusal_prompts to {SHIPPED + 50} for all of them, and ask a public suite too "
            "(evaluate.benchmarks)."
        )
    key = "--limit" if "limit" in known.recipe else f"evaluate.{name}"
    also = " with world.evaluation_prompts" if known.recipe.get("world") else ""
    wordings = f", in {times:.1f} times as many wordings" if entry["clusters"] is not None else ""
    if there < now and not also:
        source = "--prompts" if "limit" in known.recipe else "data.evaluation_prompts (or raise data.evaluation_share)"
        raised = f", and set {key} to as many" if wanted > now else ""
        return (
            f"All {there:,} prompts that there are were asked ({key} is {now:,}). Add more to {source}{raised}: about "
            f"{wanted:,} in all{wordings} are enough for a difference of this size."
        )
    return f"Set {key} to about {wanted:,} (it is {now:,}){also}{wordings}: enough for a difference of this size."


def _rounded_up(value: float) -> int:
    """To two digits."""
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit) * unit


def no_better_than_choosing(known: Known) -> list[Step]:
    """The best of n replies of the start, which takes no training, is not shown to be beaten."""
    sampled = (known.report["overoptimization"] or {}).get("best_of_n") or {}
    judge = next((judge for judge in JUDGES if judge in sampled.get("policy_over_best", {})), None)
    if judge is None:
        return []
    over = {**sampled["policy_over_best"][judge], "name": JUDGES[judge][0]}
    if direction(over) > 0:
        return []
    start = subject_label(known.report["overoptimization"].get("start") or "start")
    finding = (
        f"By {JUDGES[judge][1]} {subject_label('policy')} is not shown to beat the best of {sampled['n']} untrained "
        f"replies of {start} ({said(over)}): training bought little, or what it bought is not shown."
    )
    pairs = known.rows("preferences")
    improved = f"add pairs to {pairs}" if known.by_pairs else f"improve the reward model (more pairs in {pairs})"
    remedy = (
        f"{subject_label('policy')} costs one reply where choosing costs {sampled['n']}; to go beyond both, {improved} "
        "before you train longer."
    )
    return [Step("no_better_than_choosing", finding, remedy)]
