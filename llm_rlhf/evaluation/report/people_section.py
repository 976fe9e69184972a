"""Who stands behind a run: how many people and labels, of which kinds, by which texts."""

from typing import Any


def people(feedback: dict[str, Any] | None) -> dict[str, Any] | None:
    """A line for the page's head, a sentence, and a table of what is known; None of a run that collected nothing."""
    if feedback is None:
        return None
    labels = _counted(feedback["labels"], "label")
    facts = {
        "labels": ", ".join(f"{kind} {count:,}" for kind, count in feedback["labels_by_kind"].items()),
        "rows": ", ".join(f"{name} {count:,}" for name, count in feedback["rows"].items() if count),
        "settled by a lead": _counted(feedback["decisions"], "item") if feedback["decisions"] else "",
        "questions selected by": ", ".join(
            f"{'no stated rule' if name == 'none' else name} {count:,}"
            for name, count in feedback["strategies"].items()
        ),
        "guidelines": _versions(feedback["guidelines_versions"]),
        "consent text": _versions(feedback["consent_versions"]),
        "collected": f"{feedback['created']}, export {feedback['export']}",
        "store": feedback["store"],
    }
    return {
        "head": f"{labels} by {_who(feedback)}",
        "sentence": f"{labels} on {_counted(feedback['items'], 'item')} by {_who(feedback)} stand behind this run.",
        "facts": [(name, told) for name, told in facts.items() if told],
    }


def _who(feedback: dict[str, Any]) -> str:
    """People, and apart from them programs in people's place and those whose labels came in a file."""
    named = [
        _counted(feedback["people"], "person", "people"),
        _counted(feedback["simulated_people"], "simulated annotator"),
        f"{_counted(feedback['imported_people'], 'person', 'people')} from elsewhere",
    ]
    there = [feedback["people"], feedback["simulated_people"], feedback["imported_people"]]
    told = [name for name, count in zip(named, there, strict=True) if count]
    return " and ".join(told) if len(told) < 3 else f"{told[0]}, {told[1]} and {told[2]}"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"1 {one}" if count == 1 else f"{count:,} {many or one + 's'}"


def _versions(versions: list[int]) -> str:
    if not versions:
        return ""
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"
