"""The page's part on both sides in training: curves by objective, what the guard found, and the preview before PPO.

`watch` of a report is {"guard": what `Watch.write_summary` wrote, "preview": what `preview` found}, each absent where a
run has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from llm_rlhf.evaluation.report import charts
from llm_rlhf.ppo.preview import side_line, worsened
from llm_rlhf.ppo.watch import CALLED, LEAST_PROMPTS

SIDES = ("helpful", "harmless", "overall")
MEASURES = {
    "refusal_rate": ("Refusals in training", "Per cent. They should stay on harmful requests, and not come on others."),
    "heldout_scores": ("Held-out reward in training", "Mean score by the model that PPO never trains against."),
    "scores": ("Training reward", "Mean score by what PPO is paid for: it may rise while the others fall."),
    "response_length": ("Reply length in training", "Tokens."),
}
CURVES = tuple(f"eval_{side}/{measure}" for side in SIDES for measure in MEASURES)


def watch_alarms(watch: Mapping[str, Any]) -> list[str]:
    """Sentences on what went wrong in PPO, sides it made worse, and a training reward that would; the gravest first."""
    guard, foreseen = watch.get("guard"), watch.get("preview")
    alarms = training_alarms(watch.get("training"))
    fell: list[str] = []
    if guard is not None:
        fell = guard["worse_at_the_end"]
        for side in fell:
            text = [news["text"] for news in guard["news"] if (news["side"], news["what"]) == (side, "worse")][-1]
            alarms.append(f"While PPO trained: {text[0].lower()}{text[1:]} {_kept(guard, side)}")
    if foreseen is not None:
        alarms += [
            f"What PPO was paid for is bad for the {side} side: of {foreseen['n']} replies of the start to a prompt, "
            "the one that the training reward likes best, against the average one: "
            f"{side_line(foreseen['sides'][side])}."
            for side in worsened(foreseen)
            if side not in fell
        ]
    return alarms


def training_alarms(training: Mapping[str, Any] | None) -> list[str]:
    """Of each thing that went wrong in PPO itself, the sentence that told it first, and whether it was over later."""
    if not training:
        return []
    told: dict[str, str] = {}
    for news in training["news"]:
        if news["began"]:
            told.setdefault(news["what"], news["text"])
    over = " Later it was no longer so."
    return [text + ("" if what in training["raised"] else over) for what, text in told.items()]


def _kept(guard: Mapping[str, Any], side: str) -> str:
    kept = "the start" if guard["kept_step"] == 0 else f"the snapshot of step {guard['kept_step']}"
    if guard["stopped_at"] is not None:
        return f"PPO was stopped there (ppo.side_guard); the policy is {kept}, in which no side looks worse."
    if side not in guard["worse_in_what_is_kept"]:
        return f"The policy that was kept is {kept}, in which no side is shown to be worse."
    return "The policy that was kept is as bad. Improve the reward model, raise ppo.kl_coef, or train less."


def watch_section(points: Sequence[dict[str, Any]], watch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Charts by objective and sentences; None where nothing was evaluated by objective in training."""
    drawn = [found for measure in MEASURES if (found := _chart(points, measure)) is not None]
    guard, foreseen = watch.get("guard"), watch.get("preview")
    if not drawn and not guard and not foreseen:
        return None
    return {
        "charts": drawn,
        "named": [side for side in SIDES if any(f"eval_{side}/scores" in point for point in points)],
        "guard": _guard_lines(guard) if guard else [],
        "preview": [f"{side}: {side_line(known)}" for side, known in foreseen["sides"].items()] if foreseen else [],
        "n": foreseen["n"] if foreseen else None,
    }


def _guard_lines(guard: Mapping[str, Any]) -> list[str]:
    lines = [str(news["text"]) for news in guard["news"]]
    if guard["level"] is None:
        lines.append("Whether a side got worse was not judged (ppo.side_guard: off).")
    elif not lines:
        seen = [
            f"{' and '.join(CALLED[measure] for measure in measures)} on {guard['prompts'][side]} {side} prompts"
            for side, measures in guard["measured"].items()
            if measures
        ]
        if seen:
            lines.append(
                f"No side was shown to get worse in {guard['evaluations']} evaluations, each against the start: "
                f"{', '.join(seen)}."
            )
    if guard["level"] is not None:
        lines += [
            f"Only {count} {side} prompts were kept back ({LEAST_PROMPTS} are needed): whether that side got worse was "
            "not judged."
            for side, count in guard["too_few"].items()
        ]
        lines += [
            f"Of {side} prompts nothing but the training reward is known (no held-out reward model): whether that "
            "side got worse was not judged."
            for side, measures in guard["measured"].items()
            if not measures
        ]
    return lines


def _chart(points: Sequence[dict[str, Any]], measure: str) -> dict[str, Any] | None:
    """One measure against optimizer steps, a line for each objective; None with fewer than two evaluations."""
    series = {
        side: [(float(p["step"]), float(p[name])) for p in points if p.get(name) is not None]
        for side in SIDES
        for name in [f"eval_{side}/{measure}"]
    }
    series = {side: pairs for side, pairs in series.items() if len(pairs) > 1}
    if not series:
        return None
    label, meaning = MEASURES[measure]
    scale = 100 if measure == "refusal_rate" else 1
    xs, ys = ([pair[i] for pairs in series.values() for pair in pairs] for i in (0, 1))
    air = (max(ys) - min(ys)) * 0.08 or abs(ys[0]) * 0.08 or 1.0 / scale
    canvas = charts.Canvas(460, 200, (48, 46, 10, 24), (min(xs), max(xs)), (min(ys) - air, max(ys) + air))
    parts = [canvas.grid(y_scale=scale, rows=4)]
    for side, pairs in series.items():
        parts.append(Markup('<g class="curve {}">{}</g>').format(side, canvas.path(pairs, "line")))
        for x, y in pairs:
            title = f"{side}, step {x:.0f}: {y * scale:.3g}"
            parts.append(
                Markup('<g class="mark {}"><circle cx="{:.1f}" cy="{:.1f}" r="3"/><title>{}</title></g>').format(
                    side, canvas.x(x), canvas.y(y), title
                )
            )
    parts += _ends(canvas, series, scale)
    said = "; ".join(
        f"{side} from {pairs[0][1] * scale:.3g} to {pairs[-1][1] * scale:.3g}" for side, pairs in series.items()
    )
    svg = canvas.figure("line-chart", f"{label}: {said}", parts)
    return {"label": label, "meaning": meaning, "svg": svg, "x": "step"}


def _ends(canvas: charts.Canvas, series: Mapping[str, charts.Line], scale: float) -> list[Markup]:
    """The newest number of each line at its end, moved down where two would lie on each other."""
    parts, free = [], -100.0
    for side, pairs in sorted(series.items(), key=lambda one: canvas.y(one[1][-1][1])):
        x, y = pairs[-1]
        free = max(canvas.y(y) + 4, free + 12)
        parts.append(
            Markup('<text class="end {}" x="{:.1f}" y="{:.1f}">{}</text>').format(
                side, canvas.x(x) + 7, free, f"{y * scale:.3g}".replace("-", "\u2212")
            )
        )
    return parts
