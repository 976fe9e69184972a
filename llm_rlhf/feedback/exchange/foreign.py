"""Questions in other people's words: which of a row's columns is the prompt, and which are answers."""

from typing import Any

from llm_rlhf.data.formats.columns import REPLY_LISTS, completion_column, prompt_columns, reply_columns
from llm_rlhf.errors import DataError
from llm_rlhf.feedback.queue import Question

MOST_ANSWERS = 9


def foreign_question(row: dict[str, Any], kind: str | None, where: str) -> Question:
    """The question that a row of another project asks.

    Args:
        kind: of task; None: as many answers as there are say it (0: demonstrate, 1: rate, 2: compare, more: rank).

    Raises:
        DataError: where it is not clear what was asked.
    """
    names = prompt_columns(row, further=True)
    if len(names) != 1:
        found = ", ".join(map(str, row)) or "none"
        raise DataError(f"{where} has no column that is clearly the prompt; its columns: {found}.")
    answers = _answers(row, names[0])
    kind = kind or {0: "demonstrate", 1: "rate", 2: "compare"}.get(len(answers), "rank")
    if kind == "demonstrate":
        answers = []
    return Question(kind, _turns(row[names[0]], where), [{"text": text, "source": None} for text in answers])


def _turns(prompt: Any, where: str) -> list[dict[str, str]]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and all(
        isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in prompt
    ):
        return [{"role": str(turn["role"]), "content": str(turn["content"])} for turn in prompt]
    raise DataError(f"{where} has a prompt that is neither text nor messages.")


def _answers(row: dict[str, Any], prompt: str) -> list[str]:
    """The answers in their order: a list of texts, numbered or lettered columns, or the one reply."""
    lists = [row[name] for name in (*REPLY_LISTS, "text") if isinstance(row.get(name), list)]
    for texts in lists:
        if texts and all(isinstance(text, str) for text in texts):
            return texts[:MOST_ANSWERS]
    pairs = reply_columns(row)
    if pairs:
        stem = pairs[0][0][:-1]
        names = [f"{stem}{end}" for ends in ("0123456789", "abcdefghi", "ABCDEFGHI") for end in ends]
        return [row[name] for name in names if isinstance(row.get(name), str)][:MOST_ANSWERS]
    name = completion_column({column: value for column, value in row.items() if column != prompt})
    return [row[name]] if name is not None and isinstance(row[name], str) else []
