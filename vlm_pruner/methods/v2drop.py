"""V2Drop (CVPR 2026, arXiv 2509.01552): drops, in stages, the visual tokens whose states a layer changes least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.schedule import stage_budgets, stage_layers
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest

_WEIGHTS = (1.0, 0.5, 0.01)  # of the three stages: half, half of that, and next to nothing, as published


@register("v2drop", "V2Drop", arxiv="2509.01552")
@dataclass(frozen=True)
class V2DropPruner(Pruner):
    """Each of three stages keeps the tokens whose state the layer before has changed most (L2). Reads no attention.

    keep_tokens, reduction_ratio: the mean over the layers from the first stage on, so that the cost equals that of a
        method that prunes once to that many tokens, before `layer`. The second stage keeps half as many as the first,
        and the third nearly none, as published.
    layer: the first stage. layer=3 gives the published stages of a decoder of 32 layers, 3, 17 and 22; the default, 2,
        those of a method at equal cost.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"hidden_before"})

    def layers(self, depth: int) -> tuple[int, ...]:
        return stage_layers(self.layer, depth, (0, 14 / 29, 19 / 29))

    def budgets(self, tokens: int, depth: int, rounding: str = "round") -> tuple[int, ...]:
        return stage_budgets(tokens, self.budget(tokens, rounding), self.layers(depth), depth, _WEIGHTS)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        change = (view.hidden.float() - view.hidden_before.float()).norm(dim=1)
        return Selection.of(largest(change, view.budget))
