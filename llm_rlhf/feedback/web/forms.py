"""Labels from what a page's form sends: texts by name, a part of a label as a draft, the whole of one at the end."""

import math
from typing import Any

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.labels import MOST_TEXT, from_scale, to_scale
from llm_rlhf.feedback.web.security import whole_number


def label_of(kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """A label by the page's places, or as much of one as the form says.

    Raises:
        DataError: where a field is not what the page sends.
    """
    if kind in ("compare", "chat"):
        if "point" in fields:
            return from_scale(_number(fields, "point"))
        return {"choice": fields["choice"]} if "choice" in fields else {}
    if kind == "rate":
        return {name: _number(fields, name) for name in ("helpful", "harmless") if fields.get(name)}
    if kind == "rank":
        return {"ranks": _dense([_whole(value or "0", "rank") for value in _list(fields.get("rank", []))])}
    if kind == "annotate":
        return {
            "labels": [str(label) for label in _list(fields.get("labels", []))],
            "comment": _text(fields, "comment"),
        }
    value: dict[str, Any] = {"text": _text(fields, "text")}
    if kind == "correct" and "better" in fields:
        value["better"] = _number(fields, "better")
    return value


def draft_of(kind: str, value: Any) -> dict[str, Any]:
    """What is kept of a draft: the fields that a label of this kind has, each of a size that is bounded.

    Raises:
        DataError: where it is no object.
    """
    if not isinstance(value, dict):
        raise DataError("A draft is an object: a label, or a part of one.")
    kept: dict[str, Any] = {}
    for name, of in FIELDS[kind].items():
        found = value.get(name)
        if isinstance(found, of) and not isinstance(found, bool):
            kept[name] = found[:MOST_TEXT] if isinstance(found, str) else found
        if isinstance(found, list):
            plain = [one for one in found[:32] if isinstance(one, int | str)]
            kept[name] = [one[:64] if isinstance(one, str) else one for one in plain]
    return kept


FIELDS: dict[str, dict[str, type]] = {
    "compare": {"choice": str, "better": int, "strength": int},
    "chat": {"choice": str, "better": int, "strength": int},
    "rate": {"helpful": int, "harmless": int},
    "rank": {"ranks": list},
    "demonstrate": {"text": str},
    "correct": {"text": str, "better": int},
    "annotate": {"labels": list, "comment": str},
}


def point_of(draft: dict[str, Any] | None) -> int | None:
    """The point of the scale that a comparison's draft says."""
    whole = draft is not None and draft.get("better") in (0, 1) and draft.get("strength") in (1, 2, 3, 4)
    return to_scale(draft | {"choice": "better"}) if draft is not None and whole else None


def seconds_of(told: Any) -> float | None:
    """What a page measured, where it did."""
    try:
        seconds = float(told)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _number(fields: dict[str, Any], name: str) -> int:
    return _whole(fields.get(name), name)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, str) and (number := whole_number(value, -1)) >= 0:
        return number
    raise DataError(f"{name} is {str(value)[:40]!r}; it is a whole number.")


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise DataError(f"{name} is no text.")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _dense(ranks: list[int]) -> list[int]:
    """Ranks without gaps: 1, 1, 3 is said as 1, 1, 2. A 0 is none yet, and stays."""
    places = [0, *sorted(set(ranks) - {0})]
    return [places.index(rank) for rank in ranks]
