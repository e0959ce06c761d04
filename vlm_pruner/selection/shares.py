"""Splits a budget over the parts of a picture or a video."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from vlm_pruner.selection.ranking import largest


def allocate(scores: Tensor, budget: int, sizes: list[int], *, lossy: bool = False) -> list[int]:
    """Tokens to keep of each part: in proportion to `scores` [P], rounded down, and one more for the best until all go.

    sizes: tokens of each part; their sum is at least `budget`. What exceeds a part's size goes to the others in
    proportion, or is lost with `lossy`.
    """
    scores = scores if scores.sum() > 0 else torch.ones_like(scores)
    shares = (budget * (scores / scores.sum()).double()).tolist()
    wanted = [int(share) for share in shares]
    for part in scores.argsort(descending=True, stable=True).tolist()[: budget - sum(wanted)]:
        wanted[part] += 1
    kept = [min(size, want) for size, want in zip(sizes, wanted, strict=True)]
    room = [part for part, size in enumerate(sizes) if kept[part] < size]
    if lossy or sum(kept) == budget:
        return kept
    more = allocate(scores[room], budget - sum(kept), [sizes[part] - kept[part] for part in room])
    for part, extra in zip(room, more, strict=True):
        kept[part] += extra
    return kept


def largest_of_parts(scores: Tensor, sizes: list[int], shares: list[int]) -> Tensor:
    """Indices of the largest `shares` of each of the consecutive parts of `scores` [N], all in descending order."""
    parts = zip(accumulate(sizes, initial=0), scores.split(sizes), shares, strict=False)
    kept = torch.cat([start + largest(part, share) for start, part, share in parts])
    return kept[largest(scores[kept], len(kept))]
