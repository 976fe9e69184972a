"""What is in the rows of a source, counted in one pass: turns, lengths, repeats, imbalances, suspected personal data.

Everything is a count with its rows, nothing is judged here; llm_rlhf/audit/check.py says in words what is notable.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llm_rlhf.audit.personal import masked, suspicions
from llm_rlhf.data.checks import normalised_prompt, opening, prompt_of
from llm_rlhf.data.near_duplicates import near_pairs
from llm_rlhf.data.rows import Conversation, Demonstration, Origin, Preference, Prompt, Rating

ROWS_NAMED = 20  # rows that a list of rows names at most

# How a reply begins that refuses. A rough sign, to see an imbalance; how often a policy refuses is not measured by it.
_REFUSAL = re.compile(
    r"(?i)\W{0,3}(?:(?:i['’]m|i am) (?:very |really |so )?(?:sorry|afraid)|sorry\b|(?:i )?apologi[sz]e"
    r"|(?:no, |well, )?i (?:can['’]?t|cannot|can not|won['’]?t|will not)"
    r"|(?:no, |well, )?i (?:do not|don['’]t) (?:think i can|feel comfortable)"
    r"|(?:no, )?(?:i['’]m|i am) (?:not (?:able|comfortable|going to|sure i can)|unable)|as an ai\b)"
)


@dataclass
class Listed:
    """How many rows something holds of, and the first of them with a note each."""

    count: int = 0
    first: list[tuple[Origin, str]] = field(default_factory=list)

    def add(self, origin: Origin, note: str = "") -> None:
        self.count += 1
        if len(self.first) < ROWS_NAMED:
            self.first.append((origin, note))

    def as_dict(self) -> dict[str, Any]:
        rows = [{"source": origin.source, "row": origin.row, "note": note} for origin, note in self.first]
        return {"count": self.count, "first": rows}


@dataclass
class Account:
    """Counts over typed rows. Shares come as (how many, of how many), for an interval to be put around them."""

    rows: int = 0
    user_turns: Counter[int] = field(default_factory=Counter)  # of the prompt
    objectives: Counter[str] = field(default_factory=Counter)
    characters: dict[str, list[int]] = field(default_factory=dict)  # of prompt, chosen, rejected, reply, thoughts
    duplicate_rows: Listed = field(default_factory=Listed)  # the same prompt and replies, word for word, once more
    repeated_prompts: Listed = field(default_factory=Listed)  # a prompt of an earlier row, but for case and space
    judged_both_ways: Listed = field(default_factory=Listed)  # an earlier pair with chosen and rejected exchanged
    first_is_chosen: int = 0
    with_position: int = 0
    longer_is_chosen: int = 0
    of_different_length: int = 0
    refusal_is_chosen: int = 0
    one_refuses: int = 0
    soft_labels: int = 0  # confidence under 1
    with_margin: int = 0
    cut: int = 0  # replies that did not end by themselves, of pairs and ratings
    personal: dict[str, Listed] = field(default_factory=dict)  # kind: rows with something that looks like it
    openings: dict[str, Origin] = field(default_factory=dict)  # distinct first user turns: where each stands first
    near: Listed = field(default_factory=Listed)  # openings nearly the same as another one
    # Python's 64-bit hashes of rows and prompts met so far: of a million, two share one once in 10^7 times.
    _row_keys: set[int] = field(default_factory=set, repr=False)
    _prompt_keys: set[int] = field(default_factory=set, repr=False)

    def add(self, row: Preference | Rating | Demonstration | Prompt) -> None:
        prompt = prompt_of(row)
        self.rows += 1
        self.user_turns[sum(turn["role"] == "user" for turn in prompt)] += 1
        replies = _replies(row)
        self._count_repeats(row, prompt, list(replies.values()))
        for name, text in {"prompt": "\n".join(turn["content"] for turn in prompt), **replies}.items():
            self.characters.setdefault(name, []).append(len(text))
        if isinstance(row, (Preference, Rating, Prompt)):
            self.objectives[row.objective] += 1
        if isinstance(row, Preference):
            self._count_balance(row)
        if isinstance(row, Rating):
            self.cut += not row.stopped
        self._suspect(
            row.origin, [*(text for turn in prompt for key, text in turn.items() if key != "role"), *replies.values()]
        )

    def _count_repeats(self, row: Any, prompt: Conversation, replies: list[str]) -> None:
        written = tuple(tuple(turn.values()) for turn in prompt)
        key = hash((written, *replies))
        if key in self._row_keys:
            self.duplicate_rows.add(row.origin)
        elif isinstance(row, Preference) and hash((written, *replies[::-1])) in self._row_keys:
            self.judged_both_ways.add(row.origin)
        self._row_keys.add(key)
        normalised = hash(normalised_prompt(prompt))
        if normalised in self._prompt_keys:
            self.repeated_prompts.add(row.origin)
        self._prompt_keys.add(normalised)
        self.openings.setdefault(opening_text(prompt), row.origin)

    def _count_balance(self, row: Preference) -> None:
        self.soft_labels += row.confidence < 1
        self.with_margin += row.margin is not None
        self.cut += sum(not stopped for _, stopped in row.sides)
        if row.position is not None:
            self.with_position += 1
            self.first_is_chosen += row.position == 1
        if len(row.chosen) != len(row.rejected):
            self.of_different_length += 1
            self.longer_is_chosen += len(row.chosen) > len(row.rejected)
        chosen, rejected = (_REFUSAL.match(reply) is not None for reply in (row.chosen, row.rejected))
        if chosen != rejected:
            self.one_refuses += 1
            self.refusal_is_chosen += chosen

    def _suspect(self, origin: Origin, texts: list[str]) -> None:
        seen: set[str] = set()
        for text in texts:
            for kind, start, end in suspicions(text):
                if kind not in seen:  # a row counts once for a kind
                    seen.add(kind)
                    self.personal.setdefault(kind, Listed()).add(origin, masked(text[start:end]))

    def find_near_duplicates(self, threshold: float, progress: Callable[[int], None] | None = None) -> None:
        """Fill `near`: distinct first user turns that are similar to another one, with the other's place."""
        texts = list(self.openings)
        twin: dict[int, tuple[int, float]] = {}
        for first, second, similarity in near_pairs(texts, threshold, progress):
            twin.setdefault(first, (second, similarity))
            twin.setdefault(second, (first, similarity))
        self.near = Listed()
        places = list(self.openings.values())
        for place, (other, similarity) in sorted(twin.items()):
            if place < other or len(self.near.first) == ROWS_NAMED:
                self.near.add(places[place], f"like {places[other]} ({similarity:.2f})")
            else:
                self.near.count += 1  # named already, beside the other

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of lengths the quantiles, of openings their number."""
        listed = ("duplicate_rows", "repeated_prompts", "judged_both_ways", "near")
        return {
            "rows": self.rows,
            "user_turns": dict(sorted(self.user_turns.items())),
            "objectives": dict(sorted(self.objectives.items())),
            "characters": {name: quantiles(lengths) for name, lengths in self.characters.items()},
            "openings": len(self.openings),
            **{name: getattr(self, name).as_dict() for name in listed},
            "chosen_first": [self.first_is_chosen, self.with_position],
            "chosen_longer": [self.longer_is_chosen, self.of_different_length],
            "chosen_refuses": [self.refusal_is_chosen, self.one_refuses],
            "soft_labels": self.soft_labels,
            "with_margin": self.with_margin,
            "cut": self.cut,
            "personal": {kind: found.as_dict() for kind, found in sorted(self.personal.items())},
        }


def opening_text(prompt: Conversation) -> str:
    """The normalised first user turn, by which prompts are split and compared for similarity."""
    return normalised_prompt(opening(prompt)).removeprefix("user: ")


def quantiles(lengths: list[int]) -> dict[str, int]:
    """Median, 95th percentile and maximum; empty where there is nothing."""
    if not lengths:
        return {}
    values = np.percentile(np.asarray(lengths), (50, 95, 100))
    return dict(zip(("median", "p95", "max"), (round(float(value)) for value in values), strict=True))


def _replies(row: Preference | Rating | Demonstration | Prompt) -> dict[str, str]:
    if isinstance(row, Preference):
        return {"chosen": row.chosen, "rejected": row.rejected}
    if isinstance(row, Rating):
        return {"good" if row.good else "bad": row.reply}
    if isinstance(row, Demonstration):
        thoughts = row.messages[-1].get("reasoning_content")
        return {"reply": row.messages[-1]["content"]} | ({"thoughts": thoughts} if thoughts else {})
    return {}
