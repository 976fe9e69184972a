"""Drawing tokens by one uniform number a row and step, so that what is sampled can be fixed prompt by prompt.

Layout: B rows, S sampling steps, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor


def draw_tokens(logits_BV: Tensor, temperature: float, uniforms_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One token a row from the softmax of logits / temperature, and its log-probability; (B,) each, float32.

    On a CPU torch.multinomial draws an exponential for every entry of the vocabulary, in more time than the model
    takes; one uniform number a row is enough: the token where the cumulated probability passes it.

    Args:
        temperature: 0 takes the most likely token, with its probability at temperature 1.
        uniforms_B: numbers in [0, 1) to draw by; None: an exponential race from the device's generator, which waits for
            nothing on a GPU (torch.multinomial first asks whether the probabilities are valid).
    """
    scores_BV = logits_BV.float()
    if temperature not in (0, 1):
        scores_BV = scores_BV / temperature
    probabilities_BV = scores_BV.softmax(-1)
    if temperature == 0:
        drawn_B1 = scores_BV.argmax(-1, keepdim=True)
    elif uniforms_B is None:
        drawn_B1 = (probabilities_BV / torch.empty_like(probabilities_BV).exponential_()).argmax(-1, keepdim=True)
    else:
        # float64: in float32 the tail of a large vocabulary would vanish in the rounding of the sum
        cumulated_BV = probabilities_BV.cumsum(-1, dtype=torch.float64)
        passed = uniforms_B.unsqueeze(1).to(cumulated_BV) * cumulated_BV[:, -1:]
        drawn_B1 = torch.searchsorted(cumulated_BV, passed, right=True).clamp(max=scores_BV.size(1) - 1)
    return drawn_B1.squeeze(1), probabilities_BV.gather(1, drawn_B1).log().squeeze(1)


def entropy(logits_BV: Tensor, temperature: float) -> Tensor:
    """Of the softmax of logits / temperature, in nats; (B,), float32."""
    logprobs_BV = (logits_BV.float() / temperature).log_softmax(-1)
    return -(logprobs_BV.exp() * logprobs_BV).sum(-1)


class Draw(LogitsProcessor):
    """`draw_tokens` within transformers' own loop: leaves the drawn token the only one, for greedy decoding to take.

    Args:
        uniforms_BS: the numbers to use, in [0, 1), one a row and step.
    """

    def __init__(self, temperature: float, uniforms_BS: Tensor) -> None:
        self.temperature, self.uniforms_BS = temperature, uniforms_BS
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn_B, _ = draw_tokens(scores, self.temperature, self.uniforms_BS[:, self.step])
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn_B.unsqueeze(1), 0.0)


def prompt_uniforms(seed: int, prompt_ids: Sequence[int], occurrence: int, steps: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) for one prompt's tokens, shape (steps,): a function of these arguments and of nothing else.

    A reply sampled with them depends neither on the batch it is in, nor on the other prompts, nor on the number of
    processes; and two policies that answer the same prompt with the same numbers differ by their probabilities alone
    (common random numbers), which makes their paired difference the less noisy.

    Args:
        occurrence: which reply to this prompt this is, where there are several.
    """
    digest = hashlib.sha256(repr((seed, list(prompt_ids), occurrence)).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16]))).random(steps)
