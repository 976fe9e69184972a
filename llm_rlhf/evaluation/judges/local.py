"""A causal language model on this machine as the judge, by the log-probabilities of its answers.

Nothing is sampled and nothing parsed: the question ends where the model's answer would begin, and "A" is compared with
"B" there. So every question has an answer, and how sure the model is is part of it. Layout: B rows, T tokens, V
vocabulary.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llm_rlhf.data.rows import Conversation
from llm_rlhf.evaluation.judges.prompts import (
    GRADES,
    LETTERS,
    compare_prompt,
    grade_of,
    grade_prompt,
    prompt_identity,
    verdict_of,
)
from llm_rlhf.evaluation.judges.protocol import Cost, Pair, Reading, Response
from llm_rlhf.launch import processes
from llm_rlhf.models.base import context_limit, load_causal_lm, load_tokenizer
from llm_rlhf.models.encoding import encode_reply
from llm_rlhf.models.inference import in_batches, left_padded
from llm_rlhf.models.roles import position_ids
from llm_rlhf.recipe.sections import ModelSection
from llm_rlhf.run_folder import file_digest

WEIGHTS = (".safetensors", ".bin", ".pt", ".gguf")


class _Question(NamedTuple):
    """Token ids that every answer shares, and what each answer adds to them."""

    shared_ids: list[int]
    answers: list[list[int]]

    @property
    def length(self) -> int:
        return len(self.shared_ids) + max(map(len, self.answers))


class LocalJudge:
    """Judges with a causal language model and its own chat template.

    Args:
        model: a causal language model, ready to read.
        identity: what to record of it; `model_identity` makes one.
        batch_size: questions read at once; the verdicts do not depend on it.
        context: tokens that a question may take; a longer one is a failed row, for a cut one would be judged in part.
    """

    def __init__(
        self, model: Any, tokenizer: Any, identity: dict[str, Any], batch_size: int = 8, context: int | None = None
    ) -> None:
        self.model, self.tokenizer, self._identity, self.batch_size = model, tokenizer, identity, batch_size
        self.context = context or context_limit(ModelSection(), model.config)

    @classmethod
    def load(cls, path: str | Path, section: ModelSection, batch_size: int = 8) -> "LocalJudge":
        """The judge from a folder or hub id, in the section's type and quantisation."""
        tokenizer = load_tokenizer(path, section)
        model = load_causal_lm(path, section, tokenizer)
        if section.quantization == "none":
            model.to(processes().device)
        identity = model_identity(path, getattr(model.config, "_commit_hash", None))
        identity |= {"dtype": section.dtype, "quantization": section.quantization}
        return cls(model.eval(), tokenizer, identity, batch_size, context_limit(section, model.config))

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "local model",
            **self._identity,
            "prompt": prompt_identity(),
            "decoding": "log-probabilities of the answers; nothing is sampled",
        }

    def read_pairs(self, pairs: Sequence[Pair], progress: str | None, most_failures: int) -> list[Reading]:
        questions = [compare_prompt(pair.prompt, pair.a, pair.b, pair.rubric, "letter") for pair in pairs]
        return self._read(questions, LETTERS, verdict_of, progress)

    def read_responses(self, rows: Sequence[Response], progress: str | None, most_failures: int) -> list[Reading]:
        """Expected grades, from 1 to 5."""
        questions = [grade_prompt(row.prompt, row.response, row.rubric, "digit") for row in rows]
        return self._read(questions, GRADES, grade_of, progress)

    def _read(
        self,
        prompts: Sequence[Conversation],
        answers: Sequence[str],
        value_of: Callable[[list[float]], float],
        progress: str | None,
    ) -> list[Reading]:
        questions = [self._encoded(prompt, answers) for prompt in prompts]
        fitting = [i for i, question in enumerate(questions) if question.length <= self.context]
        readings = [
            Reading(None, "too long", f"the question has {q.length} tokens and the judge reads {self.context}", Cost())
            for q in questions
        ]
        found = in_batches(
            [questions[i] for i in fitting], self._logprobs, self.batch_size, lambda q: q.length, progress
        )
        for i, logprobs in zip(fitting, found, strict=True):
            cost = Cost(requests=1, prompt_tokens=len(questions[i].shared_ids))
            value = value_of(logprobs)
            finite = value == value  # NaN logits, from a model that overflowed
            readings[i] = (
                Reading(value, cost=cost) if finite else Reading(None, "not finite", "the logits are not finite", cost)
            )
        return readings

    def _encoded(self, prompt: Conversation, answers: Sequence[str]) -> _Question:
        """The answers as the template writes them, without the stop token: a model may go on after the letter."""
        rows = [encode_reply(self.tokenizer, prompt, answer).ids[:-1] for answer in answers]
        shared = rows[0][: _same_start(rows)]
        tails = [row[len(shared) :] for row in rows]
        if not all(tails):
            raise ValueError(f"The judge's tokenizer cannot tell the answers {', '.join(answers)} apart.")
        return _Question(shared, tails)

    def _logprobs(self, questions: list[_Question]) -> list[list[float]]:
        """Total log-probability of every answer, in nats, in float32. One forward where answers are single tokens."""
        rows: list[tuple[list[int], list[list[int]]]] = []
        for question in questions:
            if all(len(tail) == 1 for tail in question.answers):
                rows.append((question.shared_ids, question.answers))
            else:
                rows += [(question.shared_ids + tail[:-1], [tail]) for tail in question.answers]
        places = max(len(tail) for _, tails in rows for tail in tails)
        logprobs = self._last_logprobs([ids for ids, _ in rows], places)
        found: list[float] = []
        for row, (_, tails) in enumerate(rows):
            for tail in tails:
                chosen = logprobs[row, range(places - len(tail), places), tail]
                found.append(float(chosen.sum()))
        count = len(questions[0].answers)
        return [found[i : i + count] for i in range(0, len(found), count)]

    @torch.no_grad()
    def _last_logprobs(self, rows: list[list[int]], places: int) -> torch.Tensor:
        """Log-probabilities of what follows each row's last tokens, (B, places, V), in float32 on the CPU."""
        ids_BT, mask_BT = left_padded(rows, self.tokenizer.pad_token_id, self.model.device)
        inputs: dict[str, Any] = {"input_ids": ids_BT, "attention_mask": mask_BT, "use_cache": False}
        takes = inspect.signature(self.model.forward).parameters
        if "position_ids" in takes:  # learned positions count the padding otherwise
            inputs["position_ids"] = position_ids(mask_BT)
        if "logits_to_keep" in takes:
            inputs["logits_to_keep"] = places
        logits_BTV = self.model(**inputs).logits[:, -places:]
        return logits_BTV.float().log_softmax(-1).cpu()


def _same_start(rows: Sequence[list[int]]) -> int:
    """How many leading tokens all rows share."""
    return next((i for i, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))


def model_identity(
    path: str | Path,
    revision: str | None = None,
    adapter: str | Path | None = None,
    weights: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What to record of a model: its name, its hub revision, and for a folder the SHA-256 of its weight files.

    Args:
        adapter: a folder of LoRA weights on top of it.
        weights: what `weight_digests` says of it, where that is known already.
    """
    found: dict[str, Any] = {
        "model": str(path),
        "revision": revision,
        "weights": weight_digests(path) if weights is None else weights,
    }
    if adapter is not None:
        found["adapter"] = weight_digests(adapter) or str(adapter)
    return found


def weight_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each weight file of a folder; empty for a hub id."""
    if not Path(folder).is_dir():
        return {}
    return {path.name: file_digest(path) for path in sorted(Path(folder).iterdir()) if path.suffix in WEIGHTS}
