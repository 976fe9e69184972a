"""Is a round better than the one that is out? Its policy and its reward models against those of an earlier round.

The policies answer the same evaluation prompts, which stay the same over all rounds, and are compared by the true score
where a world has one, by the held-out reward model of the newer round, which neither was trained against, and by what
they refuse. The reward models read the same held-out pairs of the recipe's own data.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_rlhf.data.checks import normalised_prompt
from llm_rlhf.data.rows import Preference
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.against import OF_THE_POLICY
from llm_rlhf.evaluation.evaluate import evaluate
from llm_rlhf.evaluation.gate import OWN_JUDGE, GateLine, check_gate, stage_checks
from llm_rlhf.evaluation.report.measures import Entry, measure_of, within
from llm_rlhf.evaluation.report.numbers import MINUS, bounds, equal, interval_text, value_text
from llm_rlhf.evaluation.report.sides import OVERALL, first_found
from llm_rlhf.evaluation.request import Evaluation
from llm_rlhf.evaluation.rewards import Rewards
from llm_rlhf.evaluation.subjects import start_of, subject_of
from llm_rlhf.recipe.loading import recipe_of
from llm_rlhf.recipe.sections import Recipe, trains_reward
from llm_rlhf.run_folder import RunFolder, file_digest, read_json, write_json
from llm_rlhf.runs import splits
from llm_rlhf.statistics.clustered import clustered_difference
from llm_rlhf.statistics.intervals import Interval, outcomes

AGAINST, OF = "against", "of.json"  # folder of a round's comparisons; what one was made of
REWARD_GATE = "reward_on_old_data"


def compare(run: Path, other: Path) -> dict[str, Any]:
    """The report of a round's policy over an earlier round's, made once: their replies, and who judged them, kept.

    Raises:
        RecipeError: where the two rounds were not evaluated on the same prompts.
    """
    folder = run / AGAINST / other.name
    of = {one.name: file_digest(one / "evaluate" / "manifest.json") for one in (run, other)}
    if read_json(folder / OF) == of and isinstance(report := read_json(folder / "report.json"), dict):
        return report
    _check_frozen(run, other)
    recipe = recipe_of(run)
    section = recipe.evaluate
    assert section is not None
    asked = Evaluation(
        policy=subject_of(str(run)),
        start=dataclasses.replace(subject_of(str(other)), name=other.name),
        output=folder,
        own=section.own,
        judge=section.judge,
        judge_key_variable=section.judge_key_variable,
        refusals="refusals" in section.suites,
        recipe=recipe,
        cache=run / "cache",
    ).as_the_recipe()
    report = evaluate(asked)
    write_json(folder / OF, of)
    return report


def check_promotion(
    recipe: Recipe, run: Path, report: dict[str, Any], compared: dict[str, Any], other: Path
) -> list[GateLine]:
    """What decides whether a round takes the place of another: a line for each threshold.

    Args:
        recipe: of the rounds.
        report: the round's own, of which its distance from its start and its reward models' checks are taken.
        compared: its policy over the other round's.
    """
    assert recipe.rounds is not None
    own = [e for e in report["estimates"] if e["name"] in OF_THE_POLICY or e["name"].startswith("accuracy_over_")]
    estimates = [e for e in compared["estimates"] if e["name"] not in OF_THE_POLICY] + own
    lines = check_gate(compared | {"estimates": estimates}, recipe.gate, stage_checks(run))
    if recipe.gate.gain is None:
        lines.append(_gain_gate(compared["estimates"]))
    if recipe.rounds.reward_drop is not None and trains_reward(recipe):
        lines.append(_reward_gate(reward_change(run, other), recipe.rounds.reward_drop))
    return lines


def check_first(recipe: Recipe, run: Path, report: dict[str, Any]) -> list[GateLine]:
    """The first round against what its training began from."""
    return check_gate(report, recipe.gate, stage_checks(run))


def check_losses(recipe: Recipe, compared: dict[str, Any], since: str) -> list[GateLine]:
    """Sides and refusals since an earlier round: what each round may lose within its limits must not add up.

    Args:
        compared: the policy over that round's.
        since: what that round is called.
    """
    limits = dataclasses.replace(recipe.gate, kl=None, perplexity_rise=None, reward_model=False, gain=None)
    return [dataclasses.replace(one, text=f"since {since}, {one.text}") for one in check_gate(compared, limits, [])]


def reward_change(run: Path, other: Path) -> Interval:
    """By how much a round's reward model is more often right than another's, on the other's held-out pairs, paired."""
    pairs = splits(recipe_of(other), RunFolder(other, written=False)).evaluation_pairs
    new, old = (outcomes(*_read(one, list(pairs))) for one in (run, other))
    asked = [normalised_prompt(pair.prompt) for pair in pairs]
    return clustered_difference(new, old, asked)


def _read(run: Path, pairs: Sequence[Preference]) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the better and of the worse replies by a run's training reward."""
    recipe, policy = recipe_of(run), subject_of(str(run))
    asked = Evaluation(policy, start_of(policy), run, recipe=recipe).as_the_recipe()
    found = Rewards.of(asked)
    folders = {"reward": found.folders["reward"]}
    rewards = Rewards(folders, found.how, found.trained)
    for _, reader in rewards.loaded(progress=False):
        scores = rewards.combined("reward", reader.of_pairs(pairs)).reshape(-1, 2)
        return scores[:, 0], scores[:, 1]
    raise RecipeError(f"{run} has no reward model to compare.")


def _gain_gate(estimates: list[Entry]) -> GateLine:
    """Some gain, however small, by the best judge that training never saw, unless `gate.gain` asks for more."""
    entry = first_found(estimates, [one for one in OVERALL if one[0] != OWN_JUDGE])
    if entry is None:
        text = "gain: not measured: no judge that training never saw compared the two."
        return GateLine("gain", "FAIL", text, 0.0, measured=False)
    text = (
        f"gain: {within(measure_of(entry['name']).label)} {value_text(entry)} {interval_text(entry)}; it must be shown."
    )
    passed = entry["low"] is not None and bounds(entry)[0] > equal(entry["name"])
    return GateLine("gain", "pass" if passed else "FAIL", text, 0.0, entry["estimate"], entry["low"], entry["high"])


def _reward_gate(change: Interval, points: float) -> GateLine:
    low, high = change.low, change.high
    shown = "" if low is None or high is None else f" [{_points(low)}, {_points(high)}]"
    text = (
        f"{REWARD_GATE}: accuracy on the first round's held-out pairs {_points(change.estimate)} points{shown}, "
        f"n = {change.n}; a loss of {points:g} points must be ruled out."
    )
    passed = low is not None and (low >= 0 or -low < points / 100)
    return GateLine(REWARD_GATE, "pass" if passed else "FAIL", text, points, change.estimate, low, high)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", MINUS)


def _check_frozen(run: Path, other: Path) -> None:
    """RecipeError where two rounds were asked different prompts: then no number of one says anything of the other."""
    asked = []
    for one in (run, other):
        report = read_json(one / "report.json") or {}
        hashes = (report.get("provenance") or {}).get("hashes") or {}
        asked.append({name: digest for name, digest in hashes.items() if name.startswith("prompts")})
    if asked[0] != asked[1]:
        raise RecipeError(
            f"{run} and {other} were evaluated on different prompts, so that they cannot be compared. The evaluation's "
            "sources have changed between the rounds; put them back, or begin the rounds again in another output_dir."
        )
