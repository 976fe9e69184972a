"""The page's section on over-optimisation: gains against distance, of the snapshots and of the best of n."""

import re
from typing import Any

from llm_rlhf.evaluation.report import charts
from llm_rlhf.evaluation.report.labels import subject_label
from llm_rlhf.evaluation.report.numbers import (
    MINUS,
    number,
)

_HYPHEN = re.compile(r"-(?=\d)")  # before a digit: a minus
DISTANT = {"reward": "Training reward", "heldout": "Held-out reward", "gold": "True score"}  # each has its colour


def distance(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Every judge's gain over the start against how far the policy went, and where the judges part."""
    if found is None or len(found["points"]) < 2:
        return None
    sampled = found.get("best_of_n")
    courses = []
    for name, label in DISTANT.items():
        if name in found["points"][0]:
            fit = found["fits"][name]
            curve = [tuple(pair) for pair in fit["curve"]] if fit else []
            courses.append(charts.Course(name, label, _gains(found["points"], name), curve, _band(found, name)))
            if sampled is not None:
                of_n = f"{label}, best of n"
                courses.append(charts.Course(name, of_n, _gains(sampled["points"], name), trained=False))
    surest = list(found["parting"].values())[-1:]  # none where the training reward alone was asked
    alarm = [parting["distance"]["estimate"] for parting in surest if parting["alarm"]]
    return {
        "svg": charts.against_distance(courses, alarm[0] if alarm else None),
        "named": [(course.kind, course.label) for course in courses if course.trained],
        "messages": [
            {"judge": DISTANT[judge], "text": _HYPHEN.sub(MINUS, known["message"])}
            for judge, known in found["parting"].items()
        ],
        "best_of_n": _against_best(sampled, found.get("start")) if sampled is not None else None,
        "prompts": found["prompts"],
        "bands": any(course.band for course in courses),
        "alarm": bool(alarm),
    }


def _gains(points: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    return [(point["sqrt_kl"], point[name] - points[0][name]) for point in points]


def _band(found: dict[str, Any], name: str) -> list[tuple[float, float, float]]:
    """Distance and both ends of the gain's interval, of each snapshot; none in reports of earlier versions."""
    gains = found.get("gains", {}).get(name, [])
    return [
        (point["sqrt_kl"], gain["low"], gain["high"])
        for point, gain in zip(found["points"], gains, strict=False)
        if gain["low"] is not None
    ]


def _against_best(found: dict[str, Any], start: str | None) -> dict[str, Any]:
    """The policy against the best of n replies of what its training began from, by every judge, in words.

    Args:
        start: its name in the report; None: that of what the policy is compared with.
    """
    halves = [(o["high"] - o["low"]) / 2 for o in found["policy_over_best"].values() if o["low"] is not None]
    half = min((width for width in halves if width > 0), default=0.0)  # of all rows, so that their digits are alike
    lines = []
    for name, label in DISTANT.items():
        if name not in found["policy_over_best"]:
            continue
        over, k = found["policy_over_best"][name], found["as_good_as"][name]
        gain = found["points"][-1][name] - found["points"][0][name]
        bounds = (
            [] if over["low"] is None else [number(over[end], "score", half, signed=True) for end in ("low", "high")]
        )
        lines.append(
            {
                "judge": label,
                "kind": name,
                "gain": number(gain, "score", half, signed=True),
                "over": number(over["estimate"], "score", half, signed=True),
                "interval": f"[{', '.join(bounds)}]" if bounds else "",
                "as_good_as": f"over {found['n']}" if k is None else str(k),
            }
        )
    return {
        "n": found["n"],
        "lines": lines,
        "start": subject_label(start or "start"),
        "policy": subject_label("policy"),
    }
