"""Small SVG charts for the report page: no library, no script, colours from the page's style sheet.

A mark's `kind` is a CSS class (`start`, `policy`, `reward`, ...) that gives its colour, so that light, dark and print
need no second drawing. Strips place things in per cent of their width and stretch with the page; the others scale as a
whole. Every text goes through markupsafe, which escapes it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

Range = tuple[float, float]
Line = Sequence[tuple[float, float]]  # points of a curve

THIN_TO = 300  # points drawn per curve; a screen shows no more
SMOOTH_FROM = 30  # curves with more points than this get a running mean over a faint raw line


@dataclass(frozen=True)
class Mark:
    """A value with its whiskers (None: no whiskers), drawn in the colour of `kind` and named by `label`."""

    kind: str
    label: str
    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A place on the plane: one mark for each axis."""

    kind: str
    label: str
    x: Mark
    y: Mark


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, about as many as asked."""
    span = high - low
    if not span > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def spread(marks: Sequence[Mark], include: Sequence[float] = (), pad: float = 0.08) -> Range:
    """The range that holds all marks with their whiskers, and `include`, with a little air on both sides."""
    values = [v for m in marks for v in (m.value, m.low, m.high) if v is not None] + list(include)
    low, high = min(values), max(values)
    air = (high - low) * pad or abs(high) * pad or 1.0
    return low - air, high + air


def tick_text(value: float, scale: float = 1.0) -> str:
    """A tick's number: no trailing zeros, a true minus sign, thousands and millions shortened."""
    value *= scale
    for limit, suffix in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return tick_text(value / (1e6 if suffix == "M" else 1e3)) + suffix
    return f"{value:.4g}".replace("-", "\u2212")


def strip(marks: Sequence[Mark], extent: Range, rules: Sequence[float] = ()) -> Markup:
    """Marks under each other on one horizontal scale, each with its whiskers; `rules` are vertical dashed lines."""
    low, high = extent
    height = 12 * len(marks) + 10

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    parts = [Markup('<line class="rule" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(at(rule)) for rule in rules]
    for i, mark in enumerate(marks):
        y = 11 + 12 * i
        whisker = Markup("")
        if mark.low is not None and mark.high is not None:
            whisker = Markup('<line class="whisker" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
                at(mark.low), at(mark.high), y=y
            )
        parts.append(
            Markup('<g class="mark {}">{}<circle cx="{}" cy="{}" r="4.5"/><title>{}</title></g>').format(
                mark.kind, whisker, at(mark.value), y, mark.label
            )
        )
    label = "; ".join(mark.label for mark in marks)
    return Markup('<svg class="strip" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        label, height, Markup("").join(parts)
    )


def strip_axis(extent: Range, scale: float = 1.0) -> Markup:
    """The numbers under a column of strips that share `extent`; `scale` is 100 for per cent."""
    low, high = extent
    parts = []
    for tick in ticks(low, high):
        x = 100 * (tick - low) / (high - low)
        anchor = "start" if x < 4 else "end" if x > 96 else "middle"
        parts.append(
            Markup('<line x1="{0:.2f}%" x2="{0:.2f}%" y1="0" y2="4"/>').format(x)
            + Markup('<text x="{:.2f}%" y="16" text-anchor="{}">{}</text>').format(x, anchor, tick_text(tick, scale))
        )
    return Markup('<svg class="axis" aria-hidden="true" width="100%" height="20">{}</svg>').format(
        Markup("").join(parts)
    )


def plane(
    points: Sequence[Point],
    x_label: str,
    y_label: str,
    scale: float = 1.0,
    moves: Sequence[tuple[Point, Point]] | None = None,
) -> Markup:
    """Each point with whiskers both ways, and an arrow for each of `moves` (by default from the first to the last).

    Up and right is better.
    """
    x_range, y_range = spread([p.x for p in points], pad=0.18), spread([p.y for p in points], pad=0.18)
    canvas = Canvas(460, 360, (52, 18, 18, 46), x_range, y_range)
    parts = [
        canvas.grid(x_scale=scale, y_scale=scale),
        Markup('<text class="name" x="{}" y="{}" text-anchor="end">{} \u2192</text>').format(
            canvas.right, canvas.height - 8, x_label
        ),
        Markup('<text class="name" transform="translate(12 {}) rotate(-90)" text-anchor="end">{} \u2192</text>').format(
            canvas.top, y_label
        ),
    ]
    if moves is None:
        moves = [(points[0], points[-1])] if len(points) > 1 else []
    parts += [_arrow(start, end, canvas) for start, end in moves]
    rises = len(points) > 1 and points[-1].y.value >= points[0].y.value
    parts.extend(_plane_point(p, canvas, above=(p is not points[0]) == rises) for p in points)
    label = "; ".join(f"{p.label}: {x_label} {tick_text(p.x.value)}, {y_label} {tick_text(p.y.value)}" for p in points)
    return canvas.figure("plane", label, parts)


def line_chart(
    points: Sequence[dict[str, Any]], metric: str, x: str, kind: str, label: str, scale: float = 1.0
) -> Markup | None:
    """One metric against `x`: raw values, and where there are many a running mean over a faint raw line.

    Points without the metric are left out; fewer than two give None. Where there are more points than a screen shows,
    each bucket keeps its lowest and highest, so that no spike is lost.
    """
    pairs = [(float(p[x]), float(p[metric])) for p in points if p.get(metric) is not None and p.get(x) is not None]
    if len(pairs) < 2:
        return None
    xs, ys = [a for a, _ in pairs], [b for _, b in pairs]
    air = (max(ys) - min(ys)) * 0.08 or abs(ys[0]) * 0.08 or 1.0
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, min(xs) + 0.5)
    canvas = Canvas(460, 200, (48, 46, 10, 24), x_range, (min(ys) - air, max(ys) + air))
    smooth = running_mean(pairs) if len(pairs) > SMOOTH_FROM else None
    last_x, last_y = (smooth or pairs)[-1]
    parts = [
        canvas.grid(y_scale=scale, rows=4),
        Markup('<g class="curve {}">{}{}</g>').format(
            kind,
            canvas.path(pairs, "raw" if smooth else "line"),
            canvas.path(smooth, "line") if smooth else "",
        ),
        Markup('<g class="mark {}"><circle cx="{:.1f}" cy="{:.1f}" r="3.5"/></g>').format(
            kind, canvas.x(last_x), canvas.y(last_y)
        ),
        Markup('<text class="end {}" x="{:.1f}" y="{:.1f}">{}</text>').format(
            kind, canvas.x(last_x) + 7, canvas.y(last_y) + 4, _short(last_y * scale)
        ),
    ]
    return canvas.figure("line-chart", f"{label}, from {_short(ys[0] * scale)} to {_short(ys[-1] * scale)}", parts)


def reliability(series: Sequence[tuple[str, str, Sequence[dict[str, Any]]]]) -> Markup:
    """How often a claimed probability came true: a curve for each (kind, label, bins), and the diagonal.

    A bin is {"confidence", "accuracy", "low", "high", "n"}: the mean claim, from 1/2 to 1, and the share of its pairs
    that were right, with its interval. On the diagonal the claims are true; below it they are too bold.
    """
    bins = [entry for _, _, entries in series for entry in entries]
    bottom = min([0.45, *(b[key] for b in bins for key in ("accuracy", "low") if b[key] is not None)])
    canvas = Canvas(460, 320, (48, 18, 14, 40), (0.49, 1.01), (bottom - 0.02, 1.02))
    parts = [
        canvas.grid(x_scale=100, y_scale=100),
        Markup('<line class="rule" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
            canvas.x(0.5), canvas.y(0.5), canvas.x(1.0), canvas.y(1.0)
        ),
        Markup('<text class="name" x="{}" y="{}" text-anchor="end">claimed, % \u2192</text>').format(
            canvas.right, canvas.height - 6
        ),
    ]
    for kind, label, entries in series:
        line = canvas.path([(b["confidence"], b["accuracy"]) for b in entries], "line")
        parts.append(Markup('<g class="curve {}">{}</g>').format(kind, line))
        parts.extend(_reliability_mark(canvas, kind, label, b) for b in entries)
    said = "; ".join(
        f"{label}: claimed {100 * b['confidence']:.0f} %, right {100 * b['accuracy']:.0f} %"
        for _, label, entries in series
        for b in entries
    )
    return canvas.figure("reliability", said, parts)


class Course(NamedTuple):
    """Gains of one judge, (sqrt(KL), gain): as measured, and as fitted where they are."""

    kind: str
    label: str
    points: Line
    fitted: Line = ()
    band: Sequence[tuple[float, float, float]] = ()  # (sqrt(KL), low, high): the intervals of the points
    trained: bool = True  # else chosen among samples: its marks are hollow, its line is thin


def against_distance(courses: Sequence[Course], parted: float | None) -> Markup:
    """Gains of judges against sqrt(KL): marks joined in bands, fits dashed; `parted` draws a line where they part."""
    shown = [pair for course in courses for pair in (*course.points, *course.fitted)]
    xs, ys = [x for x, _ in shown], [y for _, y in shown]
    ys += [bound for course in courses for _, *ends in course.band for bound in ends]
    air = (max(ys) - min(ys)) * 0.08 or 1.0
    canvas = Canvas(
        460, 260, (48, 60, 14, 40), (0.0, max(xs) * 1.02 or 1.0), (min(*ys, 0.0) - air, max(*ys, 0.0) + air)
    )
    parts = [
        canvas.grid(),
        Markup('<text class="name" x="{}" y="{}" text-anchor="end">distance, \u221aKL \u2192</text>').format(
            canvas.right, canvas.height - 6
        ),
    ]
    if parted is not None:
        parts.append(
            Markup('<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(
                canvas.top, canvas.bottom, x=canvas.x(parted)
            )
        )
    for course in courses:  # under all lines
        if course.band:
            edge = [(x, low) for x, low, _ in course.band] + [(x, high) for x, _, high in course.band[::-1]]
            parts.append(Markup('<g class="curve {}">{}</g>').format(course.kind, canvas.path(edge, "band")))
    for course in sorted(courses, key=lambda course: course.trained):  # what was trained lies on top
        dashed = canvas.path(course.fitted, "fit") if course.fitted else Markup("")
        kind, label = course.kind + ("" if course.trained else " hollow"), course.label
        parts.append(Markup('<g class="curve {}">{}{}</g>').format(kind, dashed, canvas.path(course.points, "line")))
        for x, y in course.points:
            parts.append(
                Markup('<g class="mark {}"><circle cx="{:.1f}" cy="{:.1f}" r="3"/><title>{}</title></g>').format(
                    kind, canvas.x(x), canvas.y(y), f"{label}: {y:+.2f} at distance {x:.2f}"
                )
            )
    said = "; ".join(f"{course.label}: from 0 to {course.points[-1][1]:+.2f}" for course in courses)
    return canvas.figure("distance", said, parts)


def _reliability_mark(canvas: "Canvas", kind: str, label: str, entry: dict[str, Any]) -> Markup:
    x, whisker = canvas.x(entry["confidence"]), Markup("")
    if entry["low"] is not None and entry["high"] is not None:
        whisker = Markup('<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            canvas.y(entry["low"]), canvas.y(entry["high"]), x=x
        )
    title = (
        f"{label}: claimed {100 * entry['confidence']:.0f} %, right {100 * entry['accuracy']:.0f} %, n = {entry['n']}"
    )
    return Markup('<g class="mark {}">{}<circle cx="{:.1f}" cy="{:.1f}" r="4"/><title>{}</title></g>').format(
        kind, whisker, x, canvas.y(entry["accuracy"]), title
    )


@dataclass(frozen=True)
class Canvas:
    """A drawing of `width` by `height` with `margins` (left, right, top, bottom) around two linear scales."""

    width: int
    height: int
    margins: tuple[int, int, int, int]
    x_range: Range
    y_range: Range

    @property
    def left(self) -> int:
        return self.margins[0]

    @property
    def right(self) -> int:
        return self.width - self.margins[1]

    @property
    def top(self) -> int:
        return self.margins[2]

    @property
    def bottom(self) -> int:
        return self.height - self.margins[3]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (self.right - self.left) * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.bottom - (self.bottom - self.top) * (value - low) / (high - low)

    def grid(self, x_scale: float = 1.0, y_scale: float = 1.0, rows: int = 5) -> Markup:
        """Horizontal lines with their numbers on the left, and the numbers below."""
        parts = []
        for tick in ticks(*self.y_range, rows):
            y = self.y(tick)
            parts.append(
                Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
                    self.left, self.right, y=y
                )
                + Markup('<text x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                    self.left - 6, y + 3.5, tick_text(tick, y_scale)
                )
            )
        for tick in ticks(*self.x_range):
            parts.append(
                Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                    self.x(tick), self.bottom + 15, tick_text(tick, x_scale)
                )
            )
        return Markup('<g class="frame">{}</g>').format(Markup("").join(parts))

    def path(self, series: Line, css: str) -> Markup:
        """A line through the points, thinned to what a screen shows; CSS may fill what it encloses."""
        steps = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in thin(series))
        return Markup('<polyline class="{}" points="{}"/>').format(css, steps)

    def figure(self, css: str, label: str, parts: Sequence[Markup]) -> Markup:
        return Markup('<svg class="{}" role="img" aria-label="{}" viewBox="0 0 {} {}">{}</svg>').format(
            css, label, self.width, self.height, Markup("").join(parts)
        )


def thin(pairs: Line, limit: int = THIN_TO) -> Line:
    """At most `limit` of the points, in order: the lowest and the highest of each bucket, and both ends."""
    if len(pairs) <= limit:
        return pairs
    buckets = max(1, (limit - 2) // 2)
    keep = {0, len(pairs) - 1}
    for i in range(buckets):
        bucket = range(i * len(pairs) // buckets, (i + 1) * len(pairs) // buckets)
        keep |= {min(bucket, key=lambda j: pairs[j][1]), max(bucket, key=lambda j: pairs[j][1])}
    return [pairs[j] for j in sorted(keep)]


def running_mean(pairs: Line) -> Line:
    """Centred mean over a tenth of the curve; at the ends over the half of it that is there."""
    half = max(1, len(pairs) // 20)
    sums = [0.0]
    for _, y in pairs:
        sums.append(sums[-1] + y)
    out = []
    for i, (x, _) in enumerate(pairs):
        first, last = max(0, i - half), min(len(pairs), i + half + 1)
        out.append((x, (sums[last] - sums[first]) / (last - first)))
    return out


def _plane_point(point: Point, canvas: Canvas, above: bool) -> Markup:
    """A circle with its whiskers, its name above or below, where the arrow is not."""
    x, y = canvas.x(point.x.value), canvas.y(point.y.value)
    line = Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>')
    whiskers = Markup("")
    if point.x.low is not None and point.x.high is not None:
        whiskers += line.format(canvas.x(point.x.low), canvas.x(point.x.high), y, y)
    if point.y.low is not None and point.y.high is not None:
        whiskers += line.format(x, x, canvas.y(point.y.low), canvas.y(point.y.high))
    side = -1 if x > (canvas.left + canvas.right) / 2 else 1
    name = Markup('<text class="tag" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x + 11 * side, y - 10 if above else y + 20, "end" if side < 0 else "start", point.label
    )
    circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="6"/>').format(x, y)
    return Markup('<g class="mark {}">{}{}{}</g>').format(point.kind, whiskers, circle, name)


def _arrow(start: Point, end: Point, canvas: Canvas) -> Markup:
    """A faint arrow from one point towards another, ending short of both; none where they nearly touch."""
    x1, y1, x2, y2 = (canvas.x(start.x.value), canvas.y(start.y.value), canvas.x(end.x.value), canvas.y(end.y.value))
    length = math.hypot(x2 - x1, y2 - y1)
    if length < 40:
        return Markup("")
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    tip_x, tip_y = x2 - 12 * ux, y2 - 12 * uy
    corners = ((tip_x - 8 * ux + s * 4 * uy, tip_y - 8 * uy - s * 4 * ux) for s in (-1, 1))
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in ((tip_x, tip_y), *corners))
    return Markup('<line class="path" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        x1 + 12 * ux, y1 + 12 * uy, tip_x, tip_y
    ) + Markup('<polygon class="head" points="{}"/>').format(head)


def _short(value: float) -> str:
    """Three significant digits, for the number at a curve's end."""
    return tick_text(value) if abs(value) >= 1000 else f"{value:.3g}".replace("-", "\u2212")
