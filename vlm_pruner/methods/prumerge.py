"""PruMerge and PruMerge+ (arXiv 2403.15388): outliers of the class token's attention, neighbours folded into each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.selection.ranking import largest


def class_attention(query: Tensor, keys: Tensor) -> Tensor:
    """[N], attention of the class token to the patches over the full width, without heads, as published.

    query: [C], keys: [1 + N, C], class token first, both of the vision tower's last layer.
    """
    return (keys @ query * len(query) ** -0.5).softmax(dim=0)[1:]


def outlier_count(attention: Tensor) -> int:
    """Patches whose attention is above Q3 + 1.5 (Q3 - Q1). attention: [N]."""
    low, high = torch.quantile(attention, attention.new_tensor([0.25, 0.75]))
    return int((attention > high + 1.5 * (high - low)).sum())


def prumerge_order(attention: Tensor, plus: bool) -> Tensor:
    """Kept patches: the outliers by falling attention, then, with `plus`, a regular stride of others.

    The number follows from the attention [N]. Raises PruningError where the published rule has no answer: no outlier,
    or with `plus` outliers in more than a third of the patches.
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
    spread = torch.arange(0, patches - 1, stride, device=order.device)  # the last patch never, as published
    return torch.cat([order, spread[~torch.isin(spread, order)]])


def prumerge_rows(hidden: Tensor, keys: Tensor, attention: Tensor, order: Tensor, neighbours: int = 32) -> Tensor:
    """[R + 1, c]: each kept patch plus the attention-weighted sum of its nearest others; then all dropped ones.

    hidden: [N, c]. keys: [N, C], whose cosine says what is near. attention: [N], the weights, not normalised.
    order: kept patches, long [R]; the rows are in this order. Neighbours may be kept patches themselves.
    """
    unit = normalize(keys, dim=1)
    similarity = unit[order] @ unit.T
    similarity.scatter_(1, order[:, None], -torch.inf)
    near = similarity.topk(min(neighbours, len(hidden) - 1), dim=1).indices
    weighted = attention[:, None] * hidden
    dropped = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    dropped[order] = False
    rest = weighted[dropped].sum(dim=0, keepdim=True)
    return torch.cat([hidden[order] + weighted[near].sum(dim=1), rest])
