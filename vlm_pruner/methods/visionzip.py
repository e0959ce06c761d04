"""VisionZip (CVPR 2025, arXiv 2412.04467): what the class token looks at, and the rest in a few merged tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.selection.ranking import largest


@dataclass(frozen=True)
class Zipped:
    """Of N patches, those kept and those that others are merged into.

    dominant: long [D], patches of highest attention, in descending order.
    targets:  long [C], patches that stand for all others, ascending.
    slot:     long [N], for each patch the number of its target (0 .. C - 1), or -1 if it is dominant or a target.
    """

    dominant: Tensor
    targets: Tensor
    slot: Tensor


def zip_patches(cls_attention: Tensor, keys: Tensor, dominant: int, contextual: int) -> Zipped:
    """Choose `dominant` patches by attention, and `contextual` targets among the others at regular strides.

    cls_attention: [heads, N], of the class token, patch columns. keys: [N, head size], mean over heads. Every patch
    that is neither goes to the target of most similar key.
    """
    order = largest(cls_attention.sum(dim=0), dominant)
    rest = torch.ones(len(keys), dtype=torch.bool, device=keys.device)
    rest[order] = False
    others = rest.nonzero().squeeze(1)
    if not 0 < contextual <= len(others):
        raise ValueError(f"contextual={contextual} targets among {len(others)} patches that are not dominant")
    targets = others[:: max(1, len(others) // contextual)][:contextual]
    rest[targets] = False
    unit = normalize(keys, dim=1)
    slot = torch.full((len(keys),), -1, device=keys.device)
    slot[rest] = (unit[rest] @ unit[targets].T).argmax(dim=1)
    return Zipped(order, targets, slot)


def contextual_rows(hidden: Tensor, zipped: Zipped) -> Tensor:
    """[C, c], each target's state plus the mean of the states assigned to it: a sum of two, as published.

    hidden: [N, c], the patches' states.
    """
    members = zipped.slot >= 0
    slot = zipped.slot[members]
    count = torch.bincount(slot, minlength=len(zipped.targets)).clamp(min=1).to(hidden.dtype)
    total = hidden.new_zeros(len(zipped.targets), hidden.shape[1]).index_add_(0, slot, hidden[members])
    return hidden[zipped.targets] + total / count[:, None]
