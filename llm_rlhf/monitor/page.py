"""What a monitor found as people read it: a table for a terminal, and one self-contained HTML page with its chart."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup
from rich.table import Table

from llm_rlhf.evaluation.report.charts import ticks
from llm_rlhf.monitor.drift import NAMES, SHARES, Alarm, Measured
from llm_rlhf.monitor.report import Monitored
from llm_rlhf.monitor.rows import REASONS, counted

DRAWN = ("reward", "heldout_reward", "refusal", "thumbs_up")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 900, 190, 60, 16, 14, 34  # of a panel, in units of its drawing
LABELS = 12  # dates below a panel, at most
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")


def value_text(name: str, value: float) -> str:
    """Shares in per cent, lengths to a tenth, scores to a hundredth."""
    if name in SHARES:
        return f"{100 * value:.1f}\u202f%"
    return f"{value:.1f}" if name == "response_length" else f"{value:.2f}".replace("-", "\u2212")


def interval_text(found: Measured) -> str:
    if found.low is None or found.high is None:
        return value_text(found.measure, found.estimate)
    low, high = (value_text(found.measure, end).removesuffix("\u202f%") for end in (found.low, found.high))
    return f"{value_text(found.measure, found.estimate)} [{low}, {high}]"


def table(found: Monitored) -> Table:
    """A row a period; a number that alarms is marked."""
    names = _measures(found)
    alarmed = {(alarm.test.period, alarm.test.measure) for alarm in found.alarms}
    drawn = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    drawn.add_column(found.by)
    drawn.add_column("replies", justify="right")
    for name in names:
        drawn.add_column(NAMES[name])
    drawn.add_row("the report", "", *(_of_report(found, name) for name in names), style="dim")
    for period in sorted(set(found.periods)):
        cells = []
        for name in names:
            one = _one(found, period, name)
            mark = " !" if (period, name) in alarmed else ""
            cells.append("" if one is None else interval_text(one) + mark)
        drawn.add_row(period, str(found.periods.count(period)), *cells)
    return drawn


def lines(found: Monitored, chosen: Sequence[tuple[int, list[str]]]) -> list[str]:
    """What is said below the table."""
    told = found.told()["log"]
    read = f"{told['replies']:,} replies of {told['conversations']:,} conversations in {told['lines']:,} lines"
    said = [f"Read: {read}; {told['empty']} of them say nothing; {_thumbs(told['thumbs'])}."]
    said += [f"Not read: {why}, {n} (first in line {found.log.first[why]})." for why, n in found.log.left_out.items()]
    said += found.notes
    said.append(_rule(found))
    said += [f"ALARM {alarm.words}" for alarm in found.alarms]
    if chosen:
        reasons = "; ".join(f"{REASONS[reason]} {n}" for reason, n in counted(chosen).items())
        said.append(f"To look at: {len(chosen)} replies ({reasons}).")
    return said


def html(found: Monitored, chosen: Sequence[tuple[int, list[str]]]) -> str:
    """The page."""
    periods = sorted(set(found.periods))
    panels = [_panel(found, name, periods) for name in DRAWN if any(m.measure == name for m in found.measured)]
    alarmed = Markup("").join(Markup("<li>{}</li>").format(alarm.words) for alarm in found.alarms)
    verdict = (
        Markup('<p class="verdict bad">{} of {} numbers {} drifted</p><ul class="alarms">{}</ul>').format(
            len(found.alarms), len(found.tests), "has" if len(found.alarms) == 1 else "have", alarmed
        )
        if found.alarms
        else Markup('<p class="verdict good">No drift was found</p>')
    )
    said = Markup("").join(Markup("<li>{}</li>").format(line) for line in lines(found, ()) if "ALARM" not in line)
    rows = Markup("").join(_row(found, i, reasons) for i, reasons in chosen)
    look = (
        Markup(
            '<h2>To look at</h2><div class="wide" tabindex="0"><table class="look"><thead><tr><th>why</th>'
            "<th>asked</th><th>answered</th>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(Markup("").join(Markup("<th>{}</th>").format(NAMES[n]) for n in _scores(found)), rows)
        if chosen
        else ""
    )
    return Markup(
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<title>Monitor: {title}</title><style>{style}</style></head><body><main><h1>What {title} answers, by {by}</h1>"
        "{verdict}<h2>Scores and refusals</h2><p>Points with 95\u202f% intervals, replies of one conversation taken "
        "together. The band is the report's own number with its interval; a ring marks what has drifted.</p>{panels}"
        "<h2>All numbers</h2>{table}{look}<h2>How it was measured</h2><ul>{said}</ul></main></body></html>"
    ).format(
        title=found.policy, by=found.by, style=Markup(STYLE), verdict=verdict, panels=Markup("").join(panels),
        table=_table(found, periods), look=look, said=said,
    )  # fmt: skip


def _panel(found: Monitored, name: str, periods: Sequence[str]) -> Markup:
    """One measure over the periods, each with its whiskers, over the report's band."""
    here = [one for one in (_one(found, period, name) for period in periods) if one is not None]
    reference = found.references.get(name)
    ends = [e for one in here for e in (one.low, one.high, one.estimate) if e is not None]
    ends += [e for e in (reference.low, reference.high, reference.value) if e is not None] if reference else []
    low, high = min(ends), max(ends)
    air = (high - low) * 0.08 or 0.1
    low, high = (max(0.0, low - air), min(1.0, high + air)) if name in SHARES else (low - air, high + air)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def x(period: str) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (periods.index(period) + 0.5) / len(periods)

    parts = []
    for tick in ticks(low, high, 4):
        parts.append(
            Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y=y(tick)
            )
            + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                LEFT - 6, y(tick) + 4, f"{100 * tick:.3g}%" if name in SHARES else f"{tick:.3g}".replace("-", "\u2212")
            )
        )
    if reference is not None:
        bounds = reference.low, reference.high
        if bounds[0] is not None and bounds[1] is not None:
            parts.append(
                Markup('<rect class="band" x="{}" width="{}" y="{:.1f}" height="{:.1f}"/>').format(
                    LEFT, WIDTH - LEFT - RIGHT, y(bounds[1]), y(bounds[0]) - y(bounds[1])
                )
            )
        parts.append(
            Markup('<line class="report" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y=y(reference.value)
            )
        )
    alarmed = {alarm.test.period for alarm in found.alarms if alarm.test.measure == name}
    for one in here:
        at = x(one.period)
        if one.low is not None and one.high is not None:
            parts.append(
                Markup('<line class="whisker" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>').format(
                    at, y(one.low), y(one.high)
                )
            )
        ring = Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="9"/>').format(at, y(one.estimate))
        parts.append(
            Markup('<g>{}<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/><title>{}</title></g>').format(
                ring if one.period in alarmed else "", at, y(one.estimate), f"{one.period}: {interval_text(one)}"
            )
        )
    step = -(-len(periods) // LABELS)
    for period in periods[::step]:
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x(period), HEIGHT - 12, period)
        )
    label = f"{NAMES[name]} by {found.by}: " + "; ".join(f"{one.period} {interval_text(one)}" for one in here)
    return Markup(
        '<figure><figcaption>{}</figcaption><svg role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg></figure>'
    ).format(NAMES[name], label, WIDTH, HEIGHT, Markup("").join(parts))


def _table(found: Monitored, periods: Sequence[str]) -> Markup:
    names = _measures(found)
    alarmed: dict[tuple[str, str], Alarm] = {(a.test.period, a.test.measure): a for a in found.alarms}
    head = Markup("").join(Markup("<th>{}</th>").format(NAMES[name]) for name in names)
    first = Markup("").join(Markup("<td>{}</td>").format(_of_report(found, name)) for name in names)
    body = [Markup('<tr class="of-report"><th>the report</th><td></td>{}</tr>').format(first)]
    for period in periods:
        cells = []
        for name in names:
            one, alarm = _one(found, period, name), alarmed.get((period, name))
            text = "" if one is None else interval_text(one)
            bold = Markup("<strong>{} !</strong>").format(text)
            cells.append(Markup("<td>{}</td>").format(bold if alarm else text))
        body.append(
            Markup("<tr><th>{}</th><td>{}</td>{}</tr>").format(
                period, found.periods.count(period), Markup("").join(cells)
            )
        )
    return Markup(
        '<div class="wide" tabindex="0"><table><thead><tr><th>{}</th><th>replies</th>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(found.by, head, Markup("").join(body))


def _row(found: Monitored, i: int, reasons: Sequence[str]) -> Markup:
    reply = found.log.replies[i]
    scores = Markup("").join(
        Markup("<td>{}</td>").format(value_text(n, float(found.read.values[n][i]))) for n in _scores(found)
    )
    return Markup("<tr><td>{}<br><small>{}, line {}</small></td><td>{}</td><td>{}</td>{}</tr>").format(
        "; ".join(REASONS[reason] for reason in reasons), found.periods[i], reply.line, reply.prompt[-1]["content"],
        reply.text, scores,
    )  # fmt: skip


def _measures(found: Monitored) -> list[str]:
    there = {one.measure for one in found.measured}
    return [name for name in NAMES if name in there]


def _scores(found: Monitored) -> list[str]:
    return [name for name in ("reward", "heldout_reward") if name in found.read.values]


def _one(found: Monitored, period: str, name: str) -> Measured | None:
    return next((one for one in found.measured if (one.period, one.measure) == (period, name)), None)


def _of_report(found: Monitored, name: str) -> str:
    reference = found.references.get(name)
    if reference is None:
        return ""
    return interval_text(
        Measured("", name, reference.value, reference.low, reference.high, reference.n, reference.source, reference.n)
    )


def _thumbs(given: dict[str, int]) -> str:
    return f"{given['up']} have thumbs up, {given['down']} down"


def _rule(found: Monitored) -> str:
    if not found.tests:
        return "Nothing was tested."
    anew = (
        f"{len(found.own)} of the log's prompts were answered anew by the policy, which tells other prompts from other "
        "replies."
        if found.own
        else "No prompt was answered anew, so that other prompts cannot be told from other replies."
    )
    return (
        f"{len(found.tests)} numbers were held against others; one alarms where it lies beyond its margin (a tenth of "
        "the scores' standard deviation, 2 points of a share, a tenth of the length) by more than chance explains, 5 % "
        f"for all of them together (Holm). {anew}"
    )
