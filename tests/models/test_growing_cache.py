"""A cache written into room that is there: what it holds is transformers' own, bit by bit."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, StaticCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from llm_rlhf.models.growing_cache import ROOM, GrowingLayer, grow_in_place

HEADS, SIZE = 2, 3
LLAMA = LlamaConfig(num_hidden_layers=2)
WINDOWS = Gemma3TextConfig(num_hidden_layers=2, sliding_window=4, layer_types=["sliding_attention", "full_attention"])


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, HEADS, tokens, SIZE), torch.randn(rows, HEADS, tokens, SIZE)


def grown(most: int, *lengths: int, rows: int = 4) -> tuple[GrowingLayer, DynamicLayer]:
    """A layer of ours and one of transformers', given the same."""
    layers = GrowingLayer(most), DynamicLayer()
    for length in lengths:
        given = states(rows, length)
        for layer in layers:
            layer.update(*given)
    return layers


def same(mine: GrowingLayer, theirs: DynamicLayer) -> bool:
    assert mine.get_seq_length() == theirs.get_seq_length()
    return torch.equal(mine.keys, theirs.keys) and torch.equal(mine.values, theirs.values)


@pytest.mark.parametrize("most", [5, 9, 1000])
@pytest.mark.parametrize("lengths", [(5, 1, 1, 1, 1), (1,) * 9, (4, 4, 1), (2, ROOM, 3, ROOM + 1)], ids=str)
def test_it_holds_what_transformers_layer_holds(most, lengths) -> None:
    mine, theirs = GrowingLayer(most), DynamicLayer()
    for length in lengths:
        given = states(4, length)
        for got, expected in zip(mine.update(*given), theirs.update(*given), strict=True):
            assert torch.equal(got, expected)
    assert same(mine, theirs)


def take(rows: slice, layer: DynamicLayer) -> None:
    layer.keys, layer.values = layer.keys[rows], layer.values[rows]


CHANGES = {
    "every other row": lambda layer: take(slice(None, None, 2), layer),
    "all but the first row": lambda layer: take(slice(1, None), layer),
    "all but the last row": lambda layer: take(slice(0, -1), layer),
    "rows chosen": lambda layer: layer.batch_select_indices(torch.tensor([2, 0])),
    "all rows chosen": lambda layer: layer.batch_select_indices(torch.tensor([3, 2, 1, 0])),
    "beams reordered": lambda layer: layer.reorder_cache(torch.tensor([1, 1, 0, 3])),
    "rows repeated": lambda layer: layer.batch_repeat_interleave(2),
    "cropped": lambda layer: layer.crop(-2),
    "begun anew": lambda layer: layer.reset(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_after_others_have_changed_it_too(change) -> None:
    mine, theirs = grown(20, 5, 1)
    for layer in (mine, theirs):
        change(layer)
    rows = len(theirs.keys) if theirs.is_initialized else 4
    for length in (1, 1, 3):
        given = states(rows, length)
        for layer in (mine, theirs):
            layer.update(*given)
        assert same(mine, theirs)


def test_while_there_is_room_nothing_is_moved() -> None:
    mine, _ = grown(5 + 2 * ROOM, 5)
    places = {mine.keys.data_ptr()}
    for _ in range(ROOM):
        mine.update(*states(4, 1))
        places.add(mine.keys.data_ptr())
    assert len(places) == 1
    mine.update(*states(4, 1))
    assert mine.keys.data_ptr() not in places


def test_of_rows_that_left_nothing_stays() -> None:
    mine, _ = grown(8, 5, 1)
    room = StorageWeakRef(mine.keys.untyped_storage())
    mine.batch_select_indices(torch.tensor([2, 0]))
    assert room.expired()
    assert mine.keys.untyped_storage().nbytes() == 2 * HEADS * 6 * SIZE * 4


def test_there_is_no_room_for_more_than_comes() -> None:
    mine, _ = grown(8, 5, 1)
    assert mine.keys.untyped_storage().nbytes() == 4 * HEADS * 8 * SIZE * 4
    mine, _ = grown(8, 5, 1, 1, 1, 1)
    assert mine.keys.untyped_storage().nbytes() == 4 * HEADS * 9 * SIZE * 4


def test_only_plain_layers_of_an_empty_cache_grow() -> None:
    windows = DynamicCache(config=WINDOWS)
    grow_in_place(windows, 9)
    assert [type(layer) for layer in windows.layers] == [DynamicSlidingWindowLayer, GrowingLayer]
    unknown = DynamicCache()
    grow_in_place(unknown, 9)
    unknown.update(*states(4, 1), layer_idx=1)
    assert [type(layer) for layer in unknown.layers] == [GrowingLayer, GrowingLayer]
    begun = DynamicCache(config=LLAMA)
    begun.update(*states(4, 1), layer_idx=0)
    grow_in_place(begun, 9)
    assert [type(layer) for layer in begun.layers] == [DynamicLayer, GrowingLayer]
    for other in (StaticCache(config=LLAMA, max_cache_len=4), DynamicCache(config=LLAMA, offloading=False), None):
        kinds = None if other is None else [type(layer) for layer in other.layers]
        if type(other) is DynamicCache:
            other.offloading = True  # which takes a GPU to ask for
        grow_in_place(other, 9)
        assert kinds == (None if other is None else [type(layer) for layer in other.layers])
