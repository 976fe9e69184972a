"""Two replies and a label, and thumbs up or down, as pairs.

A label's values mean something only together: 1 is the first reply where the other value is 2, and the second where it
is 0. So all labels of a file are looked at before the first is read, and where they fit two readings the error asks
for the source's key `labels`. Between the two values a number is a probability that the second reply is better. Where
several people gave a label, what most of them say counts, with their share as that probability.

A number is a thumb where all of a file's are: of five stars 1 is the worst, and would be read as the best. Where -1 is
thumbs down, 0 is neither.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from llm_rlhf.data.cells import as_number, thumb
from llm_rlhf.data.checks import BadRow, check_ends_with_reply, check_prompt, extract, normalised_prompt
from llm_rlhf.data.formats.columns import completion_column, label_columns, reply_columns
from llm_rlhf.data.formats.conversations import asked, margin_of, message_pair, objective_of, row_of, stopped_of
from llm_rlhf.data.formats.turns import THOUGHTS_LEFT_OUT, pair_of, reply_of
from llm_rlhf.data.rows import Preference, Rating, RawRow
from llm_rlhf.errors import DataError

NO_OPPOSITE = "no opposite feedback on the prompt"
_ALONE = "a pair needs both; replies alone serve kto as 'data.ratings', liked ones as demonstrations"
TIE = "tie"

_TIES = ("tie", "same", "equal", "draw", "both", "neither", "both_bad", "bothbad", "tie (bothbad)")

# The first reply's and the label's column of data sets whose page says what the label means: SHP's is 1 for A, 0 for B.
_KNOWN = {("human_ref_A", "labels"): (1.0, 0.0)}


class Scale(NamedTuple):
    """The columns of two replies and their label, and what the label says; values None: it is a word."""

    first: str
    second: str
    label: str
    first_value: float | str | None = None
    second_value: float | str | None = None


def find_scale(rows: Iterable[Any], labels: list[float | str] | None, name: str) -> Scale:
    """What the labels of a file mean, from all of its rows.

    Raises:
        DataError: where two readings are possible, or no row has two replies and a label.
    """
    columns: Scale | None = None
    zero = one = above = other = False
    for row in rows:
        if not isinstance(row, dict):
            continue
        if columns is None and reply_columns(row) and label_columns(row):
            columns = _columns(row, name)
        if columns is None or labels is not None:
            continue
        for value in (number for vote in _votes(row.get(columns.label)) if (number := as_number(vote)) is not None):
            zero, one, above = zero or 0 <= value < 1, one or value == 1, above or 1 < value <= 2
            other = other or not 0 <= value <= 2
    if columns is None:
        raise DataError(
            f"No row of {name} has two replies and a label; name its columns in the source: "
            "'columns: {response_1: ..., response_2: ..., label: ...}'."
        )
    if labels is not None:
        return columns._replace(first_value=labels[0], second_value=labels[1])
    if not (zero or one or above or other):
        return columns
    if known := _KNOWN.get((columns.first, columns.label)):
        return columns._replace(first_value=known[0], second_value=known[1])
    ends = (columns.first[-1], columns.second[-1])
    if not other and ((ends == ("1", "2") and (above or not zero)) or (above and not zero)):
        return columns._replace(first_value=1.0, second_value=2.0)
    if not other and ends == ("0", "1") and not above:
        return columns._replace(first_value=0.0, second_value=1.0)
    found = ", ".join(
        what for what, there in (("0 or more", zero), ("1", one), ("over 1", above), ("others", other)) if there
    )
    raise DataError(
        f"The column {columns.label!r} of {name} holds numbers ({found}) that may mean either of {columns.first!r} and "
        f"{columns.second!r}; say in the source which value stands for the first and which for the second being "
        "better: 'labels: [1, 2]', 'labels: [1, 0]', ..."
    )


def _columns(row: dict[str, Any], name: str) -> Scale:
    replies, labels = reply_columns(row), label_columns(row)
    if len(replies) > 1 or len(labels) > 1:
        what = [f"{first} and {second}" for first, second in replies] if len(replies) > 1 else labels
        keys = "response_1: ..., response_2: ..." if len(replies) > 1 else "label: ..."
        raise DataError(
            f"{name} has more than one candidate for a comparison: {'; '.join(what)}. "
            f"Name the one meant in the source: 'columns: {{{keys}}}'."
        )
    return Scale(*replies[0], labels[0])


def compared_pair(raw: RawRow, scale: Scale, objective: str) -> Preference:
    """A pair from two replies and a label; a tie, or a label that says nothing, is a BadRow."""
    row = row_of(raw)
    votes = _votes(row.get(scale.label)) or [None]
    second = sum(_share_of_second(vote, scale) for vote in votes) / len(votes)
    if second == 0.5:
        raise BadRow(TIE, f"{scale.label} is {extract(row[scale.label])}")
    first_is_better = second < 0.5
    chosen, rejected = (scale.first, scale.second) if first_is_better else (scale.second, scale.first)
    fields = {name: value for name, value in row.items() if name not in (scale.first, scale.second)}
    fields |= {"chosen": row.get(chosen), "rejected": row.get(rejected)}
    prompt, good, bad = message_pair(fields, raw.repairs)
    confidence = max(second, 1 - second)
    position = 1 if first_is_better else 2
    return Preference(prompt, good, bad, objective_of(row, objective), raw.origin, margin_of(row), confidence, position)


def _votes(label: Any) -> list[Any]:
    """The labels of a row, one for each person who gave one."""
    return [vote for vote in label if vote is not None] if isinstance(label, list) else [label]


def _share_of_second(label: Any, scale: Scale) -> float:
    """The probability that the second reply is better."""
    if label is None:
        raise BadRow("missing field", scale.label)
    low, high = scale.first_value, scale.second_value
    word = label.strip().lower() if isinstance(label, str) else None
    if word in _TIES:
        return 0.5
    value = as_number(label)
    if value is not None and isinstance(low, (int, float)) and isinstance(high, (int, float)):
        share = (value - low) / (high - low)
        if 0 <= share <= 1:
            return share
    elif word is not None:
        for share, column, meant in ((0.0, scale.first, low), (1.0, scale.second, high)):
            end = column[-1].lower()
            if isinstance(meant, str):
                if word == meant.strip().lower():
                    return share
            elif word in (end, column.lower()) or word.endswith(f"_{end}"):
                return share
    raise BadRow("unusable label", f"{scale.label} is {extract(label)}")


def opposed_pairs(
    raws: Iterable[RawRow], objective: str
) -> Iterator[tuple[RawRow, RawRow | None, Preference | BadRow]]:
    """Pairs of a completion that was liked and one that was not, where people judged both for one prompt.

    The first up-voted completion of a prompt meets the first down-voted one, the second the second, and so on: every
    judgement serves once. Yields the two rows with their pair, and every other row with the BadRow that says why.
    """
    waiting: dict[str, tuple[list[RawRow], list[RawRow]]] = {}
    for raw in raws:
        try:
            if isinstance(raw.fields, BadRow):
                raise raw.fields
            liked = liked_completion(raw)
            key = normalised_prompt(asked(row_of(raw), raw.repairs))
        except BadRow as bad:
            yield raw, None, bad
            continue
        ups, downs = waiting.setdefault(key, ([], []))
        (ups if liked else downs).append(raw)
        if not (ups and downs):
            continue
        up, down = ups.pop(0), downs.pop(0)
        try:
            yield up, down, _opposed(up, down, objective)
        except BadRow as bad:
            yield up, None, bad
            yield down, None, bad
    for ups, downs in waiting.values():
        for raw in (*ups, *downs):
            yield raw, None, BadRow(NO_OPPOSITE, _ALONE)


def zero_is_neutral(rows: Iterable[Any], name: str) -> bool:
    """Whether 0 is neither of the thumbs of a file, as -1 is thumbs down.

    Raises:
        DataError: where its labels are points on a scale.
    """
    numbers = {
        number
        for row in rows
        if isinstance(row, dict)
        for vote in _votes(row.get("label"))
        if not isinstance(vote, bool) and (number := as_number(vote)) is not None
    }
    if any(abs(number) > 1 for number in numbers):
        raise DataError(
            f"The column 'label' of {name} holds numbers from {min(numbers):g} to {max(numbers):g}, which are points "
            "on a scale; a thumb is 1 or 0, 1 or -1, true or false. To compare the replies to one prompt: 'format: "
            "scored, columns: {score: label}' in 'data.preferences'; for 'kto' write true where a reply is good "
            "enough, and false where it is not. Where it is no verdict at all, name the 'format' that the rows have "
            "without it, such as prompt_completion."
        )
    return -1 in numbers


def without_neutral(raws: Iterable[RawRow]) -> Iterator[RawRow]:
    """The rows of a file in which 0 is neither of the thumbs; those with a 0 say so."""
    for raw in raws:
        label = raw.fields.get("label") if isinstance(raw.fields, dict) else None
        if not isinstance(label, bool) and as_number(label) == 0:
            raw.fields = BadRow("unusable label", "label is 0, between thumbs up (1) and down (-1)")
        yield raw


def liked_completion(raw: RawRow) -> bool:
    """Whether the completion of a row got thumbs up."""
    label = row_of(raw).get("label")
    liked = thumb(label)
    if liked is None:
        raise BadRow("missing field" if label is None else "unusable label", f"label is {extract(label)}")
    return liked


def _opposed(up: RawRow, down: RawRow, objective: str) -> Preference:
    prompt = asked(row_of(up), up.repairs)
    good, bad = (reply_of(completion(row_of(raw)), "completion", prompt) for raw in (up, down))
    turns, chosen, rejected = pair_of([*prompt, good], [*prompt, bad], up.repairs)
    stopped, other = (stopped_of(row_of(raw), "stopped") for raw in (up, down))
    return Preference(
        turns, chosen, rejected, objective_of(row_of(up), objective), up.origin,
        chosen_stopped=stopped, rejected_stopped=other,
    )  # fmt: skip


def rating_of(raw: RawRow, objective: str) -> Rating:
    """The reply of a row and its thumb, by itself."""
    row, good = row_of(raw), liked_completion(raw)
    prompt = check_prompt(asked(row, raw.repairs), raw.repairs)
    reply = reply_of(completion(row), "completion", prompt)
    check_ends_with_reply([reply])
    if "reasoning_content" in reply:  # as in pairs, beside which it is trained on
        raw.repairs.add(THOUGHTS_LEFT_OUT)
    stopped = stopped_of(row, "stopped")
    return Rating(prompt, reply["content"], good, objective_of(row, objective), raw.origin, stopped)


def completion(row: dict[str, Any]) -> Any:
    return row.get(completion_column(row) or "completion")
