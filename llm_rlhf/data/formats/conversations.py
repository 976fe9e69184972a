"""Turns a row of any known format into a Preference, a Demonstration or a Prompt, or says why it cannot be one."""

import json
import sys
from typing import Any, get_args, get_type_hints

from llm_rlhf.data.checks import (
    BadRow,
    check_ends_with_reply,
    check_messages,
    check_prompt,
    check_text,
    extract,
    tidy_turns,
)
from llm_rlhf.data.formats.columns import prompt_columns
from llm_rlhf.data.formats.transcripts import hh_pair, stray_marker
from llm_rlhf.data.formats.turns import pair_of, reply_of, turns_of
from llm_rlhf.data.rows import Conversation, Demonstration, Preference, Prompt, RawRow
from llm_rlhf.recipe.sections import Source

LATER_TURNS = "later user turns left out, as no replies stand between them"

_OBJECTIVES = get_args(get_type_hints(Source)["objective"])


def to_preference(raw: RawRow, form: str, objective: str) -> Preference:
    """A pair from a row of format hh or preference; `objective` is for rows that do not name one."""
    row = row_of(raw)
    prompt, chosen, rejected = hh_pair(row, raw.repairs) if form == "hh" else message_pair(row, raw.repairs)
    return Preference(prompt, chosen, rejected, objective_of(row, objective), raw.origin, _margin(row))


def to_demonstrations(raw: RawRow, form: str) -> list[Demonstration]:
    """Conversations to imitate from a row of messages, a prompt with its completion, or an instruction."""
    row = row_of(raw)
    if form == "messages":
        messages = check_messages(row.get("messages"), "messages")
        check_ends_with_reply(messages)
        return [Demonstration(_dialogue(messages, raw.repairs), raw.origin, every_reply=True)]
    if form == "instruction" and row.get("instances") is not None:
        return [_completed(*instance, raw) for instance in _instances(row)]
    name = "completion" if form == "prompt_completion" and row.get("completion") is not None else "response"
    name = "output" if form == "instruction" else name
    return [_completed(asked(row, raw.repairs), row.get(name), raw, name)]


def to_prompts(raw: RawRow, form: str, objective: str) -> list[Prompt]:
    """What a row asks: its prompt, or its messages without the last reply."""
    if form == "prompt" and isinstance(raw.fields, str):  # a file of JSON strings
        raw.fields = {"prompt": raw.fields}
    row = row_of(raw)
    objective = objective_of(row, objective)
    if form == "messages":
        turns = check_messages(row.get("messages"), "messages")
        questions = [turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns]
    elif form == "instruction" and row.get("instances") is not None:
        questions = [question for question, _ in _instances(row)]
    else:
        questions = [asked(row, raw.repairs)]
    facts = _facts(row) if form == "prompt" else {}
    return [Prompt(check_prompt(turns, raw.repairs), objective, raw.origin, facts) for turns in questions]


def demonstration_of(pair: Preference) -> Demonstration:
    """The prompt and the chosen reply of a pair.

    A chosen reply with a role marker in it ("... Human: ...") is a BadRow: it may be the better of two, but imitating
    it would teach the model to speak for the user as well.
    """
    if stray := stray_marker(pair.chosen):
        raise BadRow("chosen reply writes a role marker", extract(pair.chosen[max(0, stray.start() - 30) :]))
    return Demonstration([*pair.prompt, {"role": "assistant", "content": pair.chosen}], pair.origin)


def prompt_of_pair(pair: Preference) -> Prompt:
    return Prompt(pair.prompt, pair.objective, pair.origin)


def row_of(raw: RawRow) -> dict[str, Any]:
    """The row as an object, or BadRow."""
    if not isinstance(raw.fields, dict):
        raise BadRow("wrong type", f"the row is {type(raw.fields).__name__}, not a JSON object")
    return raw.fields


def asked(row: dict[str, Any], repairs: set[str]) -> Conversation:
    """The turns of a row's prompt, unchecked, in whatever column it stands; an instruction has its input after it."""
    names = prompt_columns(row)
    if not names:
        raise BadRow("missing field", "prompt")
    if len(names) > 1:
        raise BadRow(
            "ambiguous prompt", f"columns {', '.join(names)}; set 'columns: {{prompt: NAME}}' to the one meant"
        )
    value = row[names[0]]
    if names == ["instruction"]:
        return _instruction(value, row.get("input"))
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
    return [(_instruction(row.get("instruction"), one.get("input")), one.get("output")) for one in instances]


def _completed(turns: Conversation, completion: Any, raw: RawRow, name: str = "output") -> Demonstration:
    prompt = check_prompt(turns, raw.repairs)
    reply = reply_of(completion, name, prompt)
    check_ends_with_reply([reply])
    return Demonstration([*prompt, reply], raw.origin)


def message_pair(row: dict[str, Any], repairs: set[str]) -> tuple[Conversation, str, str]:
    """TRL's preference formats: a prompt and two replies, or two whole conversations.

    With a prompt, chosen and rejected may still repeat it in front of the reply, as in UltraFeedback.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not prompt_columns(row):
        if isinstance(chosen, str):
            raise BadRow("missing field", "prompt (chosen is plain text, which does not hold one)")
        return pair_of(check_messages(chosen, "chosen"), check_messages(rejected, "rejected"), repairs)
    prompt = asked(row, repairs)
    return pair_of(
        [*prompt, reply_of(chosen, "chosen", prompt)], [*prompt, reply_of(rejected, "rejected", prompt)], repairs
    )


def _dialogue(messages: Conversation, repairs: set[str]) -> Conversation:
    """A tidy conversation in which the user speaks before the assistant answers."""
    tidy = tidy_turns(messages, repairs)
    if all(message["role"] != "user" for message in tidy):
        raise BadRow("empty prompt")
    return tidy


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


def _margin(row: dict[str, Any]) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, (int, float)) or not abs(margin) <= sys.float_info.max:
        raise BadRow("wrong type", f"margin is not a finite number: {extract(margin)}")
    if margin < 0:
        raise BadRow("negative margin", f"{margin:g}: chosen would be the worse reply")
    return float(margin)
