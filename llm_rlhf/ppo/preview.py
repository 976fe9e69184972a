"""Where PPO would push: the best of n replies of the starting policy, chosen by what PPO will be paid.

Before anything is trained, n replies to every prompt kept back are scored. The held-out score and the refusals of the
best one, against those of the average one, show what the training reward asks for, side by side. It is an optimistic
picture: the best of n is no further than log n - (n - 1) / n nats from the start (1.2 for 8), where PPO goes on, and
the prompts are phrased as those that PPO trains on, so it does not tell how much of it holds in other words.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from llm_rlhf.ppo.watch import LEAST_PROMPTS, REFUSALS, Row
from llm_rlhf.statistics.clustered import spread_of
from llm_rlhf.statistics.intervals import numbered

PREVIEW = "preview.json"
MEASURES = {"refusal_rate": "refused", "heldout_scores": "heldout", "scores": "score"}


def preview(samples: Sequence[Mapping[int, Row]], texts: Mapping[int, str]) -> dict[str, Any]:
    """What the best of n replies is, by objective, beside the average one.

    Args:
        samples: n times a reply to every prompt, by the prompt's number.
        texts: the prompts, by the same numbers; equal ones count as one when the interval is made.

    Returns:
        {"n", "sides": {OBJECTIVE: {"prompts", "different_prompts", MEASURE: {"average", "best", "low", "high"}}}}, the
        95 % interval that of best less average (None with one prompt alone), with MEASURE of refusal_rate,
        heldout_scores and scores where they are known. Where several replies are equally the best, their mean counts.
    """
    sides: dict[str, Any] = {}
    numbers = sorted(samples[0])
    for side in sorted({samples[0][number].objective for number in numbers}):
        own = [number for number in numbers if samples[0][number].objective == side]
        found: dict[str, Any] = {"prompts": len(own), "different_prompts": len({texts[number] for number in own})}
        for name, field in MEASURES.items():
            rows = [[getattr(sample[number], field) for sample in samples] for number in own]
            if any(value is None for row in rows for value in row):
                continue
            paid = [[sample[number].paid for sample in samples] for number in own]
            average = [fmean(values) for values in rows]
            best = [
                fmean(value for value, pay in zip(values, pays, strict=True) if pay == max(pays))
                for values, pays in zip(rows, paid, strict=True)
            ]
            half = _half_width([b - a for b, a in zip(best, average, strict=True)], [texts[number] for number in own])
            gain = fmean(best) - fmean(average)
            found[name] = {
                "average": fmean(average),
                "best": fmean(best),
                "low": None if half is None else gain - half,
                "high": None if half is None else gain + half,
            }
        sides[side] = found
    return {"n": len(samples), "sides": sides}


def _half_width(differences: Sequence[float], clusters: Sequence[str]) -> float | None:
    """Of the 95 % interval of the mean, with equal prompts as one cluster each; None where there is only one."""
    spread = spread_of(np.asarray(differences, dtype=np.float64), numbered(clusters))
    return None if spread is None else spread.half_width


def worsened(found: Mapping[str, Any]) -> list[str]:
    """The sides that the best of n would make worse, shown by an interval, where there are prompts enough."""
    bad = []
    for side, known in found["sides"].items():
        if known["prompts"] < LEAST_PROMPTS:
            continue
        signs = {"heldout_scores": -1, **({"refusal_rate": REFUSALS[side]} if side in REFUSALS else {})}
        for name, sign in signs.items():
            bounds = known.get(name)
            if bounds and bounds["low"] is not None and (bounds["high"] < 0 if sign < 0 else bounds["low"] > 0):
                bad.append(side)
                break
    return bad


def preview_lines(found: Mapping[str, Any]) -> list[str]:
    """The preview in words: a line that says what it is, one for each side, and a warning where a side gets worse."""
    n = found["n"]
    lines = [f"Where PPO would push: of {n} replies, the one that the training reward likes best, against the average"]
    lines += [f"  {side}: {side_line(known)}" for side, known in found["sides"].items()]
    if bad := worsened(found):
        lines.append(
            f"  WARNING: what PPO is paid for makes the {' and the '.join(bad)} side worse. Look at the reward model "
            "before you spend PPO on it."
        )
    return lines


def side_line(known: Mapping[str, Any]) -> str:
    """`refusals 57 % -> 12 %, held-out score -0.20 -> 0.11 (32 prompts, 20 different)`."""
    parts = []
    if rate := known.get("refusal_rate"):
        parts.append(f"refusals {100 * rate['average']:.0f} % -> {100 * rate['best']:.0f} %")
    for name, called in (("heldout_scores", "held-out score"), ("scores", "training score")):
        if mean := known.get(name):
            parts.append(f"{called} {mean['average']:.2f} -> {mean['best']:.2f}")
    different = known["different_prompts"]
    counted = f"{known['prompts']} prompts" + (f", {different} different" if different < known["prompts"] else "")
    return f"{', '.join(parts)} ({counted})"
