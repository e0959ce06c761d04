"""PruMerge and PruMerge+ (arXiv 2403.15388): outliers of the class token's attention, with neighbours merged in."""

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
from vlm_pruner.selection.standing import absorber_positions


def class_attention(query: Tensor, keys: Tensor) -> Tensor:
    """[N], the class token's attention to the patches over the full width, without heads, as published.

    query: [C], keys: [1 + N, C], class token first, both of the vision tower's last layer.
    """
    return (keys @ query * len(query) ** -0.5).softmax(dim=0)[1:]


def outlier_count(attention: Tensor) -> int:
    """Number of patches with attention above Q3 + 1.5 (Q3 - Q1). attention: [N]."""
    low, high = torch.quantile(attention, attention.new_tensor([0.25, 0.75]))
    return int((attention > high + 1.5 * (high - low)).sum())


def prumerge_order(attention: Tensor, plus: bool) -> Tensor:
    """Kept patches: the outliers by descending attention, then, with `plus`, a regular stride of others.

    The number follows from the attention [N]. Raises PruningError if the published rule has no answer: no outlier, or,
    with `plus`, outliers in more than a third of the patches.
    """
    patches, outliers = len(attention), outlier_count(attention)
    if outliers == 0 or (plus and 3 * outliers > patches):
        raise PruningError(
            f"{outliers} of {patches} patches are outliers of attention: PruMerge needs at least one"
            + (f", PruMerge+ at most {patches // 3}" if plus else "")
        )
    order = largest(attention, outliers)
    if not plus:
        return order
    stride = int(int(1 / (outliers / patches)) / 3)
    even = torch.arange(0, patches - 1, stride, device=order.device)  # never the last patch, as published
    return torch.cat([order, even[~torch.isin(even, order)]])


def prumerge_rows(hidden: Tensor, keys: Tensor, attention: Tensor, order: Tensor, neighbours: int = 32) -> Tensor:
    """[R + 1, c]: each kept patch plus the attention-weighted sum of its nearest others; then all dropped ones.

    hidden: [N, c]. keys: [N, C], whose cosine defines neighbours. attention: [N], the weights, not normalised.
    order: kept patches, long [R]; the rows are in this order. Neighbours may be kept patches themselves.
    """
    near = neighbours_of(keys, order, neighbours)[0]
    weighted = attention[:, None] * hidden
    dropped = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    dropped[order] = False
    rest = weighted[dropped].sum(dim=0, keepdim=True)
    return torch.cat([hidden[order] + weighted[near].sum(dim=1), rest])


def neighbours_of(keys: Tensor, order: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` other patches with the keys [N, C] most similar to each of `order` [R]: long and float [R, count]."""
    unit = normalize(keys, dim=1)
    similarity = unit[order] @ unit.T
    similarity.scatter_(1, order[:, None], -torch.inf)
    near = similarity.topk(min(count, len(keys) - 1), dim=1)
    return near.indices, near.values


def absorbers_of(keys: Tensor, order: Tensor, neighbours: int) -> Tensor:
    """Long [N], the kept patch that each patch counts towards: of those it is merged into, that of most similar key.

    -1 for a patch that is a neighbour of none.
    """
    near, similarity = neighbours_of(keys, order, neighbours)
    values = similarity.new_full((len(order), len(keys)), -torch.inf).scatter_(1, near, similarity)
    best, kept = values.max(dim=0)
    return torch.where(best.isinf(), -1, order[kept])


def outliers_first(attention: Tensor, budget: int) -> Tensor:
    """Exactly `budget` patches: the outliers of `attention` [N] first, then others at regular distances."""
    order = largest(attention, min(budget, outlier_count(attention)))
    others = torch.ones(len(attention), dtype=torch.bool, device=attention.device)
    others[order] = False
    rest, wanted = others.nonzero().squeeze(1), budget - len(order)
    middles = (2 * torch.arange(wanted, device=rest.device) + 1) * len(rest) // max(1, 2 * wanted)
    return torch.cat([order, rest[middles]])


@register("prumerge", "PruMerge+", arxiv="2403.15388")
@dataclass(frozen=True)
class PruMergePruner(Pruner):
    """Keeps outliers of the class token's attention and merges their neighbours into them. Needs a class token.

    plus:       fill up with patches at regular distances (PruMerge+); otherwise with the next in attention.
    neighbours: number of patches with the most similar keys to merge into each kept one, weighted by their attention.

    The published number of tokens follows from the attention and differs between pictures; this method meets the budget
    exactly, in the same spirit. The published code adds one row for all dropped patches, which has no position in the
    picture and is left out here, and orders rows by attention; here each row has its patch's position. `prumerge_order`
    and `prumerge_rows` are the published choice and rows. Kept tokens keep their positions; renumber=True renumbers
    them, as published.
    """

    layer: int = 0
    plus: bool = True
    neighbours: int = 32

    needs: ClassVar[frozenset[str]] = frozenset({"patch_features", "last_layer", "project"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer != 0:
            raise PruningError(f"layer={self.layer}: PruMerge makes new input tokens, so it works with layer=0 only")
        self._check_whole("neighbours", least=0)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        query, keys = (part.float() for part in view.last_layer)
        attention = class_attention(query, keys)
        order = outliers_first(attention, view.budget) if self.plus else largest(attention, view.budget)
        rows = prumerge_rows(view.patch_features.float(), keys[1:], attention, order, self.neighbours)[:-1]
        into = None
        if self.calibrate and self.neighbours:
            into = absorber_positions(order, absorbers_of(keys[1:], order, self.neighbours))
        return Selection.of(order, merged=view.project(rows), into=into)
