"""People as the judge: verdicts that were collected before, read from a JSON-lines file."""

import codecs
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from llm_rlhf.data.rows import Conversation
from llm_rlhf.errors import RecipeError
from llm_rlhf.evaluation.judges.protocol import Cost, JudgeError, Pair, Reading, Response
from llm_rlhf.json_lines import lines_of, parse_json
from llm_rlhf.run_folder import file_digest

_WINNERS = {"a": 1.0, "b": 0.0, "tie": 0.5}


class StoredJudge:
    """Judges by what annotators said of the same two replies, in whichever order they saw them.

    A line is `{"prompt": text or messages, "a": ..., "b": ..., "winner": "a" | "b" | "tie" | null, "annotator": ...}`;
    a null winner is a pair that was shown and passed over. Several verdicts of one annotator on one pair are averaged,
    so that nobody counts twice.

    Args:
        annotators: how many people were to judge each pair. Verdicts short of that are counted in the identity as
            missing; a pair that nobody judged is a failed row.
        combine: "mean" is the share of annotators that prefer `a`; "majority" is 1, 0 or, where they are even, 0.5.

    Raises:
        RecipeError: where a line cannot be read, by its number.
    """

    def __init__(self, path: str | Path, annotators: int = 1, combine: Literal["mean", "majority"] = "mean") -> None:
        self.path, self.annotators, self.combine = Path(path), annotators, combine
        self._verdicts: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._passed_over = self._missing = 0
        try:
            data = self.path.read_bytes().removeprefix(codecs.BOM_UTF8)
        except OSError as error:
            raise RecipeError(f"The verdicts in {path} cannot be read: {error}") from None
        for number, line in lines_of(data):
            self._add(line, number)
        if not self._verdicts:
            raise RecipeError(f"The file {path} holds no verdict; {self._passed_over} pairs were passed over.")

    def identity(self) -> dict[str, Any]:
        people = {name for verdicts in self._verdicts.values() for name in verdicts}
        return {
            "kind": "people",
            "model": "people",
            "file": self.path.name,
            "sha256": file_digest(self.path),
            "people": len(people),
            "annotators_per_pair": self.annotators,
            "combine": self.combine,
            "missing_verdicts": self._missing,
            "passed_over": self._passed_over,
        }

    def read_pairs(self, pairs: Sequence[Pair], progress: str | None, most_failures: int) -> list[Reading]:
        missing: dict[tuple[str, str, str], int] = {}
        readings = []
        for pair in pairs:
            key, turned = _key(pair.prompt, pair.a, pair.b)
            people = self._verdicts.get(key, {})
            missing[key] = max(0, self.annotators - len(people))
            readings.append(self._reading([sum(v) / len(v) for v in people.values()], turned))
        self._missing = sum(missing.values())
        return readings

    def read_responses(self, rows: Sequence[Response], progress: str | None, most_failures: int) -> list[Reading]:
        raise JudgeError(f"The people in {self.path} compared replies and graded none; name another judge for grades.")

    def _reading(self, verdicts: list[float], turned: bool) -> Reading:
        cost = Cost(requests=len(verdicts), uncounted=len(verdicts))
        if not verdicts:
            return Reading(None, "missing", f"nobody in {self.path} judged this pair", cost)
        mean = sum(verdicts) / len(verdicts)
        if self.combine == "majority":
            mean = _sign(sum(_sign(verdict) - 0.5 for verdict in verdicts) + 0.5)
        return Reading(1 - mean if turned else mean, cost=cost)

    def _add(self, line: bytes, number: int) -> None:
        where = f"The verdict in line {number} of {self.path}"
        try:
            row = parse_json(line.decode("utf-8"))
            prompt, a, b, winner, annotator = (row[name] for name in ("prompt", "a", "b", "winner", "annotator"))
        except (ValueError, KeyError, TypeError) as error:
            raise RecipeError(
                f"{where} needs prompt, a, b, winner and annotator as JSON: {type(error).__name__} {error}"
            ) from None
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        if not isinstance(a, str) or not isinstance(b, str) or not isinstance(prompt, list):
            raise RecipeError(f"{where} has a reply that is no text, or a prompt that is neither text nor messages.")
        if winner is None:
            self._passed_over += 1
            return
        if winner not in _WINNERS:
            raise RecipeError(f"{where} has winner {winner!r}; it must be a, b, tie or null.")
        key, turned = _key(prompt, a, b)
        value = _WINNERS[winner]
        self._verdicts[key][str(annotator)].append(1 - value if turned else value)


def _key(prompt: Conversation, a: str, b: str) -> tuple[tuple[str, str, str], bool]:
    """A pair whatever its order, and whether this order is the other way round."""
    turned = a > b
    first, second = (b, a) if turned else (a, b)
    return (json.dumps(prompt, sort_keys=True), first, second), turned


def _sign(value: float) -> float:
    return 0.5 if value == 0.5 else float(value > 0.5)
