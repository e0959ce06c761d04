"""FastV (ECCV 2024, arXiv 2403.06764): keeps the visual tokens that the prompt's last token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest


def attention_order(rows: Tensor, budget: int) -> Tensor:
    """Tokens with the highest attention, averaged over heads and queries, in descending order: long [budget].

    rows: [heads, Q, N], attention of Q queries to the image. The paper describes the attention that a token receives
    on average; its code reads one row, the last.
    """
    return largest(rows.mean(dim=(0, 1)), budget)


@register("fastv", "FastV", arxiv="2403.06764")
@dataclass(frozen=True)
class FastVPruner(Pruner):
    """Keeps what the prompt's last token attends to in the layer before `layer`. Needs text after the image.

    Computes only that row of attention, so the model may run under SDPA or FlashAttention.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"attend"})

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        return Selection.of(attention_order(view.attend(torch.tensor([-1], device="cpu")), view.budget))
