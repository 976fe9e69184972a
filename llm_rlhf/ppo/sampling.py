"""Sampling responses, and keeping what the sampler computed on the way: log-probabilities, and perhaps values.

transformers' `generate` is watched by hooks (`watch_generate`); continuous batching and vLLM (vllm.py) return
log-probabilities of their own, which become importance weights because their kernels are not the update's.

Layout: B rows, V vocabulary, S sampling steps.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor

from llm_rlhf.errors import RunError
from llm_rlhf.models.adapters import POLICY, active_adapters, adapters_of, switches
from llm_rlhf.models.roles import apply_head


class SamplingError(RunError):
    """An engine did not return what it was asked for."""


class Sampled(NamedTuple):
    """What the sampler computed for each response, one row of numbers a token."""

    logprobs: list[list[float]]
    entropies: list[list[float]] | None = None
    values: list[list[float]] | None = None  # of the state before each token


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
def watch_generate(base: Any, temperature: float) -> Iterator[GenerateWatch]:
    """Watch one `generate` of a causal language model with a `value_head`."""
    watch = GenerateWatch(base.value_head, temperature)
    hooks = [
        base.base_model.register_forward_hook(watch.see_hidden),
        base.register_forward_hook(watch.see_logits, with_kwargs=True),
    ]
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def merged_policy(base: Any) -> Iterator[None]:
    """Sample with the policy's LoRA added to the base's matrices, until the block ends; then the very same base again.

    Two small products beside each of the base's are a third of the time of a small model's decoding. The sums are new
    tensors that stand in for the base's own, so that nothing is rounded into the base, and with it the reference; they
    take as much memory as the adapted layers. Only float32 layers are merged: the sum is then as exact as the two
    products (log-probabilities move by 1e-6), while bfloat16 would round small adapters away. A model with any other
    adapter layer of the policy's (quantised, DoRA, experts, a whole copy of a module) is sampled as it is.
    """
    adapted = [layer for layer in switches(base) if POLICY in adapters_of(layer)]
    if not all(_can_merge(layer) for layer in adapted):
        yield
        return
    kept = [(layer.get_base_layer().weight, layer.get_base_layer().weight.data) for layer in adapted]
    try:
        with torch.no_grad():
            for (weight, own), layer in zip(kept, adapted, strict=True):
                weight.data = own + layer.get_delta_weight(POLICY)
        with active_adapters(base, []):
            yield
    finally:
        for weight, own in kept:
            weight.data = own


def _can_merge(layer: Any) -> bool:
    plain = type(layer) is LoraLinear and POLICY not in layer.lora_variant and not layer.lora_bias.get(POLICY)
    return plain and layer.get_base_layer().weight.dtype == torch.float32


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
