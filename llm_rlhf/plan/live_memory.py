"""Counts the bytes of tensors that are alive while code runs, on tensors with data and on those without alike.

Every operation that torch dispatches is seen, those of the backward pass too. What a kernel takes for itself and gives
back before it returns is not: on CPUs that is little, but for what the allocator keeps.
"""

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"
SMALL = 32 * 2**20  # bytes under which glibc may put a block into its heap (mallopt(3): M_MMAP_THRESHOLD's most)


class LiveMemory(TorchDispatchMode):
    """Bytes that are alive, by kind, now and when most were.

    A storage counts once, however many tensors look at it, until the last of them is gone.

    Args:
        vocabulary: a new tensor whose last dimension has this size is logits; others are activations.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.kind: str | None = None  # of everything that is made now; None: by its shape
        self.now: Counter[str] = Counter()
        self.at_peak: Counter[str] = Counter()
        self.total = self.peak = 0
        self.small = self.small_peak = 0  # of what is made while it counts: tensors under SMALL
        self._sizes: dict[int, tuple[int, str]] = {}  # of storages, by address: bytes, kind
        self._small: set[int] = set()

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors that were there before, or that are of another kind than their shape says."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._sizes:
                self._change_kind(storage._cdata, kind)
            else:
                self._add(storage, kind)

    @contextlib.contextmanager
    def called(self, kind: str) -> Iterator[None]:
        """While it lasts, what is made is of this kind."""
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def start_again(self) -> None:
        """Forget the peak: the largest from here on counts."""
        self.peak, self.at_peak, self.small_peak = self.total, Counter(self.now), self.small

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._sizes:
                    wide = self.vocabulary is not None and tensor.dim() > 0 and tensor.shape[-1] == self.vocabulary
                    self._add(storage, self.kind or (LOGITS if wide else ACTIVATIONS))
                    if storage.nbytes() < SMALL:
                        self._small.add(storage._cdata)
                        self.small += storage.nbytes()
                        self.small_peak = max(self.small_peak, self.small)
        return out

    def _add(self, storage: Any, kind: str) -> None:
        size = storage.nbytes()
        self._sizes[storage._cdata] = size, kind
        self.now[kind] += size
        self.total += size
        if self.total > self.peak:
            self.peak, self.at_peak = self.total, Counter(self.now)
        weakref.finalize(storage, self._forget, storage._cdata)

    def _forget(self, address: int) -> None:
        size, kind = self._sizes.pop(address)
        self.now[kind] -= size
        self.total -= size
        if address in self._small:
            self._small.remove(address)
            self.small -= size

    def _change_kind(self, address: int, kind: str) -> None:
        size, old = self._sizes[address]
        self._sizes[address] = size, kind
        self.now[old] -= size
        self.now[kind] += size


def watch_gradients(model: Any, memory: LiveMemory) -> list[Any]:
    """Let the gradients of what is trained be called so; the hooks' handles, to be removed."""

    def rename(parameter: Tensor) -> None:
        if parameter.grad is not None:
            memory.hold([parameter.grad], GRADIENTS)

    return [p.register_post_accumulate_grad_hook(rename) for p in model.parameters() if p.requires_grad]


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]
