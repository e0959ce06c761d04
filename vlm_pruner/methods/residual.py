"""Residual selection: each new kept token is the one that the previous ones explain least. Ours, not the paper's.

Found independently; published first as SPARE (arXiv 2606.18681), a greedy choice by projection residual that weighs
tokens by their anti-relevance to the question, where `residual-question` weighs them by relevance. OTPrune (CVPR 2026,
arXiv 2602.20205), a greedy choice of the largest log-determinant, is a near twin of `residual`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection import fold
from vlm_pruner.selection.residual import order_by_residual
from vlm_pruner.selection.screening import screened, to_unit
from vlm_pruner.selection.standing import nearest_kept

UNSEEN = 0.05  # weight of the token least in favour; the one most in favour has 1.05


@register("residual")
@dataclass(frozen=True)
class ResidualPruner(Pruner):
    """Pivoted QR of the states minus their mean; merges dropped tokens into the kept token most similar to them.

    A token far from the picture's mean state comes early, unless the kept tokens together already span its state:
    unlike with a rule on the nearest kept token, three kept ones can make a fourth redundant. Coordinates play no role.

    channels:    number of highest-variance channels on which states are compared.
    self_weight: share of a kept token in its merged row; 1 merges nothing.
    """

    channels: int = 256
    self_weight: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("channels")
        self._check_share("self_weight", "; 1 merges nothing")

    @torch.no_grad()
    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        return self._select(hidden, None, budget)

    def _select(self, hidden: Tensor, weight: Tensor | None, budget: int) -> Selection:
        """weight: [N], the weight of each token's state, or None for equal weights."""
        states = screened(hidden, self.channels)
        rows = states - states.mean(dim=0)
        if not rows.isfinite().all():
            raise PruningError("cannot select visual tokens: their hidden states contain NaN or infinity")
        order = order_by_residual(rows if weight is None else rows * weight.to(rows)[:, None], budget)
        indices = order.sort().values
        return Selection(indices, order, *nearest_kept(to_unit(states), indices))

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        """Kept rows [R, d] after similarity-weighted aggregation, in the order of `selection.indices`."""
        if self.self_weight == 1:
            return hidden[selection.indices]
        assert selection.nearest is not None and selection.similarity is not None
        return fold(hidden, selection.indices, selection.nearest, selection.similarity, self.self_weight)


@register("residual-question")
@dataclass(frozen=True)
class QuestionResidualPruner(ResidualPruner):
    """Residual selection that weights each token by the question's attention to it in the pruned layer.

    attention: power of that attention (mean over heads and over the text after the image, the largest being 1); 0 is
               `residual`.
    favour:    "attended" tokens, or "unattended" ones, which is SPARE's sign: the weight falls with attention.

    For budgets too small to serve every possible question. The kept tokens serve the question that comes with the
    picture; a later question of the dialogue may lack what it needs. Needs text after the image.
    """

    attention: float = 0.25
    favour: Literal["attended", "unattended"] = "attended"

    needs: ClassVar[frozenset[str]] = frozenset({"attend_next", "text_hidden"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.attention < float("inf"):
            raise PruningError(f"attention={self.attention} must be at least 0; 0 ignores the question")
        self._check_choice("favour", "attended", "unattended")

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        return Pruner.select(self, hidden, keys, layout, budget)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        looked = view.attend_next(torch.arange(len(view.text_hidden), device="cpu")).mean(dim=(0, 1))
        share = looked / looked.max().clamp(min=torch.finfo(looked.dtype).tiny)
        favoured = share if self.favour == "attended" else 1 - share
        return self._select(view.hidden, (favoured + UNSEEN) ** self.attention, view.budget)
