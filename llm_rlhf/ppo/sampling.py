"""Sampling responses, and keeping what the sampler computed on the way: log-probabilities, and perhaps values.

transformers' `generate` is watched by hooks (`watch_generate`); continuous batching and vLLM (vllm.py) return
log-probabilities of their own, which become importance weights because their kernels are not the update's.

Layout: B rows, V vocabulary, S sampling steps.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_rlhf.models.decoding_loop import SamplingError
from llm_rlhf.models.roles import apply_head
from llm_rlhf.models.sampler import PolicySampler
from llm_rlhf.ppo.config import sampled_otherwise
from llm_rlhf.training import is_sharded


class Sampled(NamedTuple):
    """What the sampler computed for each response, one row of numbers a token."""

    logprobs: list[list[float]]
    entropies: list[list[float]] | None = None
    values: list[list[float]] | None = None  # of the state before each token

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


class GenerateWatch:
    """Collects, step by step, what a policy's `generate` computes anyway: no second forward, no (B, S, V) logits."""

    def __init__(self, value_head: Any, temperature: float) -> None:
        self.value_head, self.temperature = value_head, temperature
        self.logprobs: list[Tensor] = []  # of the tokens sampled so far but the last, (B,) each
        self.entropies: list[Tensor] = []
        self.values: list[Tensor] = []
        self.last_BV: Tensor | None = None  # log-probabilities the newest token was drawn from

    def see_hidden(self, _module: Any, _args: Any, output: Any) -> None:
        self.values.append(apply_head(self.value_head, output.last_hidden_state[:, -1]))

    def see_logits(self, _module: Any, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self.last_BV is not None:
            self.logprobs.append(self.last_BV.gather(1, kwargs["input_ids"][:, -1:]).squeeze(1))
        self.last_BV = (output.logits[:, -1].float() / self.temperature).log_softmax(-1)
        self.entropies.append(-(self.last_BV.exp() * self.last_BV).sum(1))

    def rows(self, response_ids: list[list[int]]) -> Sampled:
        """What was seen of each response, cut to its length. SamplingError where steps and tokens do not agree."""
        steps = len(self.entropies)
        longest = max(len(ids) for ids in response_ids)
        if longest != steps or self.last_BV is None:
            raise SamplingError(
                f"generate made {steps} forwards for responses of up to {longest} tokens, so that its "
                "log-probabilities cannot be matched to tokens; set old_logprobs: rescored."
            )
        last = torch.tensor([ids[-1] for ids in response_ids], device=self.last_BV.device)
        logprobs = torch.stack([*self.logprobs, self.last_BV.gather(1, last.unsqueeze(1)).squeeze(1)], 1).tolist()
        entropies, values = torch.stack(self.entropies, 1).tolist(), torch.stack(self.values, 1).tolist()
        lengths = [len(ids) for ids in response_ids]
        return Sampled(
            *([row[:n] for row, n in zip(rows, lengths, strict=True)] for rows in (logprobs, entropies, values))
        )


@contextlib.contextmanager
def watch_generate(model: Any, value_head: Any, temperature: float) -> Iterator[GenerateWatch]:
    """Watch one `generate` of a causal language model, whose batch keeps its rows."""
    watch = GenerateWatch(value_head, temperature)
    hooks = [
        model.base_model.register_forward_hook(watch.see_hidden),
        model.register_forward_hook(watch.see_logits, with_kwargs=True),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


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
