"""DivPrune (CVPR 2025, arXiv 2503.02175): the visual tokens that are most unlike each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.diversity import sample_farthest


@register("divprune")
@dataclass(frozen=True)
class DivPruner(Pruner):
    """Farthest-point sampling by cosine on the projector's output, whichever layer the tokens are dropped before.

    layer: 0, as published; give another one to compare at equal cost with methods that prune later.

    Kept tokens keep their positions; renumber=True numbers them anew, as the published code does. A chosen token is
    never chosen again. The published code does not exclude that, which shows only where all remaining tokens are exact
    copies of chosen ones.
    """

    layer: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        features = view.embeddings.to(torch.promote_types(view.embeddings.dtype, torch.float32))
        order = sample_farthest(features, view.budget)
        return Selection.of(order)
