"""VisPruner (ICCV 2025, arXiv 2412.01818): keeps half by the class token's attention, half by removing duplicates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest

_PER_ROUND = 8  # tokens removed per round, as published


def thin_out(features: Tensor, tokens: Tensor, count: int) -> Tensor:
    """The `count` of `tokens` (long, in order of attention) that remain after removing near duplicates.

    features: [N, c]. Each round compares every token at an even index with all at odd indices, and removes up to eight
    even ones with the largest cosine. The remaining even ones go before the odd ones, in descending order of that
    cosine, as published: the order decides which tokens meet in the next round. The published code cannot halve a list
    of odd length; here its last token skips the round.
    """
    unit = normalize(features, dim=1)
    while len(tokens) > count:
        paired = tokens[: len(tokens) // 2 * 2]
        even, odd, last = paired[::2], paired[1::2], tokens[len(paired) :]
        if not len(even):
            return tokens[:count]
        order = largest((unit[even] @ unit[odd].T).amax(dim=1), len(even))
        gone = min(_PER_ROUND, len(tokens) - count, len(even))
        tokens = torch.cat([even[order[gone:]], odd, last])
    return tokens


@register("vispruner", "VisPruner", arxiv="2412.01818")
@dataclass(frozen=True)
class VisPruner(Pruner):
    """Keeps what the class token attends to, and a diverse rest. Needs a tower with a class token.

    important: share of the budget chosen by attention, rounded down.

    Kept tokens keep their positions; renumber=True renumbers them, as the published code does.
    """

    layer: int = 0
    important: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "patch_features"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("important", ": it is a share of the budget")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        ranking = largest(view.cls_attention.mean(dim=0), len(view.layout))
        attended = int(view.budget * self.important)
        diverse = thin_out(view.patch_features.float(), ranking[attended:], view.budget - attended)
        return Selection.of(torch.cat([ranking[:attended], diverse]))
