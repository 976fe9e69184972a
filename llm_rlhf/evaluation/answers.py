"""One policy's replies to the evaluation prompts, row by row, and what is known of each by itself."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_rlhf.data.rows import Preference, Prompt
from llm_rlhf.evaluation.refusal_detector import detect_all
from llm_rlhf.models.inference import Reply
from llm_rlhf.run_folder import text_digest
from llm_rlhf.world.judge import judge

FACTS = ("kind", "phrasing")  # of a prompt that is written beside it, where they are known
MEASURED = ("reward", "heldout", "gold", "refused")  # the fields of `Answers` that may be written beside a reply


@dataclass
class Answers:
    texts: list[str]  # behind the thoughts
    lengths: list[int]  # of the texts, in tokens; in words where `replies` is None
    stopped: list[bool]
    thoughts: list[str] = field(default_factory=list)  # before each; no list where nobody thought
    replies: list[Reply] | None = None  # as sampled; None where a server sent text alone
    reward: list[float] | None = None  # by the reward model that PPO was trained against
    heldout: list[float] | None = None  # by the one that it never saw
    gold: list[float] | None = None  # the true score, where the recipe's world knows it
    refused: list[bool] | None = None  # by rule: the world's own, or the refusal detector's
    sequence_kl: list[float] = field(default_factory=list)  # nats from the start; empty for the start itself

    def in_words(self) -> "Answers":
        """The same without token ids: what it takes to compare with replies of which the text alone is known."""
        return replace(self, replies=None, lengths=[len(text.split()) for text in self.texts])

    @classmethod
    def of(cls, replies: Sequence[Reply]) -> "Answers":
        return cls(
            texts=[r.text for r in replies],
            lengths=[len(r.said_ids) for r in replies],
            stopped=[r.stopped for r in replies],
            thoughts=[r.thought for r in replies] if any(r.thought for r in replies) else [],
            replies=list(replies),
        )

    def read_by_rule(self, prompts: Sequence[Prompt]) -> None:
        """Fill in the true score where a world knows it, and refusals: by its rule, else by the detector.

        Refusals are looked for where some prompt says of what kind it is; elsewhere nobody could tell right from wrong.
        """
        if of_a_world(prompts):
            verdicts = [judge(p.facts, text) for p, text in zip(prompts, self.texts, strict=True)]
            self.gold, self.refused = [v.score for v in verdicts], [v.refused for v in verdicts]
        elif any("kind" in p.facts for p in prompts):
            found = detect_all([p.messages[-1]["content"] for p in prompts], self.texts)
            self.refused = [refusal.refused for refusal in found]


def of_a_world(prompts: Sequence[Prompt]) -> bool:
    """Whether a gold world made the prompts, so that it can judge the replies."""
    return all("animal" in prompt.facts for prompt in prompts)


def rows_digest(rows: Sequence[Prompt | Preference]) -> str:
    """SHA-256 of what the rows say, in their order; where they came from does not count."""
    said = [{name: value for name, value in vars(row).items() if name != "origin"} for row in rows]
    return text_digest(json.dumps(said, sort_keys=True))


def write_replies(path: Path, prompts: Sequence[Prompt], answers: Mapping[str, Answers]) -> None:
    """A line for each prompt with the reply of every policy, and what was measured of it."""
    with path.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(prompts):
            row: dict[str, Any] = {
                "prompt": prompt.messages,
                "objective": prompt.objective,
                "origin": str(prompt.origin),
                **{name: prompt.facts[name] for name in FACTS if name in prompt.facts},
            }
            for subject, given in answers.items():
                measured = {name: values[i] for name in MEASURED if (values := getattr(given, name)) is not None}
                thought = {"thought": given.thoughts[i]} if given.thoughts else {}
                row[subject] = {**thought, "reply": given.texts[i], "stopped": given.stopped[i], **measured}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
