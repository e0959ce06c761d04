"""SCOPE (NeurIPS 2025, arXiv 2510.24214): tokens that cover the picture, weighted by the class token's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.coverage import maximise_coverage


def scope_order(features: Tensor, attention: Tensor, budget: int, alpha: float = 1.0) -> Tensor:
    """Order of choice, long [budget]. features: [N, c], the patches'. attention: [N], the class token's, not negative.

    A patch is covered as well as its cosine to the most similar chosen patch; the gain of a patch is the coverage that
    it adds, times its attention to the power `alpha`.
    """
    unit = normalize(features, dim=1)
    return maximise_coverage(unit @ unit.T, budget, attention**alpha)


@register("scope", "SCOPE", arxiv="2510.24214")
@dataclass(frozen=True)
class ScopePruner(Pruner):
    """Greedy facility location on the tower's features, each gain weighted by the class token's attention.

    alpha: power of the attention (summed over heads); 1 as published, 0 looks at coverage alone.
    layer: 0, as published.

    Kept tokens keep their positions; renumber=True renumbers them. The published variant for towers without a class
    token (mean attention received in the last block) is not offered.
    """

    layer: int = 0
    alpha: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "patch_features"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha < float("inf"):
            raise PruningError(f"alpha={self.alpha} must be at least 0; 0 ignores the class token's attention")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        attention = view.cls_attention.float().sum(dim=0)
        return Selection.of(scope_order(view.patch_features.float(), attention, view.budget, self.alpha))
