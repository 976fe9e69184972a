"""Rows as the model will see them: the tokens of llm_rlhf/models/encoding.py, spelled out for a terminal.

Every token is there, a thin bar before each; special tokens stand in guillemets, a new line is a sign before it starts.
What a stage trains on is green, and in double brackets where there is no colour. Whatever in the data could steer a
terminal or hide (escapes, control characters, zero width, right-to-left marks) is escaped.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llm_rlhf.audit.check import Tokens, load_as
from llm_rlhf.data.checks import prompt_of
from llm_rlhf.data.rows import Conversation, Demonstration, Preference, Prompt
from llm_rlhf.errors import DataError, RecipeError
from llm_rlhf.recipe.sections import ModelSection, Source

KINDS = {"sft": "demonstrations", "reward": "preferences", "ppo": "prompts"}

_TRAINED, _SCORE, _SPECIAL, _FAINT = "32", "30;43", "1;35", "2"
_SEVERAL_SPACES = re.compile(r"  +| (?=\n|\Z)")


class Piece(NamedTuple):
    """One token, or the few that share one character, as text."""

    text: str
    special: bool
    part: str  # "context", "trained", or "score": the token whose hidden state is scored


def numbers(text: str) -> set[int]:
    """Row numbers from `7`, `1-5` or `2,4,9-12`.

    Raises:
        RecipeError: for anything else.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last or last - first >= 10_000:
            raise RecipeError(f"--rows is {text!r}; give numbers from 1 on, as in 7, 1-5 or 2,4,9-12.")
        found |= set(range(first, last + 1))
    return found


def show_rows(
    sources: list[Source], wanted: set[int], section: ModelSection | None, stage: str | None, colour: bool
) -> Iterator[str]:
    """The text of each row wanted, in the order of the source, those set aside with their reason.

    Args:
        section: the model whose tokenizer and template are used; None: the conversations as read.
        stage: what the rows are shown for; None: what they can serve as first.

    Raises:
        DataError: where no source has a row of these numbers.
        RecipeError: for an unknown stage.
    """
    if stage is not None and stage not in KINDS:
        raise RecipeError(f"--stage is {stage!r}; it must be one of {', '.join(KINDS)}.")
    tokenizer = Tokens(section, 0).tokenizer if section is not None else None
    found = False
    if tokenizer is not None:
        yield legend(colour)
    for source in sources:
        _, loaded = load_as([source], KINDS[stage] if stage else None)
        for item in loaded.set_aside:
            if item.origin.row in wanted:
                found = True
                detail = f" ({safe(item.detail)})" if item.detail else ""
                yield f"{_heading(str(item.origin), colour)}\nset aside: {item.reason}{detail}\n"
        for row in loaded.rows:
            if row.origin.row in wanted:
                found = True
                yield f"{_heading(_described(row), colour)}\n{_body(row, tokenizer, colour)}\n"
    if not found:
        raise DataError(f"No source has a row {', '.join(map(str, sorted(wanted)[:5]))}; rows are counted from 1.")


def legend(colour: bool) -> str:
    """What the signs mean."""
    trained, score = _marked("trained on", "trained", colour), _marked("scored", "score", colour)
    return f"{trained}, {score}, {_special('<special token>', colour)}, ⏎ new line, · space, | next token\n"


def pieces(tokenizer: Any, ids: Sequence[int], parts: Sequence[str]) -> list[Piece]:
    """The tokens as text. Tokens that only together make a character are one piece, so that nothing is garbled."""
    from llm_rlhf.models.rendering import special_tokens

    special = special_tokens(tokenizer).keys()
    found: list[Piece] = []
    done = start = 0
    for end in range(1, len(ids) + 1):
        if ids[end - 1] in special:
            text = str(tokenizer.convert_ids_to_tokens(ids[end - 1]))
        else:
            before = _decoded(tokenizer, ids[max(done, start - 4) : start])
            text = _decoded(tokenizer, ids[max(done, start - 4) : end])[len(before) :]
            unfinished = text.endswith("\N{REPLACEMENT CHARACTER}") and end - start < 8
            if unfinished and end < len(ids) and ids[end] not in special:
                continue
            text = text or str(tokenizer.convert_ids_to_tokens(ids[end - 1])).replace("▁", " ")  # a leading space
        found.append(Piece(text, ids[end - 1] in special, parts[end - 1]))
        start = end
        done = end if ids[end - 1] in special else done  # a word after a special token may lose its space in context
    return found


def safe(text: str) -> str:
    """Text that cannot steer a terminal and hides nothing: every other character as it is, these as escapes."""
    return "".join(_escaped(character) if _is_unsafe(character) else character for character in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _is_unsafe(character: str) -> bool:
    return character != "\n" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _body(row: Preference | Demonstration | Prompt, tokenizer: Any, colour: bool) -> str:
    from llm_rlhf.models.rendering import RefusedByTemplateError

    if tokenizer is None:
        return _conversation(row, colour)
    try:
        return _encoded(row, tokenizer, colour)
    except RefusedByTemplateError as error:
        refused = f"The chat template refuses this row, which a run sets aside: {safe(str(error))}"
        return f"{refused}\n{_conversation(row, colour)}"


def _encoded(row: Preference | Demonstration | Prompt, tokenizer: Any, colour: bool) -> str:
    from llm_rlhf.models.encoding import encode_demonstration, encode_prompt, encode_reply
    from llm_rlhf.models.fitting import imitated

    if isinstance(row, Demonstration):
        examples = encode_demonstration(tokenizer, row.messages, imitated(row, row.messages))
        shown = []
        for number, (ids, mask) in enumerate(examples, start=1):
            title = f"{len(ids):,} tokens, {sum(mask):,} trained on"
            if len(examples) > 1:
                title += f" (example {number} of {len(examples)}: the template rewrites earlier turns)"
            parts = ["trained" if trained else "context" for trained in mask]
            shown.append(_sequence(title, tokenizer, ids, parts, colour))
        return "\n".join(shown)
    if isinstance(row, Prompt):
        ids = encode_prompt(tokenizer, row.messages)
        text = _sequence(f"{len(ids):,} tokens of prompt", tokenizer, ids, ["context"] * len(ids), colour)
        return text + _marked("generation starts here", "trained", colour)
    shown = []
    for name, (reply, stopped) in zip(("chosen", "rejected"), row.sides, strict=True):
        encoded = encode_reply(tokenizer, row.prompt, reply).as_said(stopped)
        of_prompt, of_reply = len(encoded.prompt_ids), len(encoded.reply_ids)
        parts = ["context"] * (of_prompt + of_reply - 1) + ["score"]
        title = f"{name}: {of_prompt:,} tokens of prompt and {of_reply:,} of reply"
        shown.append(_sequence(title, tokenizer, encoded.ids, parts, colour))
    return "\n".join(shown)


def _sequence(title: str, tokenizer: Any, ids: Sequence[int], parts: Sequence[str], colour: bool) -> str:
    """A title and the tokens; runs of one part are marked as a whole where there is no colour."""
    shown = pieces(tokenizer, ids, parts)
    bar = f"\033[{_FAINT}m|\033[0m" if colour else "|"
    text, last = "", "context"
    for piece in shown:
        if not colour and piece.part != last:
            text += _CLOSING[last] + _OPENING[piece.part]
        last = piece.part
        spelled = _special(safe(piece.text), colour) if piece.special else _spelled(piece.text)
        text += bar + (_coloured(spelled, piece.part) if colour else spelled)
    return f"{title}\n{text}{'' if colour else _CLOSING[last]}\n"


_OPENING = {"context": "", "trained": "[[", "score": "[score "}
_CLOSING = {"context": "", "trained": "]]", "score": "]"}


def _spelled(text: str) -> str:
    """Text of a token with spaces that are easily overlooked, tabs and new lines made visible."""
    text = safe(text.replace("\t", "→")) if text != " " else "·"
    return _SEVERAL_SPACES.sub(lambda match: "·" * len(match[0]), text).replace("\n", "⏎\n")


def _marked(text: str, part: str, colour: bool) -> str:
    return _coloured(text, part) if colour else f"{_OPENING[part]}{text}{_CLOSING[part]}"


def _coloured(text: str, part: str) -> str:
    codes = {"trained": _TRAINED, "score": _SCORE}
    return f"\033[{codes[part]}m{text}\033[0m" if part in codes else text


def _special(text: str, colour: bool) -> str:
    return f"\033[{_SPECIAL}m«{text}»\033[0m" if colour else f"«{text}»"


def _heading(text: str, colour: bool) -> str:
    return f"\033[1m{safe(text)}\033[0m" if colour else f"--- {safe(text)}"


def _described(row: Preference | Demonstration | Prompt) -> str:
    notes = [str(row.origin)]
    if not isinstance(row, Demonstration):
        notes.append(row.objective)
    if isinstance(row, Preference):
        notes += [f"margin {row.margin:g}"] if row.margin is not None else []
        notes += [f"label {row.confidence:g}"] if row.confidence < 1 else []
        notes += [f"chosen stood at {row.position}"] if row.position is not None else []
        notes += [
            f"{name} was cut" for name, (_, end) in zip(("chosen", "rejected"), row.sides, strict=True) if not end
        ]
    return " · ".join(notes)


def _conversation(row: Preference | Demonstration | Prompt, colour: bool) -> str:
    turns: Conversation = [*prompt_of(row)]
    if isinstance(row, Demonstration):
        turns.append(row.messages[-1])
    if isinstance(row, Preference):
        turns += [{"role": "chosen", "content": row.chosen}, {"role": "rejected", "content": row.rejected}]
    width = max(len(turn["role"]) for turn in turns)
    lines = []
    for turn in turns:
        role = f"{turn['role']:>{width}}"
        text = safe(turn["content"])
        if turn.get("reasoning_content"):
            text = f"(thinks: {safe(turn['reasoning_content'])})\n{text}"
        text = text.replace("\n", "\n" + " " * (width + 2))
        lines.append(f"{_coloured(role, 'trained') if colour and turn is turns[-1] else role}  {text}")
    return "\n".join(lines) + "\n"


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
