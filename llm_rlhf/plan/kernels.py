"""What kernels on a GPU do without that their stand-ins on a CPU need."""

import contextlib
from collections.abc import Iterator

from trl.kernels import chunked_logprob


@contextlib.contextmanager
def on_cuda(asked: bool) -> Iterator[None]:
    """While it lasts, TRL's fused head folds a tile of logits in place, as its Triton kernels do; the CPU's copy it."""
    if not asked:
        yield
        return
    own = chunked_logprob._forward_tile, chunked_logprob._backward_tile
    chunked_logprob._forward_tile = chunked_logprob._backward_tile = _in_place
    try:
        yield
    finally:
        chunked_logprob._forward_tile, chunked_logprob._backward_tile = own


def _in_place(*args: object, **kwargs: object) -> None:
    """A kernel that makes no tensor."""
