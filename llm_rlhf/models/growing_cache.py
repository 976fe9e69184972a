"""A cache whose keys and values are written behind one another, into room that is there already.

transformers' own joins all of them anew with each token's: on a CPU, of 256 tokens behind 256, a fifth of the time.

Layout: B rows, K heads of keys and values, T tokens, D their size.
"""

import functools
from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

ROOM = 64  # tokens that are made room for at once


class GrowingLayer(DynamicLayer):
    """transformers' DynamicLayer, whose keys and values, (B, K, T, D), are beginnings of tensors with room for more.

    For sampling, where no gradient is taken: what `update` gave is written over once the layer is cropped.

    Args:
        most: tokens that it will hold at most, as far as is known; there is room for no more unless they come.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The parent's: all keys and values, with the new ones behind the others."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        self.keys = self._joined(self.keys, key_states, held)
        self.values = self._joined(self.values, value_states, held)
        return self.keys, self.values

    def _joined(self, old: Tensor, new: Tensor, held: int) -> Tensor:
        B, K, added, D = new.shape
        room = room_of(old) if held else None
        if room is None or room.size(2) < held + added:
            room = new.new_empty(B, K, max(held + added, min(held + added + ROOM, self.most)), D)
            if held:
                room[:, :, :held] = old
        room[:, :, held : held + added] = new
        return room[:, :, : held + added]


def room_of(beginning: Tensor) -> Tensor:
    """All that lies in memory from each head's first token to the next one's, (B, K, T or more, D).

    Read of the tensor itself, so that nothing else keeps that memory: rows that are chosen of it, as whoever changes a
    cache does, lie close together and have no room.
    """
    B, K, _, D = beginning.shape
    most = beginning.stride(1) // D
    whole = (K * most * D, most * D, D, 1)
    there = beginning.untyped_storage().nbytes() // beginning.element_size()
    if beginning.storage_offset() or beginning.stride() != whole or there < B * K * most * D:
        return beginning
    return beginning.as_strided((B, K, most, D), whole)


def grow_in_place(cache: Any, most: int) -> None:
    """Let the plain layers of an empty DynamicCache be GrowingLayers for at most so many tokens; others stay."""
    if type(cache) is not DynamicCache or cache.offloading:
        return
    cache.layers = [GrowingLayer(most) if _is_plain(layer) else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = functools.partial(GrowingLayer, most)


def _is_plain(layer: Any) -> bool:
    return type(layer) is DynamicLayer and not layer.is_initialized
