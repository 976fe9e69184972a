"""Sampling responses, and keeping what the sampler computed on the way: log-probabilities, and perhaps values.

Our own loop (models/decoding_loop.py) keeps all of it; continuous batching and vLLM (vllm.py) return log-probabilities
of their own, which become importance weights because their kernels are not the update's.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from llm_rlhf.models.decoding_loop import DecodingLoop, SamplingError
from llm_rlhf.models.sampler import PolicySampler
from llm_rlhf.ppo.config import sampled_otherwise
from llm_rlhf.training import is_sharded


class Sampled(NamedTuple):
    """What the sampler computed for each response, one row of numbers a token."""

    logprobs: list[list[float]]
    entropies: list[list[float]] | None = None
    values: list[list[float]] | None = None  # of the state before each token

    @staticmethod
    def by(loop: DecodingLoop, lengths: Sequence[int]) -> "Sampled":
        """What a loop kept of responses of so many tokens."""
        columns = [
            None if of_BS is None else [row[:n] for row, n in zip(of_BS.tolist(), lengths, strict=True)]
            for of_BS in (loop.logprobs_BS, loop.entropies_BS, loop.values_BS)
        ]
        return Sampled(*columns)  # type: ignore[arg-type]  # the first column is always there

    @staticmethod
    def together(parts: "list[Sampled]") -> "Sampled":
        """What was computed part by part, as one."""
        columns = [
            None if rows[0] is None else [row for part in rows for row in part] for rows in zip(*parts, strict=True)
        ]
        return Sampled(*columns)  # type: ignore[arg-type]  # the first column is always there


def own_sampler(
    args: Any, accelerator: Any, base: Any, adapter: str | None, merge: bool | None = None, **how: Any
) -> PolicySampler | None:
    """Our own loop for an online trainer's policy; None where its configuration asks for what the loop does not know.

    Args:
        adapter, merge, how: as PolicySampler's. Weights that are spread over processes are never merged.
    """
    if sampled_otherwise(args):
        return None
    dtype = torch.bfloat16 if accelerator.mixed_precision == "bf16" else base.dtype
    spread = is_sharded(accelerator)
    return PolicySampler(base, dtype, args.temperature, adapter, merge=False if spread else merge, synced=spread, **how)


def continuous_batches(
    model: Any, prompt_ids: list[list[int]], generation_config: Any, batching_config: Any
) -> tuple[list[list[int]], Sampled]:
    """Responses and their log-probabilities by transformers' continuous batching, in the prompts' order.

    The weights are left as they are; TRL's own call casts them, trainable ones too, to the compute type in place.

    Raises:
        SamplingError: where a request failed; the engine itself returns what it has without a word.
    """
    batching_config.return_logprobs = True
    with torch.no_grad():
        outputs = list(
            model.generate_batch(
                prompt_ids,
                generation_config=generation_config,
                continuous_batching_config=batching_config,
                progress_bar=False,
            ).values()
        )
    failed = [output for output in outputs if output.error is not None]
    if failed or len(outputs) != len(prompt_ids):
        why = f"the first error is: {failed[0].error}" if failed else "the engine stopped; its own message is above"
        raise SamplingError(
            f"Continuous batching returned {len(outputs) - len(failed)} of {len(prompt_ids)} responses; {why}. "
            "Give it more memory through transformers_continuous_batching_config, or use plain generate."
        )
    for prompt, output in zip(prompt_ids, outputs, strict=True):
        if list(output.prompt_ids) != list(prompt) or len(output.logprobs) != len(output.generated_tokens):
            raise SamplingError(
                "Continuous batching returned its responses in another order, or without log-probabilities."
            )
    return [list(o.generated_tokens) for o in outputs], Sampled([list(o.logprobs) for o in outputs])
