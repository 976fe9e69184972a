"""Log-probabilities of given tokens on a CPU: our blocks beside torch's log_softmax over all logits at once.

    python benchmarks/head.py           # a minute; prints a table

512 hidden states of a width, in float32; with and without the gradient of the states, the head frozen.
Medians of 5, the ways taking turns. With the checkout of an older commit first on PYTHONPATH it measures that one's.
"""

import statistics
import time
from collections.abc import Callable

import torch

from llm_rlhf.models.logprobs import token_logprobs

TOKENS, TURNS = 512, 5
SHAPES = ((4_096, 256), (32_000, 256), (151_936, 896))  # vocabulary, width of a state; the last: Qwen2.5-0.5B's


def at_once(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    return head(hidden).log_softmax(-1).gather(1, labels[:, None]).squeeze(1)


def in_blocks(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    return token_logprobs(hidden, head, labels, 1.0)[0]


def milliseconds(
    find: Callable[..., torch.Tensor], hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor
) -> float:
    hidden.grad = None
    begun = time.perf_counter()
    found = find(hidden, head, labels)
    if found.requires_grad:
        found.sum().backward()
    return 1000 * (time.perf_counter() - begun)


def main() -> None:
    print(
        "| vocabulary | width | gradient | all at once, ms | blocks, ms | logits at once, MiB |",
        "|" + "---|" * 6,
        sep="\n",
    )
    for vocabulary, width in SHAPES:
        torch.manual_seed(0)
        head = torch.nn.Linear(width, vocabulary, bias=False).requires_grad_(False)
        hidden, labels = torch.randn(TOKENS, width), torch.randint(vocabulary, (TOKENS,))
        for gradient in (False, True):
            hidden.requires_grad_(gradient)
            times: dict[Callable[..., torch.Tensor], list[float]] = {at_once: [], in_blocks: []}
            for turn in range(TURNS + 1):  # the first warms up
                for find, found in times.items():
                    found += [milliseconds(find, hidden, head, labels)] * (turn > 0)
            whole, blocks = (statistics.median(found) for found in times.values())
            print(
                f"| {vocabulary:,} | {width} | {'yes' if gradient else 'no'} | {whole:.1f} | {blocks:.1f} "
                f"({blocks / whole:.2f}) | {4 * TOKENS * vocabulary / 2**20:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
