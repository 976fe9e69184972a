"""What the checks of the reward stage found: told at its end, kept beside it, and able to stop what it would pay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_rlhf.errors import RunError
from llm_rlhf.evaluation.reward_checks import Check, gravest_first
from llm_rlhf.recipe.sections import METHODS, REWARD_CHECKS, Recipe, scored_method, stage_options
from llm_rlhf.run_folder import RunFolder, read_json, write_json

WARNINGS = "warnings.json"


def tell(recipe: Recipe, checks: Sequence[Check], folder: Path) -> None:
    """Write every check to `warnings.json` and print those that were not passed, the gravest first."""
    write_json(folder / WARNINGS, {"checks": [check.as_dict() for check in checks]})
    known = gravest_first([check for check in checks if _gate(recipe, check) != "off"])
    for check in known:
        if check.level != "passed":
            print(f"      {check.level}: {check.text}", flush=True)
    passed = sum(check.level == "passed" for check in known)
    print(f"      {passed} of {len(known)} checks of the reward model passed ({WARNINGS})", flush=True)


def stop_at_gates(recipe: Recipe, run_folder: RunFolder) -> None:
    """Before what is paid: RunError where a check that the recipe would stop at has found a fault. Nothing is changed.

    Raises:
        RunError: it names the faults and what can be done; the finished reward stage stays as it is.
    """
    options = stage_options(recipe, "reward")
    if "stop" not in (options.gates.values() if isinstance(options.gates, dict) else (options.gates,)):
        return
    checks, called = read_checks(run_folder), METHODS[scored_method(recipe) or "ppo"]
    if checks is None:
        raise RunError(
            f"{called} was not started: 'reward.gates' says stop, but {run_folder / 'reward'} was made by a version "
            "that checked nothing. Run with --from reward to make it again, or with reward.gates=warn."
        )
    faults = [check for check in checks if check.level == "warning" and _gate(recipe, check) == "stop"]
    if not faults:
        return
    told = "\n".join(f"  {check.name}: {check.text}" for check in faults)
    raise RunError(
        f"{called} was not started: 'reward.gates' says stop, and the reward stage failed "
        f"{len(faults)} of its checks.\n{told}\nThe reward stage itself is done and stays in {run_folder / 'reward'}. "
        "Make it again with other settings (--from reward), or train against it all the same: reward.gates=warn, or "
        f"{_but_for(options.gates, faults[0].name)} for one check, does not make it again."
    )


def _but_for(gates: Any, check: str) -> str:
    """The override that lets one check pass and leaves the others as they are."""
    if isinstance(gates, dict):
        return f"reward.gates.{check}=warn"
    named = ", ".join(f"{name}: {'warn' if name == check else gates}" for name in REWARD_CHECKS)
    return f"'reward.gates={{{named}}}'"


def read_checks(run_folder: RunFolder) -> list[Check] | None:
    """What the run's reward stage found, the gravest first; None where it was made before there were checks."""
    known: dict[str, Any] | None = read_json(run_folder / "reward" / WARNINGS)
    return None if known is None else gravest_first([Check(**check) for check in known["checks"]])


def report_lines(recipe: Recipe, run_folder: RunFolder, alarms: Sequence[str]) -> list[str]:
    """The report's alarms with what the reward stage found that they do not say, less what the recipe wants unsaid.

    Faults come first, merits that were not shown last; what could not be measured is no alarm (it is in warnings.json).
    """
    checks = read_checks(run_folder) or []
    unsaid = {check.text for check in checks if _gate(recipe, check) == "off"}
    known = [line for line in alarms if line not in unsaid]
    told = [check for check in checks if check.level in ("warning", "note") and check.text not in unsaid]
    faults = [check.text for check in told if check.level == "warning"]
    merits = [check.text for check in told if check.level == "note"]
    return [*faults, *(line for line in known if line not in (*faults, *merits)), *merits]


def _gate(recipe: Recipe, check: Check) -> str:
    found: str = stage_options(recipe, "reward").gate(check.name)
    return found
