"""SparseVLM (ICML 2025, arXiv 2410.04417): matching text rates the image's tokens; some dropped ones are recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.schedule import stage_budgets, stage_layers
from vlm_pruner.methods.view import View
from vlm_pruner.selection.clustering import density_peaks
from vlm_pruner.selection.ranking import largest
from vlm_pruner.selection.standing import absorber_positions, group_means


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """Text tokens that are close to the image, ascending: long [raters].

    visual: [N, d], text: [T, d], inputs of the first decoder layer. Each visual token spreads one vote over the text
    tokens by a softmax of unscaled inner products; raters get more than the mean. Never empty: if all text tokens get
    exactly the same, all are raters.
    """
    votes = (visual @ text.T).softmax(dim=1).mean(dim=0)
    raters = (votes > votes.mean()).nonzero().squeeze(1)
    return raters if raters.numel() else torch.arange(len(text), device=text.device)


@dataclass(frozen=True)
class Recycled:
    """Of V visual tokens, those that stay and those that merge into a few.

    kept:     long [n], ascending.
    recycled: long [m], the dropped tokens with the highest scores, in descending order.
    centres:  long [c], the recycled tokens that lead a cluster. cluster: long [m], cluster of each recycled token.
    merged:   [c, d], mean of each cluster.
    """

    kept: Tensor
    recycled: Tensor
    centres: Tensor
    cluster: Tensor
    merged: Tensor


def recycle(hidden: Tensor, scores: Tensor, keep: int, share: float = 0.3, most: int | None = None) -> Recycled:
    """Keeps the `keep` highest scores of V visual tokens and merges the best `share` of the rest (and one more).

    hidden: [V, d]. scores: [V]. m recycled tokens form int(m / 10) + 1 clusters, but at most `most`. The published code
    breaks ties of density at random; here the token with the higher score wins.
    """
    ranking = largest(scores, len(scores))
    kept = ranking[:keep].sort().values
    dropped = len(scores) - keep
    recycled = ranking[keep : keep + min(dropped, int(dropped * share) + 1)]
    count = clusters(len(recycled)) if most is None else min(most, clusters(len(recycled)))
    if not count:
        return Recycled(kept, recycled[:0], recycled[:0], recycled[:0], hidden[:0])
    centres, cluster = density_peaks(hidden[recycled], count)
    return Recycled(kept, recycled, recycled[centres], cluster, group_means(hidden[recycled], cluster, count))


def clusters(recycled: int) -> int:
    """Number of merged tokens from `recycled` ones."""
    return recycled // 10 + 1 if recycled else 0


_PUBLISHED = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}  # kept after layers 2, 6 and 15


@register("sparsevlm", "SparseVLM", arxiv="2410.04417")
@dataclass(frozen=True)
class SparseVLMPruner(Pruner):
    """Three stages, each of which keeps what the text's raters attend to and merges the next best into a few.

    keep_tokens, reduction_ratio: the mean over the layers from the first stage on, merged tokens included, so that the
        cost equals that of a method that prunes once to that many tokens, before `layer`. Stages keep 3 : 2 : 1.
    layer:  the first stage; the others follow at 14 % and 45 % of the remaining layers, as published for 32 layers.
    share:  the share of dropped tokens (plus one) to recycle: they are clustered, and every cluster becomes one token.
            Merged tokens are at most a quarter of a stage's, a limit that the published numbers never reach.
    compat: "released" takes the published numbers at the published layers: keep_tokens=192, 128 or 64 is then a name
            for (300, 200, 110), (303, 110, 36) or (66, 30, 17) tokens kept after layers 2, 6 and 15, merged ones extra.

    A merged token takes the position of its cluster's centre. The published code appends merged tokens and truncates
    the position ids to the new length, so that its text tokens get the positions of visual ones; here tokens keep their
    own. Raters are chosen once, by the embeddings that enter the decoder.
    """

    share: float = 0.3
    compat: Literal["released"] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"attend", "embeddings", "text_embeddings"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("compat", None, "released")
        if self.compat and self.keep_tokens not in _PUBLISHED:
            raise PruningError(
                f"keep_tokens={self.keep_tokens} with compat='released': numbers are published for "
                f"{', '.join(map(str, _PUBLISHED))} only; leave compat out for any other budget"
            )
        if not 0 <= self.share < 1:
            raise PruningError(f"share={self.share} must be at least 0 and below 1: it is the share of dropped tokens")

    def layers(self, depth: int) -> tuple[int, ...]:
        return (3, 7, 16) if self.compat else stage_layers(self.layer, depth, (0, 0.14, 0.45))

    def budgets(self, tokens: int, depth: int, rounding: str = "round") -> tuple[int, ...]:
        if not self.compat:
            mean = self.budget(tokens, rounding)
            return stage_budgets(tokens, mean, self.layers(depth), depth, (3, 2, 1))
        assert self.keep_tokens is not None
        totals = []
        for kept in _PUBLISHED[self.keep_tokens]:
            tokens = self._total(tokens, min(kept, tokens - 1), most=tokens)
            totals.append(tokens)
        return tuple(totals)

    def _total(self, tokens: int, kept: int, most: int) -> int:
        """Kept plus merged tokens, for `kept` of `tokens` kept and at most `most` merged tokens."""
        return kept + min(most, clusters(min(tokens - kept, int((tokens - kept) * self.share) + 1)))

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        raters = text_raters(view.embeddings.float(), view.text_embeddings.float())
        scores = view.attend(raters).mean(dim=(0, 1))
        most = view.budget // 4
        # Counting down from the budget, one kept token less adds at most one merged token: the total is always met.
        keep = next(n for n in range(view.budget, 0, -1) if self._total(len(scores), n, most) <= view.budget)
        made = recycle(view.hidden.float(), scores, keep, self.share, most)
        order = torch.cat([made.kept[largest(scores[made.kept], keep)], made.centres])
        absorbers = torch.full_like(scores, -1, dtype=torch.long)
        absorbers[made.recycled] = made.centres[made.cluster]
        return Selection.of(order, merged=made.merged, into=absorber_positions(order, absorbers))
