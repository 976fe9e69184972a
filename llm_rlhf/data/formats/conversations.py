"""Turns a row of any known format into a Preference, a Demonstration or a Prompt, or says why it cannot be one."""

import itertools
import json
from typing import Any, get_args, get_type_hints

from llm_rlhf.data.cells import as_number, is_nan, thumb
from llm_rlhf.data.checks import (
    BadRow,
    check_ends_with_reply,
    check_prompt,
    check_text,
    extract,
    tidy_turns,
)
from llm_rlhf.data.formats.columns import completion_column, prompt_columns
from llm_rlhf.data.formats.transcripts import stray_marker
from llm_rlhf.data.formats.turns import hh_pair, history_of, pair_of, reply_of, turns_of, with_system
from llm_rlhf.data.messages import check_messages, read_messages
from llm_rlhf.data.rows import Conversation, Demonstration, Preference, Prompt, RawRow
from llm_rlhf.recipe.sections import Source

AFTER_IMITATED = "turns after the last reply to imitate left out"
DOWN_VOTED = "down-voted completion"
CUT = "reply was cut at its length"
LATER_TURNS = "later user turns left out, as no replies stand between them"

_NOTHING = ("", "nan", "none", "null")  # as tables and libraries write it
_OBJECTIVES = get_args(get_type_hints(Source)["objective"])


def to_preference(raw: RawRow, form: str, objective: str) -> Preference:
    """A pair from a row of format hh or preference; `objective` is for rows that do not name one."""
    row = row_of(raw)
    prompt, chosen, rejected = hh_pair(row, raw.repairs) if form == "hh" else message_pair(row, raw.repairs)
    return Preference(
        prompt, chosen, rejected, objective_of(row, objective), raw.origin, margin_of(row), confidence_of(row),
        chosen_stopped=stopped_of(row, "chosen_stopped"), rejected_stopped=stopped_of(row, "rejected_stopped"),
    )  # fmt: skip


def to_demonstrations(raw: RawRow, form: str) -> list[Demonstration]:
    """Conversations to imitate from a row of messages, a prompt with its completion, or an instruction."""
    row = row_of(raw)
    if not stopped_of(row, "stopped"):
        raise BadRow(CUT)
    if form == "messages":
        if thumb(row.get("label")) is False:
            raise BadRow(DOWN_VOTED)
        return [_conversation(row, raw)]
    if form == "instruction" and row.get("instances") is not None:
        return [_completed(*instance, raw) for instance in _instances(row)]
    name = completion_column(row) or "completion"
    name = "output" if form == "instruction" and row.get("output") is not None else name
    return [_completed(asked(row, raw.repairs), row.get(name), raw, name)]


def to_prompts(raw: RawRow, form: str, objective: str) -> list[Prompt]:
    """What a row asks: its prompt, or its messages without the last reply."""
    if form == "prompt" and isinstance(raw.fields, str):  # a file of JSON strings
        raw.fields = {"prompt": raw.fields}
    row = row_of(raw)
    objective = objective_of(row, objective)
    if form == "messages":
        turns = with_system(row, check_messages(row.get("messages"), "messages"))
        questions = [turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns]
    elif form == "instruction" and row.get("instances") is not None:
        questions = [question for question, _ in _instances(row)]
    else:
        questions = [asked(row, raw.repairs, further=form == "prompt")]
    facts = _facts(row) if form == "prompt" else {}
    return [Prompt(check_prompt(turns, raw.repairs), objective, raw.origin, facts) for turns in questions]


def demonstration_of(pair: Preference) -> Demonstration:
    """The prompt and the chosen reply of a pair, or BadRow (`why_not_imitated`)."""
    if bad := why_not_imitated(pair):
        raise bad
    return Demonstration([*pair.prompt, {"role": "assistant", "content": pair.chosen}], pair.origin)


def why_not_imitated(pair: Preference) -> BadRow | None:
    """Why the chosen reply is the better of two and yet none to imitate; None where it is one.

    One with a role marker in it ("... Human: ...") would teach the model to speak for the user as well; one that was
    cut at its length, to break off.
    """
    if not pair.chosen_stopped:
        return BadRow(f"chosen {CUT}", extract(pair.chosen[-30:]))
    if stray := stray_marker(pair.chosen):
        return BadRow("chosen reply writes a role marker", extract(pair.chosen[max(0, stray.start() - 30) :]))
    return None


def prompt_of_pair(pair: Preference) -> Prompt:
    return Prompt(pair.prompt, pair.objective, pair.origin)


def row_of(raw: RawRow) -> dict[str, Any]:
    """The row as an object, or BadRow."""
    if not isinstance(raw.fields, dict):
        raise BadRow("wrong type", f"the row is {type(raw.fields).__name__}, not a JSON object")
    return raw.fields


def asked(row: dict[str, Any], repairs: set[str], further: bool = False) -> Conversation:
    """The turns of a row's prompt, unchecked, in whatever column it stands, behind its system message and its history.

    Args:
        further: under the names, too, that it has in a list of prompts alone.
    """
    return with_system(row, [*history_of(row), *_question(row, repairs, further)])


def _question(row: dict[str, Any], repairs: set[str], further: bool) -> Conversation:
    """The prompt itself; an instruction has its input after it."""
    names = prompt_columns(row, further)
    if not names:
        raise BadRow("missing field", "prompt")
    if len(names) > 1:
        raise BadRow(
            "ambiguous prompt", f"columns {', '.join(names)}; set 'columns: {{prompt: NAME}}' to the one meant"
        )
    value = row[names[0]]
    if names == ["instruction"]:
        return _instruction(value, row["input"] if row.get("input") is not None else row.get("context"))
    if names == ["turns"] and isinstance(value, list) and all(isinstance(turn, str) for turn in value[:2]):
        repairs.update({LATER_TURNS} if len(value) > 1 else ())
        value = value[0] if value else ""
    return turns_of(value, names[0])


def _instruction(instruction: Any, more: Any) -> Conversation:
    text = check_text(instruction, "instruction")
    if more is not None and (more := check_text(more, "input").strip()):
        text = f"{text}\n\n{more}"
    return turns_of(text, "instruction")


def _instances(row: dict[str, Any]) -> list[tuple[Conversation, Any]]:
    """Prompts and outputs of an instruction with several instances, as in Self-Instruct."""
    instances = row["instances"]
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise BadRow("wrong type", f"instances is no list of objects: {extract(instances)}")
    if not instances:
        raise BadRow("missing field", "instances is an empty list")
    return [
        (with_system(row, _instruction(row.get("instruction"), one.get("input"))), one.get("output"))
        for one in instances
    ]


def _completed(turns: Conversation, completion: Any, raw: RawRow, name: str = "output") -> Demonstration:
    prompt = check_prompt(turns, raw.repairs)
    reply = reply_of(completion, name, prompt)
    if isinstance(completion, list) and not read_messages(completion, name)[-1][1]:
        raise BadRow("no reply to imitate", f"{name} has weight 0")
    check_ends_with_reply([reply])
    return Demonstration([*prompt, reply], raw.origin)


def message_pair(row: dict[str, Any], repairs: set[str]) -> tuple[Conversation, str, str]:
    """TRL's preference formats: a prompt and two replies, or two whole conversations.

    With a prompt, chosen and rejected may still repeat it in front of the reply, as in UltraFeedback, and other turns
    around it, as in Capybara.
    """
    prompt = asked(row, repairs) if prompt_columns(row) else None
    if prompt is None or _stands_within(prompt, row):
        if isinstance(row.get("chosen"), str):
            raise BadRow("missing field", "prompt (chosen is plain text, which does not hold one)")
        chosen, rejected = (with_system(row, check_messages(row.get(name), name)) for name in ("chosen", "rejected"))
        return pair_of(chosen, rejected, repairs)
    chosen, rejected = ([*prompt, reply_of(row.get(name), name, prompt)] for name in ("chosen", "rejected"))
    return pair_of(chosen, rejected, repairs)


def _stands_within(prompt: Conversation, row: dict[str, Any]) -> bool:
    """Whether chosen and rejected are conversations with more turns than the prompt, its one user turn among them."""
    sides = [row.get(name) for name in ("chosen", "rejected")]
    if row.get("history") is not None or [turn["role"] for turn in prompt if turn["role"] != "system"] != ["user"]:
        return False
    return all(
        isinstance(side, list) and len(side) > len(prompt) + 1 and prompt[-1] in check_messages(side, "chosen")
        for side in sides
    )


def _conversation(row: dict[str, Any], raw: RawRow) -> Demonstration:
    """A tidy conversation up to the last reply that is imitated, and the replies before it that are not."""
    read = read_messages(row.get("messages"), "messages")
    check_ends_with_reply([message for message, _ in read])
    tidy = tidy_turns(with_system(row, [message for message, _ in read]), raw.repairs)
    if all(message["role"] != "user" for message in tidy):
        raise BadRow("empty prompt")
    spoken = itertools.groupby(read, lambda one: one[0]["role"])  # turns of one role in a row became one
    weights = [{imitated for _, imitated in turns} for role, turns in spoken if role == "assistant"]
    if any(len(weight) > 1 for weight in weights):
        raise BadRow("replies in a row of which only some are to be imitated")
    replies = [place for place, message in enumerate(tidy) if message["role"] == "assistant"]
    context = [place for place, weight in zip(replies, weights, strict=True) if weight == {False}]
    if len(context) == len(replies):
        raise BadRow("no reply to imitate", "all of them have weight 0")
    end = max(set(replies) - set(context)) + 1
    if end < len(tidy):
        raw.repairs.add(AFTER_IMITATED)
    from_the_end = [place - end for place in context if place < end]
    return Demonstration(tidy[:end], raw.origin, every_reply=True, context=from_the_end)


def objective_of(row: dict[str, Any], default: str) -> str:
    objective = row.get("objective")
    if objective is None:
        return default
    if check_text(objective, "objective") not in _OBJECTIVES:
        raise BadRow("unknown objective", f"{extract(objective)}; known: {', '.join(_OBJECTIVES)}")
    return str(objective)


def _facts(row: dict[str, Any]) -> dict[str, Any]:
    facts = row.get("facts")
    if facts is None:
        return {}
    if not isinstance(facts, dict):
        raise BadRow("wrong type", f"facts is {type(facts).__name__}, not an object: {extract(facts)}")
    check_text(json.dumps(facts, ensure_ascii=False, default=str), "facts")  # the texts in it, at any depth
    return facts


def margin_of(row: dict[str, Any]) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    number = None if isinstance(margin, bool) else as_number(margin)
    if number is None:
        raise BadRow("wrong type", f"margin is not a finite number: {extract(margin)}")
    if number < 0:
        raise BadRow("negative margin", f"{number:g}: chosen would be the worse reply")
    return number


def confidence_of(row: dict[str, Any]) -> float:
    """The probability that the chosen reply is the better one; 1 where the row does not say."""
    confidence = row.get("confidence")
    if confidence is None:
        return 1.0
    number = None if isinstance(confidence, bool) else as_number(confidence)
    if number is None or not 0.5 < number <= 1:
        raise BadRow("confidence is no probability", f"{extract(confidence)} is not over 0.5 and at most 1")
    return number


def stopped_of(row: dict[str, Any], column: str) -> bool:
    """Whether a reply ended by itself, by the column that says so; True where the row does not say."""
    value = row.get(column)
    says_nothing = value is None or is_nan(value) or (isinstance(value, str) and value.strip().lower() in _NOTHING)
    stopped = True if says_nothing else thumb(value)
    if stopped is None:
        raise BadRow("wrong type", f"{column} is neither true nor false: {extract(value)}")
    return stopped
