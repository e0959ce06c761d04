"""SparseVLM (ICML 2025, arXiv 2410.04417): text that matches the image rates its tokens; dropped ones are recycled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_pruner.selection.clustering import density_peaks
from vlm_pruner.selection.ranking import largest


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """Text tokens that are close to the image, ascending: long [raters].

    visual: [N, d], text: [T, d], as they enter the first decoder layer. Each visual token spreads one vote over the
    text tokens by a softmax of unscaled inner products; raters get more than the mean. Never empty: if all text
    tokens got exactly the same, all are raters.
    """
    votes = (visual @ text.T).softmax(dim=1).mean(dim=0)
    raters = (votes > votes.mean()).nonzero().squeeze(1)
    return raters if raters.numel() else torch.arange(len(text), device=text.device)


@dataclass(frozen=True)
class Recycled:
    """Of V visual tokens, those that stay and those that are merged into a few.

    kept:     long [n], ascending.
    recycled: long [m], of the dropped tokens those of highest score, in descending order.
    centres:  long [c], the recycled tokens that lead a cluster. cluster: long [m], cluster of each recycled token.
    merged:   [c, d], mean of each cluster.
    """

    kept: Tensor
    recycled: Tensor
    centres: Tensor
    cluster: Tensor
    merged: Tensor


def recycle(hidden: Tensor, scores: Tensor, keep: int, share: float = 0.3) -> Recycled:
    """Keep the `keep` highest scores of V visual tokens; of the rest, merge the best `share` (and one more).

    hidden: [V, d]. scores: [V]. Of m recycled tokens int(m / 10) + 1 clusters are made. The published code breaks
    ties of density at random; here the token of higher score wins.
    """
    ranking = largest(scores, len(scores))
    kept = ranking[:keep].sort().values
    dropped = len(scores) - keep
    recycled = ranking[keep : keep + min(dropped, int(dropped * share) + 1)]
    count = clusters(len(recycled))
    if not count:
        return Recycled(kept, recycled, recycled, recycled, hidden[:0])
    centres, cluster = density_peaks(hidden[recycled], count)
    size = torch.bincount(cluster, minlength=count).to(hidden.dtype)
    total = hidden.new_zeros(count, hidden.shape[1]).index_add_(0, cluster, hidden[recycled])
    return Recycled(kept, recycled, recycled[centres], cluster, total / size[:, None])


def clusters(recycled: int) -> int:
    """Merged tokens made of `recycled` ones."""
    return recycled // 10 + 1 if recycled else 0
