"""HiPrune (arXiv 2508.00553): objects by a middle layer's attention, their surroundings, the rest by a deep layer's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.methods.base import explain_missing
from vlm_pruner.selection.ranking import largest

explain_missing(
    "hiprune",
    "it needs whole attention maps of two layers of the vision tower, which are not read off yet (its mathematics is "
    "in vlm_pruner.methods.hiprune)",
)


@dataclass(frozen=True)
class Hierarchy:
    """anchors: long, falling attention in the object layer. surrounded: long, anchors and neighbours, ascending.
    registers: long, the rest of the budget, falling attention in the deep layer.
    """

    anchors: Tensor
    surrounded: Tensor
    registers: Tensor


def received_attention(queries: Tensor, keys: Tensor) -> Tensor:
    """[N], attention that each patch receives, mean over heads and all 1 + N queries, the class token's included.

    queries, keys: [heads, 1 + N, head size], class token first.
    """
    scores = queries @ keys.transpose(1, 2) * queries.shape[-1] ** -0.5
    return scores.softmax(dim=-1).mean(dim=(0, 1))[1:]


def choose_hierarchy(objects: Tensor, deep: Tensor, budget: int, width: int, alpha: float = 0.1) -> Hierarchy:
    """A hierarchy of about `budget` patches. objects, deep: [N], attention received in the two layers.

    Anchors are the round(budget * alpha / 5) patches of largest `objects`. With each come its neighbours i - 1, i + 1,
    i - width and i + width, clamped to 0 .. N - 1: as published, the grid's edges are ignored, so that neighbours wrap
    into the next row. More than `budget` patches are kept if anchors and their neighbours alone are more.
    """
    anchors = largest(objects, round(budget * alpha / 5))
    steps = torch.tensor([0, -1, 1, -width, width], device=anchors.device)
    surrounded = (anchors[:, None] + steps).clamp(0, len(objects) - 1).unique()
    left = deep.index_fill(0, surrounded, -torch.inf)
    return Hierarchy(anchors, surrounded, largest(left, max(0, budget - len(surrounded))))
