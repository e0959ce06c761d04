"""VLM-Pruner itself (arXiv 2512.02700): pivots, then centrifugal expansion, then folding dropped tokens into kept ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register


@register("vlm-pruner")
@dataclass(frozen=True)
class CentrifugalPruner(Pruner):
    """Selection grows outwards from `pivots` tokens that differ most; what is dropped is folded into its nearest kept token.

    pivots:         number of starting tokens (kappa).
    threshold:      a token joins while its modulated similarity to the kept ones is below this (tau_0) ...
    threshold_step: ... plus this much more in every further round (delta tau).
    token_batch:    tokens judged together before the kept set is updated (B). None: 1, exact greedy; 16 with
                    compat="released".
    spatial_weight: how much distance to the kept tokens counts (lambda); 0 ignores the picture's geometry.
    channels:       channels of highest variance that similarity is measured on (q).
    self_weight:    share of a kept token in its merged row (beta); 1 folds nothing in.
    compat:         "released" reproduces the released code where it parts from the paper: a round that adds
                    nothing ends the selection under budget, negative similarities weigh in when folding, only
                    the first image is pruned, and Qwen2-VL's budget is rounded down.
    """

    pivots: int = 4
    threshold: float = 0.8
    threshold_step: float = 0.1
    token_batch: int | None = None
    spatial_weight: float = 0.5
    channels: int = 256
    self_weight: float = 0.3
    compat: Literal["released"] | None = None

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        raise NotImplementedError

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        raise NotImplementedError
