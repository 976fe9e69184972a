"""What `feedback report` prints: the numbers of the lead's page as text, and what withdrawals affect."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from llm_rlhf.feedback.quality import Quality
from llm_rlhf.feedback.withdrawals import Withdrawal
from llm_rlhf.statistics.intervals import Estimate, Interval

RIGHT = [("agreement", "with the rest"), ("gold", "known questions"), ("steady", "with oneself")]  # name and column
HABITS = [
    ("left", "left"),
    ("longer", "longer"),
    ("longer_excess", "beside others"),
    ("undecided", "tie, both bad"),
    ("hasty", "hasty"),
    ("skipped", "skipped"),
]
LOWEST = 5  # kappas that are printed
DAYS = 14  # that are printed
REASON = 200  # characters of a reason that are printed


def report_text(name: str, quality: Quality, gone: Sequence[Withdrawal]) -> str:
    """The whole report of a store called `name`."""
    total, people = sum(quality.labels.values()), sum(count > 0 for count in quality.labels.values())
    labels = "1 label" if total == 1 else f"{total:,} labels"
    lines = [f"{name}: {labels} by {_people(people)}"]
    if quality.withdrawn:
        lines.append(f"{_people(quality.withdrawn)} withdrew and {'is' if quality.withdrawn == 1 else 'are'} left out.")
    if total:
        for part in (_shown, _people_tables, _agreement, _days, _skips, _entry):
            if told := list(part(quality)):
                lines += ["", *told]
    elif not quality.withdrawn:
        lines.append("Nobody has labelled anything yet: llm-rlhf feedback serve opens the page.")
    if gone:
        lines += ["", *_withdrawals(gone)]
    return "\n".join(lines)


def _shown(quality: Quality) -> Iterator[str]:
    if not quality.suspicions:
        yield f"Nothing is shown of anybody, among {quality.asked} questions asked of the numbers."
        return
    yield f"Shown of people, among {quality.asked} questions asked of the numbers (p holds for all of them together):"
    width = max(len(one.person) for one in quality.suspicions)
    for one in quality.suspicions:
        p = "p < 0.001" if one.p < 0.001 else f"p = {one.p:.3f}"
        yield f"  {one.person:<{width}}  {one.title}: {one.text}; {p}"


def _people_tables(quality: Quality) -> Iterator[str]:
    yield "People, in percent with the 95 % interval and n (seconds: the median, of their most frequent kind of task)"
    names = [who.pseudonym for who in quality.people if quality.labels[who.pseudonym]]
    for columns in (RIGHT, HABITS):
        first = columns is RIGHT
        rows = [["person", *(("labels", "seconds") if first else ()), *(title for _, title in columns)]]
        for person in names:
            own = (str(quality.labels[person]), _seconds(quality, person)) if first else ()
            rows.append([person, *own, *(_percent(quality.numbers.of(name, person)) for name, _ in columns)])
        own = (str(sum(quality.labels.values())), "-") if first else ()
        rows.append(["all together", *own, *(_percent(quality.numbers.of(name)) for name, _ in columns)])
        yield from _table(rows)
        if first:
            yield ""
    if any(quality.numbers.named("longer_excess")):
        yield "  beside others: points of longer above the share of the others on the same pairs"


def _agreement(quality: Quality) -> Iterator[str]:
    alphas = quality.numbers.named("alpha")
    if alphas:
        yield "Krippendorff's alpha (1: all agree, 0: as by chance)"
        width = max(len(one.split) for one in alphas)
        for one in alphas:
            scale = "ordinal" if "ordinal" in one.method else "nominal"
            yield f"  {one.split:<{width}}  {_coefficient(one)}, {scale}"
    for line in quality.missing:
        yield f"  not measured: {line}"
    kappas = sorted(quality.numbers.named("kappa"), key=lambda one: one.estimate)
    if kappas:
        most = f" of {len(kappas)}, the lowest" if len(kappas) > LOWEST else ""
        yield f"Cohen's kappa of two people{most}"
        for one in kappas[:LOWEST]:
            yield f"  {one.subject} and {one.reference}: {_coefficient(one)}"


def _days(quality: Quality) -> Iterator[str]:
    days = [(day, list(rows)) for day, rows in groupby(quality.days, key=lambda one: one.day)]
    yield f"Days (UTC){f', the latest {DAYS} of {len(days)}' if len(days) > DAYS else ''}"
    for day, rows in days[:DAYS]:
        people = sum(row.labels > 0 for row in rows)
        labels, passed = sum(row.labels for row in rows), sum(row.passed for row in rows)
        yield f"  {day}  {labels:>6,} labels by {_people(people)}, {passed} skipped"


def _skips(quality: Quality) -> Iterator[str]:
    if quality.reasons:
        yield "Skipped because"
        for reason, count in quality.reasons.items():
            told = " ".join(reason.split())  # in a line of its own, whatever somebody wrote
            yield f"  {count:>6,}  {told[:REASON] + '...' * (len(told) > REASON) or '(no reason)'}"


def _entry(quality: Quality) -> Iterator[str]:
    tried = [who for who in quality.people if who.entry_tries]
    if tried:
        yield "Entry test"
        for who in tried:
            passed, tries = "passed" if who.entry_passed else "not passed", "try" if who.entry_tries == 1 else "tries"
            score = f"{who.entry_score or 0:.0%} right in the last"
            yield f"  {who.pseudonym}: {passed} after {who.entry_tries} {tries}, {score}"


def _withdrawals(gone: Sequence[Withdrawal]) -> Iterator[str]:
    yield "Withdrawn"
    for one in gone:
        kept = f"{one.kept} labels are kept in the store, and exported no more" if one.kept else "no label is kept"
        yield f"  {one.person}, {one.when:%Y-%m-%d}: {kept}"
        for export in one.exports:
            where = f", in {export.folder}" if export.folder else ""
            yield f"    export {export.id} of {export.created:%Y-%m-%d} holds {export.labels} of their labels{where}"
        for run in one.runs:
            why = f"goes on from {run.through}" if run.through else f"was trained on export {run.export}"
            yield f"    run {run.run} {why}"
        if not one.exports:
            yield "    no export holds anything of theirs"


def _table(rows: list[list[str]]) -> Iterator[str]:
    kept = [
        column for column in range(len(rows[0])) if column < 2 or any(row[column] not in ("", "-") for row in rows[1:])
    ]
    widths = {column: max(len(row[column]) for row in rows) for column in kept}
    for row in rows:
        yield ("  " + "  ".join(f"{row[column]:<{widths[column]}}" for column in kept)).rstrip()


def _seconds(quality: Quality, person: str) -> str:
    """The median time of the kind of task that they did most."""
    of_kinds = [one for one in quality.numbers.named("seconds") if one.subject == person]
    if not of_kinds:
        return "-"
    most = max(of_kinds, key=lambda one: one.n)
    span = f" ({most.low:.0f} to {most.high:.0f}; {most.n})" if most.low is not None else f" (no interval; {most.n})"
    return f"{most.estimate:.0f}{span}"


def _percent(one: Estimate | None) -> str:
    if one is None:
        return "-"
    sign = "+" if one.name == "longer_excess" else ""
    if one.low is None or one.high is None:
        return f"{100 * one.estimate:{sign}.0f} (no interval; {one.n})"
    return f"{100 * one.estimate:{sign}.0f} ({100 * one.low:{sign}.0f} to {100 * one.high:{sign}.0f}; {one.n})"


def _coefficient(one: Estimate | Interval) -> str:
    if one.low is None or one.high is None:
        return f"{one.estimate:.2f} (no interval; n {one.n})"
    return f"{one.estimate:.2f} ({one.low:.2f} to {one.high:.2f}; n {one.n})"


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"
