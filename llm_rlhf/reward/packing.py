"""Reading several replies to one prompt in one row of a batch, the prompt once.

A row holds the prompt and then each reply. A token attends to the prompt and to its own reply, and its position counts
on from the prompt's end, so that every reply is read as if it stood there alone:

    tokens      p0 p1 p2 | a3 a4 | b3 b4 b5 | padding
    position     0  1  2 |  3  4 |  3  4  5 |
    part         0  0  0 |  1  1 |  2  2  2 |  -1

Layout: B rows, T tokens.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LONGEST = 4096  # tokens of a row that holds several replies: its mask has the square of them


@dataclass(frozen=True)
class Group:
    """Rows of token ids that begin alike: `prefix` once, and the rest of each. One row alone has no prefix."""

    rows: list[int]  # their numbers, as the caller counts
    prefix: list[int]
    tails: list[list[int]]  # none of them empty

    def __len__(self) -> int:
        return len(self.prefix) + sum(map(len, self.tails))


def group_rows(ids: Sequence[list[int]], keys: Sequence[Hashable], longest: int = LONGEST) -> list[Group]:
    """Every row in one group: rows of one key together where that saves tokens and the group stays within `longest`.

    Args:
        ids: token ids of each row, none empty.
        keys: rows of one key are expected to begin alike (they have one prompt); what they share is found in the ids.
    """
    by_key: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        by_key.setdefault(key, []).append(row)
    groups = []
    for rows in by_key.values():
        shared = _shared([ids[i] for i in rows]) if len(rows) > 1 else 0
        shared = min([shared, *(len(ids[i]) - 1 for i in rows)])  # the last token is read for itself
        if not shared:
            groups += [Group([i], [], [ids[i]]) for i in rows]
            continue
        prefix = ids[rows[0]][:shared]
        part: list[int] = []
        for i in rows:
            if part and shared + sum(len(ids[j]) - shared for j in part) + len(ids[i]) - shared > longest:
                groups.append(Group(part, prefix, [ids[j][shared:] for j in part]))
                part = []
            part.append(i)
        groups.append(Group(part, prefix, [ids[j][shared:] for j in part]))
    return groups


def _shared(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with: what the first and the last of them, in order, have in common."""
    low, high = min(rows), max(rows)
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def token_budget_batches(groups: Sequence[Group], budget: int) -> Iterator[list[Group]]:
    """Groups of like length, the longest first, so many that rows times the longest stay within the budget.

    A group longer than the budget is a batch by itself.
    """
    batch: list[Group] = []
    for group in sorted(groups, key=len, reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]) > budget:
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


class Packed(NamedTuple):
    """A batch of groups, padded on the right; ids, positions and parts are (B, T)."""

    input_ids: Tensor
    position_ids: Tensor
    parts: Tensor  # 0 the prompt, 1, 2, ... the replies, -1 padding
    batch_rows: list[int]  # of every reply, in the groups' order: its row in the batch
    lasts: list[int]  # and the place of its last token there


def pack(groups: Sequence[Group], pad_token_id: int, device: torch.device | str) -> Packed:
    """The tensors of a batch; a group without a prefix is an ordinary row."""
    T = max(map(len, groups))
    ids, positions, parts, batch_rows, lasts = [], [], [], [], []
    for number, group in enumerate(groups):
        row, start = list(group.prefix), len(group.prefix)
        place, part = list(range(start)), [0] * start
        for count, tail in enumerate(group.tails, 1 if start else 0):
            row += tail
            place += range(start, start + len(tail))
            part += [count] * len(tail)
            batch_rows.append(number)
            lasts.append(len(row) - 1)
        padding = T - len(row)
        ids.append(row + [pad_token_id] * padding)
        positions.append(place + [0] * padding)
        parts.append(part + [-1] * padding)
    input_ids, position_ids, part_numbers = (torch.tensor(x, device=device) for x in (ids, positions, parts))
    return Packed(input_ids, position_ids, part_numbers, batch_rows, lasts)


def attention_mask(parts_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """What transformers adds to attention scores: 0 where a token may look, the type's least number elsewhere.

    Shape (B, 1, T, T). Padding looks at itself, as a row of nothing but minus infinity would give NaN.
    """
    T = parts_BT.size(1)
    query, key = parts_BT[:, :, None], parts_BT[:, None, :]
    earlier = torch.ones(T, T, dtype=torch.bool, device=parts_BT.device).tril()
    seen = earlier & ((query == key) | ((key == 0) & (query > 0)))
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[:, None]
