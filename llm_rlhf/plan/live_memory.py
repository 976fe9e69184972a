"""Counts the bytes of tensors that are alive while code runs, on tensors with data and on those without alike.

Every operation that torch dispatches is seen, those of the backward pass too. What a kernel takes for itself and gives
back before it returns is not: on CPUs that is little, but for what the allocator keeps.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

ACTIVATIONS, LOGITS, GRADIENTS = "activations", "logits", "gradients"
SMALL = 32 * 2**20  # bytes under which glibc may put a block into its heap (mallopt(3): M_MMAP_THRESHOLD's most)


class LiveMemory(TorchDispatchMode):
    """Bytes that are alive, by kind, now and when most were.

    A storage counts once, however many tensors look at it, until the last of them is gone. Which are gone is asked when
    it matters, of references in C++: with Python's weak references to storages, torch 2.13 came to use storages that
    were gone, and crashed.

    Args:
        vocabulary: a new tensor whose last dimension has this size is logits; others are activations.
    """

    def __init__(self, vocabulary: int | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.kind: str | None = None  # of everything that is made now; None: by its shape
        self.at_peak: Counter[str] = Counter()
        self.peak = self.small_peak = 0
        self._storages: dict[int, _Storage] = {}  # by address, which nothing else has while a reference is kept
        self._now: Counter[str] = Counter()  # these count storages that are gone as well, until somebody asks
        self._total = self._small = 0

    @property
    def now(self) -> Counter[str]:
        """Bytes by kind."""
        self._forget_gone()
        return self._now

    @property
    def total(self) -> int:
        self._forget_gone()
        return self._total

    @property
    def small(self) -> int:
        """Of what was made while it counts, in tensors under SMALL."""
        self._forget_gone()
        return self._small

    def hold(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Count tensors that were there before, or that are of another kind than their shape says."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if (known := self._storages.get(storage._cdata)) is not None:
                self._now[known.kind] -= known.size
                self._now[kind] += known.size
                known.kind = kind
            else:
                self._add(storage, kind, small=False)

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
                if storage._cdata not in self._storages:
                    wide = self.vocabulary is not None and tensor.dim() > 0 and tensor.shape[-1] == self.vocabulary
                    kind = self.kind or (LOGITS if wide else ACTIVATIONS)
                    self._add(storage, kind, small=storage.nbytes() < SMALL)
        return out

    def _add(self, storage: Any, kind: str, small: bool) -> None:
        new = _Storage(StorageWeakRef(storage), storage.nbytes(), kind, small)
        self._storages[storage._cdata] = new
        self._now[kind] += new.size
        self._total += new.size
        self._small += new.size * small
        if self._total > self.peak or self._small > self.small_peak:  # it may be, unless some are gone
            self._forget_gone()
            self.small_peak = max(self.small_peak, self._small)
            if self._total > self.peak:
                self.peak, self.at_peak = self._total, Counter(self._now)

    def _forget_gone(self) -> None:
        for address in [address for address, storage in self._storages.items() if storage.there.expired()]:
            gone = self._storages.pop(address)
            self._now[gone.kind] -= gone.size
            self._total -= gone.size
            self._small -= gone.size * gone.small


@dataclass(slots=True)
class _Storage:
    there: StorageWeakRef
    size: int
    kind: str
    small: bool


def watch_gradients(model: Any, memory: LiveMemory) -> list[Any]:
    """Let the gradients of what is trained be called so; the hooks' handles, to be removed."""

    def rename(parameter: Tensor) -> None:
        if parameter.grad is not None:
            memory.hold([parameter.grad], GRADIENTS)

    return [p.register_post_accumulate_grad_hook(rename) for p in model.parameters() if p.requires_grad]


def tensors_of(module: torch.nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]
