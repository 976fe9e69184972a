"""Rows cut to a number of tokens at turn boundaries, with an account of what was done."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_rlhf.data.checks import fit_conversation
from llm_rlhf.data.rows import Conversation, Demonstration, Message, Preference, Prompt, Rating
from llm_rlhf.models.encoding import (
    Encoded,
    encode_demonstration,
    encode_prompt,
    encode_replies,
    encode_turn,
    encode_whole_replies,
)
from llm_rlhf.models.rendering import RefusedByTemplateError
from llm_rlhf.models.thoughts import KEY, split_thought, thought_marks

EncodesReplies = Callable[[Any, Sequence[Conversation], Sequence[str]], list[Encoded]]


class Fitted:
    """Rows cut to a number of tokens at turn boundaries, the end kept, with an account of what was done.

    `cut` rows lost their oldest turns; `set_aside` rows do not fit even with their last user turn alone; `refused` are
    those that the chat template has an objection to, or that say nothing behind their thoughts, with the reason. Of
    demonstrations, `examples` are what the kept rows came to, without `turns_too_long`: turns with an example of their
    own that does not fit.
    """

    def __init__(self, limit: int, what: str) -> None:
        self.limit, self.what = limit, what
        self.kept = self.cut = self.examples = self.turns_too_long = 0
        self.set_aside: list[str] = []
        self.refused: list[tuple[str, str]] = []

    def fit(self, prompt: Conversation, length: Callable[[Conversation], int], origin: object) -> Conversation | None:
        try:
            fitted = fit_conversation(prompt, length, self.limit)
        except RefusedByTemplateError as error:
            self.refused.append((str(origin), str(error)))
            return None
        if fitted is None:
            self.set_aside.append(str(origin))
            return None
        self.kept += 1
        self.cut += fitted != prompt
        return fitted

    def counts(self) -> dict[str, Any]:
        counts = {
            "token_limit": self.limit,
            "kept": self.kept,
            "cut_at_turns": self.cut,
            "too_long": len(self.set_aside),
        }
        more = {
            "refused_by_template": len(self.refused),
            "turns_too_long": self.turns_too_long,
            "examples": self.examples if self.examples != self.kept else 0,
        }
        return counts | {name: count for name, count in more.items() if count}

    @property
    def objection(self) -> str:
        """A sentence on the rows that the template refuses, with a blank before it; empty where it refuses none."""
        if not self.refused:
            return ""
        origin, reason = self.refused[0]
        rows = "one of them" if len(self.refused) == 1 else f"{len(self.refused):,} of them"
        return f" The chat template refuses {rows} (the first: {origin}): {reason.rstrip('.')}."

    def write(self, folder: Path) -> dict[str, Any]:
        """Add the counts to `lengths.json`, the rows to `too_long.jsonl` and `refused_by_template.jsonl`, and say so.

        Returns:
            The counts.
        """
        path = folder / "lengths.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        known[self.what] = self.counts()
        path.write_text(json.dumps(known, indent=1), encoding="utf-8")
        if self.set_aside:
            with (folder / "too_long.jsonl").open("a", encoding="utf-8") as file:
                for origin in self.set_aside:
                    file.write(json.dumps({"what": self.what, "origin": origin, "limit": self.limit}) + "\n")
        if self.refused:
            with (folder / "refused_by_template.jsonl").open("a", encoding="utf-8") as file:
                for origin, reason in self.refused:
                    file.write(json.dumps({"what": self.what, "origin": origin, "reason": reason}) + "\n")
            print(f"      {self.what}:{self.objection} Set aside; see refused_by_template.jsonl.", flush=True)
        return self.counts()


def how_many_fit(
    fit: Callable[[Any, Sequence[Any], Fitted], Sequence[Any]],
    tokenizer: Any,
    rows: Iterable[Any],
    account: Fitted,
    needed: int,
) -> int:
    """How many rows fit; no more than `needed` are looked for.

    Args:
        fit: one of the functions below.
    """
    found = 0
    for row in rows:
        found += len(fit(tokenizer, [row], account))
        if found >= needed:
            break
    return found


def fit_demonstrations(tokenizer: Any, rows: Sequence[Demonstration], account: Fitted) -> list[dict[str, list[int]]]:
    """Token ids and loss mask of every demonstration that fits, as SFTTrainer's `input_ids` and `assistant_masks`.

    One that holds turns which the template rewrites becomes several (`encode_demonstration`).
    """
    encoded = []
    for row in rows:
        reply = row.messages[-1]

        def length(prompt: Conversation, reply: Message = reply) -> int:
            if KEY not in reply:
                _check_thoughts(tokenizer, reply["content"])
            return len(encode_turn(tokenizer, prompt, reply).ids)

        prompt = account.fit(row.messages[:-1], length, row.origin)
        if prompt is None:
            continue
        messages = [*prompt, reply]
        examples = encode_demonstration(tokenizer, messages, imitated(row, messages))
        fitting = [example for example in examples if len(example.ids) <= account.limit]
        account.examples += len(fitting)
        account.turns_too_long += len(examples) - len(fitting)
        encoded += [{"input_ids": ids, "assistant_masks": mask} for ids, mask in fitting]
    return encoded


def imitated(row: Demonstration, messages: Conversation) -> list[int]:
    """The numbers of the turns to imitate among the messages, which are the row's or the end of them."""
    if not row.every_reply:
        return [len(messages) - 1]
    count = len(messages)
    return [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and i - count not in row.context]


def fit_preferences(
    tokenizer: Any, rows: Sequence[Preference], account: Fitted, encode: EncodesReplies = encode_replies
) -> list[Preference]:
    """The pairs of which both replies fit behind the same, possibly shortened, prompt.

    Args:
        encode: `encode_replies`, as reward models read them, or `encode_whole_replies`, as a policy says them.
    """
    fitted = []
    for row in rows:

        def longest(prompt: Conversation, row: Preference = row) -> int:
            _check_thoughts(tokenizer, row.chosen, row.rejected)
            return max(len(each.ids) for each in encode(tokenizer, [prompt] * 2, [row.chosen, row.rejected]))

        prompt = account.fit(row.prompt, longest, row.origin)
        if prompt is not None:
            fitted.append(replace(row, prompt=prompt))
    return fitted


def fit_ratings(tokenizer: Any, rows: Sequence[Rating], account: Fitted) -> list[Rating]:
    """The rated replies that fit behind their prompt, which may be shortened, as a policy says them."""
    fitted = []
    for row in rows:

        def length(prompt: Conversation, row: Rating = row) -> int:
            _check_thoughts(tokenizer, row.reply)
            return len(encode_whole_replies(tokenizer, [prompt], [row.reply])[0].ids)

        prompt = account.fit(row.prompt, length, row.origin)
        if prompt is not None:
            fitted.append(replace(row, prompt=prompt))
    return fitted


def _check_thoughts(tokenizer: Any, *replies: str) -> None:
    """RefusedByTemplateError where a reply is nothing but a thought, or several differ in their thoughts alone."""
    said = [split_thought(text, thought_marks(tokenizer)) for text in replies]
    if any(thought and not reply for thought, reply in said):
        raise RefusedByTemplateError("a reply is a thought and nothing else")
    if len(set(replies)) > 1 and len({reply.strip() for _, reply in said}) == 1:
        raise RefusedByTemplateError("without their thoughts the two replies are the same")


def fit_prompts(tokenizer: Any, rows: Sequence[Prompt], account: Fitted) -> list[Prompt]:
    """The prompts that leave room for a reply: the account's limit is the context less the reply's length."""
    fitted = []
    for row in rows:
        messages = account.fit(row.messages, lambda p: len(encode_prompt(tokenizer, p)), row.origin)
        if messages is not None:
            fitted.append(replace(row, messages=messages))
    return fitted
