"""A data check as text for a person: numbers in columns, then what is notable in words with what to do."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from llm_rlhf.audit.check import CONTEXT_LESS, MODELS_CONTEXT, DataCheck, Lengths
from llm_rlhf.audit.counts import Account, Listed
from llm_rlhf.audit.show import safe
from llm_rlhf.data.checks import Origin
from llm_rlhf.data.formats.columns import LABELS, SCORES
from llm_rlhf.statistics.intervals import Interval, wilson

ROWS_SHOWN = {False: 6, True: 3}  # with a note each: fewer
COLUMNS_SHOWN = 30
VERDICTS = ("toxic", "toxicity", "is_safe", "is_harmful", "harmful", "quality", "upvotes")  # beside LABELS and SCORES
_WIDTH = 24  # of the names on the left


class Finding(NamedTuple):
    text: str
    stops: bool = False  # a run would stop here


def render(check: DataCheck, quarantine: Path | None = None) -> str:
    """The whole report as lines of text, without colour."""
    names = ", ".join(check.names)
    lines = [names, "=" * min(len(names), 100), ""]
    for name, counts in check.reading.items():
        lines += _reading(name, counts, check)
    if check.splits:
        lines += ["Splits", *_table((name, f"{size:,}", "") for name, size in check.splits.items()), ""]
    for name, account in check.lists.items():
        lines += _account(name, account, check)
    if check.lengths:
        lines += ["Lengths in tokens", *_table(_lengths(lengths) for lengths in check.lengths), ""]
        if check.template:
            lines += ["The chat template", *(f"  {fact}" for fact in check.template), ""]
    elif check.lists:
        lines += ["Lengths are in characters; give --model or --recipe to count tokens against its limits.", ""]
    if check.shared is not None:
        kinds = {"same prompt": "same_prompt", "same first user turn": "same_opening", "similar": "near_opening"}
        shared = {name: getattr(check.shared, field) for name, field in kinds.items()}
        lines += ["Rows to train on that evaluation holds", *_table(_listed(*item) for item in shared.items()), ""]
    notable = findings(check)
    lines.append("Notable" if notable else "Nothing notable.")
    lines += [f"{'!!' if finding.stops else ' -'} {finding.text}" for finding in notable]
    if any(finding.stops for finding in notable):
        lines.append("What is marked with !! would stop a run.")
    if quarantine is not None:
        lines.append(f"\nThe rows set aside, each with its reason: {quarantine}")
    return "\n".join(lines)


def findings(check: DataCheck) -> list[Finding]:
    """What deserves attention, the gravest first."""
    found = _leak_findings(check) + _reading_findings(check)
    for lengths in check.lengths:
        found += _length_findings(lengths)
    for name, account in check.lists.items():
        found += _account_findings(name, account, check)
    return sorted(found, key=lambda finding: not finding.stops)


def _leak_findings(check: DataCheck) -> list[Finding]:
    if check.shared is None:
        return []
    found = []
    exact = check.shared.same_prompt.count + check.shared.same_opening.count
    if exact:
        first = (check.shared.same_prompt.first or check.shared.same_opening.first)[0]
        remedy = "the recipe allows or removes them" if check.leaks_allowed else "set data.leaks to remove"
        text = f"{exact:,} rows to train on ask what evaluation asks (first: {first[0]}, {first[1]}): {remedy}."
        found.append(Finding(text, stops=not check.leaks_allowed))
    near = check.shared.near_opening
    if near.count:
        rows, (origin, note) = "rows" if near.count > 1 else "row", near.first[0]
        text = (
            f"{near.count:,} {rows} to train on ask nearly what evaluation asks (first: {origin}, {note}): look; "
            "beside an evaluation source that a recipe names they are leaks (data.near_duplicates) and stop its run."
        )
        found.append(Finding(text))
    return found


def _reading_findings(check: DataCheck) -> list[Finding]:
    found = []
    for name, counts in check.reading.items():
        lost = sum(counts["set_aside"].values())
        if counts["kept"] == 0:
            found.append(Finding(f"Nothing is left of {name}.", stops=True))
        elif lost * 100 > counts["read"]:
            reason, count = max(counts["set_aside"].items(), key=lambda item: item[1])
            text = f"{_share(lost, counts['read'])} of the rows read for {name} are set aside, {count:,} as '{reason}'"
            found.append(Finding(f"{text}: look at some of them; a wrong format or column shows here."))
        verdicts = [column for columns in counts.get("unread", {}).values() for column in columns if _judges(column)]
        if name == "demonstrations" and verdicts:
            found.append(
                Finding(
                    f"demonstrations: the column {verdicts[0]} may say how good a reply is, and nothing reads it, so "
                    "that bad replies are imitated as well as good ones; leave those out, or read it (docs/data.md)."
                )
            )
    return found


def _judges(column: str) -> bool:
    """Whether a column's name is one under which replies are judged."""
    return column.lower().rpartition(".")[2] in {*SCORES, *LABELS, *VERDICTS}


def _length_findings(lengths: Lengths) -> list[Finding]:
    found = []
    if lengths.refused:
        text = f"{lengths.what}: {lengths.objection} They are set aside; mend the rows, or give another template"
        found.append(Finding(f"{text} (model.chat_template).", stops=lengths.refused == lengths.measured))
    if lengths.thoughts:
        rest = "are trained on" if lengths.thoughts_trained else "are left out: nobody reads them"
        found.append(
            Finding(f"{lengths.what}: in {lengths.thoughts:,} rows replies begin with thoughts, which {rest}.")
        )
    if lengths.examples:
        text = f"{lengths.what}: {lengths.measured - lengths.refused:,} conversations are {lengths.examples:,} examples"
        lost = f" {lengths.turns_too_long:,} earlier turns do not fit and are left out." * bool(lengths.turns_too_long)
        found.append(Finding(f"{text}, as the template rewrites earlier turns once others follow.{lost}"))
    if not lengths.cut and not lengths.too_long:
        return found
    shares = []
    if lengths.cut:
        shares.append(f"{_share(lengths.cut, lengths.measured)} lose their oldest turns")
    if lengths.too_long:
        shares.append(f"{_share(lengths.too_long, lengths.measured)} do not fit at all and are set aside")
    text = f"{lengths.what}: {' and '.join(shares)} at {lengths.limit_name} = {lengths.limit:,}"
    return [*found, Finding(f"{text}: {_remedy(lengths.limit_name)}, or accept the cut.")]


def _remedy(limit_name: str) -> str:
    if limit_name == MODELS_CONTEXT:
        return "take a base that reads more"
    if limit_name.startswith(CONTEXT_LESS):
        return f"lower {limit_name.removeprefix(CONTEXT_LESS)}"
    return "raise it where memory allows"


def _account_findings(name: str, account: Account, check: DataCheck) -> list[Finding]:
    found = []

    def note(text: str) -> None:
        found.append(Finding(f"{name}: {text}"))

    if account.judged_both_ways.count:
        rows = _rows(account.judged_both_ways)
        note(f"{account.judged_both_ways.count:,} pairs are judged both ways ({rows}): one of the two labels is wrong.")
    if account.duplicate_rows.count:
        remedy = "they are removed" if check.duplicates_removed else "data.duplicates: remove keeps each once"
        note(f"{account.duplicate_rows.count:,} rows stand there once more, word for word: {remedy}.")
    if account.near.count * 100 > len(account.openings):
        share = _share(account.near.count, len(account.openings))
        note(f"{share} of the first user turns are nearly the same as another one ({_rows(account.near)}): templates?")
    for (share_of, of), what, remedy in (
        (
            (account.first_is_chosen, account.with_position),
            "stands first",
            "balance_positions: true takes as many of each",
        ),
        (
            (account.longer_is_chosen, account.of_different_length),
            "is the longer one",
            "a reward model can learn length instead; read its accuracy by length in the report",
        ),
        (
            (account.refusal_is_chosen, account.one_refuses),
            "is the one that refuses, where one of the two opens with a refusal,",
            "a policy may learn to refuse; measure over-refusal",
        ),
    ):
        if of < 20 or (what == "stands first" and share_of in (0, of)):  # listed by rank, which tells nothing
            continue
        interval = wilson(share_of, of)
        if interval.estimate < 0.5 and what == "is the longer one":  # said the other way round
            what, interval = "is the shorter one", wilson(of - share_of, of)
        assert interval.low is not None
        assert interval.high is not None
        if abs(interval.estimate - 0.5) > 0.05 and not interval.low <= 0.5 <= interval.high:
            note(f"the chosen reply {what} in {_percent(interval)} of {of:,} pairs: {remedy}.")
    if account.personal:
        kinds = ", ".join(f"{kind}: {found.count:,}" for kind, found in sorted(account.personal.items()))
        note(
            f"rows with text that looks like personal data ({kinds}). "
            "A suspicion by form only: look, and take out what is real."
        )
    return found


def _reading(name: str, counts: dict[str, object], check: DataCheck) -> list[str]:
    read, kept = counts["read"], counts["kept"]
    assert isinstance(read, int)
    assert isinstance(kept, int)
    form = ", ".join(sorted(set(check.formats.values())))
    lines = [f"Reading {name}" + (f" (format {form})" if form and name != "evaluation" else "")]
    rows = [("read", f"{read:,}", "")]
    if "made" in counts:
        rows.append(("made of them", f"{counts['made']:,}", ""))
    rows.append(("kept", f"{kept:,}", ""))
    places: dict[str, list[Origin]] = {}
    for item in check.set_aside:
        places.setdefault(item.reason, []).append(item.origin)
    for what, title in (
        ("set_aside", "set aside"),
        ("parts_set_aside", "parts not used"),
        ("left_out", "left out"),
        ("repaired", "repaired, kept"),
    ):
        reasons = counts.get(what) or {}
        assert isinstance(reasons, dict)
        for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
            where = ""
            if what == "set_aside":
                listed = Listed(count, [(origin, "") for origin in places.get(reason, [])])
                where = f"   ({_rows(listed)})" if listed.first else ""
            rows.append((title, f"{count:,}", f"{reason}{where}"))
            title = ""
    return [*lines, *_table(rows), *_unread(counts.get("unread") or {}), ""]


def _unread(files: object) -> list[str]:
    """A line for each file with the columns, and keys in them, that nothing reads, and in how many rows they stand."""
    assert isinstance(files, dict)
    title = "columns that nothing reads"
    lines = []
    for name, columns in files.items():
        of = f" of {Path(name).name}" if len(files) > 1 else ""
        listed = [f"{safe(column)} ({rows:,})" for column, rows in columns.items()]
        more = f", {len(listed) - COLUMNS_SHOWN:,} more" if len(listed) > COLUMNS_SHOWN else ""
        lines.append(f"  {title}{of}: {', '.join(listed[:COLUMNS_SHOWN])}{more}")
    return lines


def _account(name: str, account: Account, check: DataCheck) -> list[str]:
    rows = [("rows", f"{account.rows:,}", "")]
    most = Counter(account.user_turns).most_common(6)
    turns = ", ".join(f"{turn}: {_share(count, account.rows)}" for turn, count in sorted(most))
    rest = ", others" if len(account.user_turns) > len(most) else ""
    rows.append(("user turns", "", turns + rest))
    if account.objectives:
        rows.append(
            ("objective", "", ", ".join(f"{name} {count:,}" for name, count in account.objectives.most_common()))
        )
    for what, lengths in account.as_dict()["characters"].items():
        size = f"median {lengths['median']:,}   95 % under {lengths['p95']:,}   longest {lengths['max']:,}"
        rows.append((f"{what}, characters", "", size))
    rows += [
        _listed("duplicate rows", account.duplicate_rows),
        _listed("repeated prompts", account.repeated_prompts),
        _listed("near-duplicates", account.near, "first user turns"),
    ]
    if name == "preferences":
        rows.append(_listed("judged both ways", account.judged_both_ways))
        for title, of, note in (
            (
                "chosen stands first",
                (account.first_is_chosen, account.with_position),
                "the columns name the better one",
            ),
            ("chosen is longer", (account.longer_is_chosen, account.of_different_length), "all of one length"),
            ("chosen refuses", (account.refusal_is_chosen, account.one_refuses), "in no pair one of the two refuses"),
        ):
            rows.append((title, "", f"{_percent(wilson(*of))} of {of[1]:,}" if of[1] else f"- ({note})"))
        if account.soft_labels or account.with_margin:
            rows.append(
                ("labels", "", f"{account.with_margin:,} with a margin, {account.soft_labels:,} with a probability")
            )
    if account.cut:
        rows.append(("cut replies", f"{account.cut:,}", "read without an end, as they ran into their length"))
    for kind, listed in sorted(account.personal.items()):
        rows.append(_listed(kind + "?", listed))
    return [f"In {name}", *_table(rows), ""]


def _lengths(lengths: Lengths) -> tuple[str, str, str]:
    of = "" if lengths.measured == lengths.of else f", of {lengths.measured:,} rows measured"
    tokens = lengths.tokens
    if not tokens:
        return lengths.what, "", "the chat template refuses all of them"
    text = f"median {tokens['median']:,}   95 % under {tokens['p95']:,}   longest {tokens['max']:,}"
    if lengths.limit is not None:
        text += f"   limit {lengths.limit:,} ({lengths.limit_name}): {lengths.cut:,} cut at turns, "
        text += f"{lengths.too_long:,} set aside"
    return lengths.what, "", text + of


def _listed(title: str, listed: Listed, of: str = "") -> tuple[str, str, str]:
    return (
        title,
        f"{listed.count:,}",
        (_rows(listed) if listed.count else "") + (f" ({of})" if of and listed.count else ""),
    )


def _rows(listed: Listed) -> str:
    """The first rows by number; the file is named where there are several."""
    sources = {origin.source for origin, _ in listed.first}
    shown = []
    noted = any(note for _, note in listed.first)
    for origin, note in listed.first[: ROWS_SHOWN[noted]]:
        place = str(origin.row) if len(sources) == 1 else f"{Path(origin.source).name}:{origin.row}"
        for source in sources:
            note = note.replace(f"{source}, row ", "row ") if len(sources) == 1 else note
        shown.append(f"{place} {note}".rstrip())
    more = ", ..." if listed.count > len(shown) else ""
    separator = "; " if noted else ", "
    return f"row{'s' if len(shown) > 1 else ''} {separator.join(shown)}{more}"


def _table(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    cells = list(rows)
    width = max((len(number) for _, number, _ in cells), default=0)
    return [
        f"  {name:<{_WIDTH}} " + (f"{number:>{width}}  {text}".rstrip() if number else text)
        for name, number, text in cells
    ]


def _percent(interval: Interval) -> str:
    assert interval.low is not None
    assert interval.high is not None
    return f"{interval.estimate:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _share(count: int, of: int) -> str:
    share = count / of
    return f"{share:.0%}" if share >= 0.095 or not count else f"{share:.1%}" if share >= 0.001 else "under 0.1%"
