"""DivPrune (CVPR 2025, arXiv 2503.02175): keeps the visual tokens that differ most from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.diversity import sample_farthest


@register("divprune", "DivPrune", arxiv="2503.02175")
@dataclass(frozen=True)
class DivPruner(Pruner):
    """Farthest-point sampling by cosine on the projector's output, at whichever layer tokens are dropped.

    layer: 0, as published; choose another to compare at equal cost with methods that prune later.

    Kept tokens keep their positions; renumber=True renumbers them, as the published code does. A chosen token is never
    chosen again. The published code does not exclude that, which matters only if all remaining tokens are exact copies
    of chosen ones.
    """

    layer: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        features = view.embeddings.to(torch.promote_types(view.embeddings.dtype, torch.float32))
        return Selection.of(sample_farthest(features, view.budget))
