"""Drawing tokens by one uniform number a row and step, so that what is sampled can be fixed prompt by prompt.

Layout: B rows, S sampling steps, V vocabulary.
"""

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList


class Draw(LogitsProcessor):
    """Draws each row's token by itself and leaves it the only one possible, so that greedy decoding takes it.

    torch.multinomial draws an exponential for every entry of the vocabulary, on a CPU in more time than the model
    takes; this needs one uniform number a row: the token where the cumulated probability passes it.

    Args:
        uniforms_BS: the numbers to use, in [0, 1), one a row and step; None: new ones from torch's generator.
    """

    def __init__(self, temperature: float, uniforms_BS: Tensor | None = None) -> None:
        self.temperature, self.uniforms_BS = temperature, uniforms_BS
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        probabilities = scores.float() if self.temperature == 1 else scores.float() / self.temperature
        # float64: in float32 the tail of a large vocabulary would vanish in the rounding of the sum
        cumulated = probabilities.softmax(-1).cumsum(-1, dtype=torch.float64)
        if self.uniforms_BS is None:
            uniform = torch.rand(len(scores), 1, dtype=torch.float64, device=scores.device)
        else:
            uniform = self.uniforms_BS[:, self.step : self.step + 1].to(scores.device)
            self.step += 1
        drawn = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True).clamp(max=scores.size(1) - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)


@contextlib.contextmanager
def drawing(base: Any, temperature: float, uniforms_BS: Tensor | None = None) -> Iterator[None]:
    """Let `base.generate` sample from the whole distribution by Draw, until the block ends."""
    generate = base.generate

    def generate_with_draw(*args: Any, generation_config: Any, **kwargs: Any) -> Any:
        greedy = copy.deepcopy(generation_config)
        greedy.do_sample, greedy.temperature, greedy.top_k, greedy.top_p = False, None, None, None
        processors = LogitsProcessorList([Draw(temperature, uniforms_BS)])
        return generate(*args, generation_config=greedy, logits_processor=processors, **kwargs)

    base.generate = generate_with_draw
    try:
        yield
    finally:
        del base.generate


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
