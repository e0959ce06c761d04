"""VisionZip (CVPR 2025, arXiv 2412.04467): keeps what the class token attends to; merges the rest into a few."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest
from vlm_pruner.selection.standing import absorber_positions, group_means


@dataclass(frozen=True)
class Zipped:
    """Of N patches, those kept and those that absorb others.

    dominant: long [D], patches with the highest attention, in descending order.
    targets:  long [C], patches that represent all others, ascending.
    slot:     long [N], each patch's target (0 .. C - 1), or -1 if it is dominant or a target.
    """

    dominant: Tensor
    targets: Tensor
    slot: Tensor


def zip_patches(cls_attention: Tensor, keys: Tensor, dominant: int, contextual: int) -> Zipped:
    """Chooses `dominant` patches by attention, and `contextual` targets among the others at regular strides.

    cls_attention: [heads, N], the class token's, patch columns. keys: [N, head size], mean over heads. Every other
    patch goes to the target with the most similar key.
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
    return hidden[zipped.targets] + group_means(hidden[members], zipped.slot[members], len(zipped.targets))


@register("visionzip", "VisionZip", arxiv="2412.04467")
@dataclass(frozen=True)
class VisionZipPruner(Pruner):
    """Keeps what the class token attends to and summarises the rest in a few tokens. Needs a class token.

    contextual: share of the budget for these few tokens, rounded; 10 of 64, 20 of 128 and 30 of 192 as published.

    The published code also keeps the class token and counts it towards the budget. It has no position in the picture or
    in a model's prompt, so one more patch takes its slot here. Summary tokens take the positions of their targets
    instead of coming last. Kept tokens keep their positions; renumber=True renumbers them, as published.
    """

    layer: int = 0
    contextual: float = 10 / 64

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "patch_features", "patch_keys", "project"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer != 0:
            raise PruningError(f"layer={self.layer}: VisionZip makes new input tokens, so it works with layer=0 only")
        self._check_share("contextual", ": it is a share of the budget")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        contextual = round(view.budget * self.contextual)
        if not contextual:
            return Selection.of(largest(view.cls_attention.sum(dim=0), view.budget))
        zipped = zip_patches(view.cls_attention, view.patch_keys.float(), view.budget - contextual, contextual)
        order = torch.cat([zipped.dominant, zipped.targets])
        rows = contextual_rows(view.patch_features.float(), zipped)
        absorbers = torch.where(zipped.slot < 0, -1, zipped.targets[zipped.slot])
        return Selection.of(order, merged=view.project(rows), into=absorber_positions(order, absorbers))
