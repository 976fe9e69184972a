"""Whether a question has the shape that pages, tables and rows rely on: a file can hold anything."""

import math
from typing import Any

from llm_rlhf.errors import DataError
from llm_rlhf.feedback.labels import KINDS

OBJECTIVES = ("helpful", "harmless", "overall")
PURPOSES = ("label", "gold", "entry")
MOST_TOPIC = 64  # characters
MOST_WANTED = 1_000_000  # people


UNASKED = ("chat", "thumb")  # kinds that the page never asks: chats are held, and thumbs come with logs and files


def check_can_be_known(kind: str) -> None:
    """Raises DataError where nobody could be asked a question of this kind as one whose answer is known."""
    if kind in UNASKED:
        raise DataError(
            f"A question of kind {kind} is asked of nobody, so that it cannot be a known one or one of the entry test; "
            "write a comparison of the same answers instead."
        )
    if kind == "demonstrate":
        raise DataError("A question that asks for an answer has no one text that is right: nobody could be told right.")


def check_shape(question: Any) -> None:
    """Raises DataError where a queue.Question has a field that cannot be."""
    _check(
        question.kind in KINDS if isinstance(question.kind, str) else False,
        "kind",
        question.kind,
        "one of " + ", ".join(KINDS),
    )
    prompt, answers = question.prompt, question.answers
    whole = isinstance(prompt, list) and all(_has_texts(turn, "role", "content") for turn in prompt)
    _check(whole, "prompt", prompt, "messages, each with a role and a content that are texts")
    whole = isinstance(answers, list) and all(_has_texts(answer, "text") and _says_ends(answer) for answer in answers)
    _check(whole, "answers", answers, "a list of objects, each with a text; stopped and complete are true or false")
    _check(
        _is_one_of(question.objective, OBJECTIVES), "objective", question.objective, "one of " + ", ".join(OBJECTIVES)
    )
    _check(_is_one_of(question.purpose, PURPOSES), "purpose", question.purpose, "one of " + ", ".join(PURPOSES))
    for name, most in (("topic", MOST_TOPIC), ("strategy", 32)):
        value = getattr(question, name)
        plain = isinstance(value, str) and len(value) <= most and "\0" not in value
        _check(value is None or plain, name, value, f"a text of at most {most} characters, or null")
    for name in ("facts", "expected"):
        value = getattr(question, name)
        _check(isinstance(value, dict) or (name == "expected" and value is None), name, value, "an object")
    wanted = question.wanted
    counts = isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted <= MOST_WANTED
    _check(wanted is None or counts, "wanted", wanted, f"a whole number of people, 0 to {MOST_WANTED:,}, or null")
    _check(_is_number(question.priority), "priority", question.priority, "a number")
    share = question.propensity
    _check(
        share is None or (_is_number(share) and 0 < share <= 1), "propensity", share, "above 0 and at most 1, or null"
    )


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise DataError(f"The {name} of a question is {_extract(value)}; it is {rule}.")


def _has_texts(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)


def _says_ends(answer: dict[str, Any]) -> bool:
    return all(isinstance(answer.get(name, True), bool) for name in ("stopped", "complete"))


def _is_one_of(value: Any, known: tuple[str, ...]) -> bool:
    return isinstance(value, str) and value in known


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e300 and math.isfinite(value)


def _extract(value: Any) -> str:
    told = repr(value)
    return told if len(told) <= 80 else f"{told[:80]} ..."
