"""HoloV (NeurIPS 2025, arXiv 2510.02912): spreads the budget over runs of patches, then keeps the most attended."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.shares import allocate, largest_of_parts

ATTENTION, VARIETY = 1000.0, 0.09  # weights of a token's attention and of its variety, as published


def run_bounds(tokens: int, runs: int) -> list[int]:
    """Where each of `runs` contiguous runs of the raster sequence begins, and the end: runs + 1 indices."""
    return [number * tokens // runs for number in range(runs + 1)]


def variety(features: Tensor) -> Tensor:
    """[n], variance of each token's cosines to the n - 1 other tokens of its run. features: [n, c]."""
    others = len(features) - 1
    if others < 1:
        return features.new_zeros(len(features))
    unit = normalize(features, dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(0)
    mean = cosine.sum(dim=1, keepdim=True) / others
    return (cosine - mean).square().fill_diagonal_(0).sum(dim=1) / others


def run_scores(features: Tensor, attention: Tensor, bounds: list[int]) -> Tensor:
    """[P], each run's mean token score: 1000 attention + 0.09 variety, the latter scaled to the former's mean size."""
    varieties = torch.cat([variety(features[start:end]) for start, end in pairwise(bounds)])
    seen = ATTENTION * attention
    relative = varieties / varieties.mean().clamp(min=torch.finfo(varieties.dtype).tiny)
    score = seen + VARIETY * seen.mean() * relative
    return torch.stack([score[start:end].mean() for start, end in pairwise(bounds)])


@register("holov", "HoloV", arxiv="2510.02912")
@dataclass(frozen=True)
class HoloVPruner(Pruner):
    """Gives every run of the raster sequence its share of the budget, and keeps the most attended patches of each.

    runs:   number of contiguous runs, which are not crops: 36 of 576 tokens are one and a half rows. A run's share
            follows from its patches' attention and from how much their similarities vary.
    layer:  0, as published.
    compat: "released": a share above a run's size is lost, so fewer tokens than the budget may stay. The published code
            then pads with rows of zeros, orders tokens by attention and has one fixed budget; these are not offered.

    Within a run the choice is by attention only, as in the published code. Kept tokens keep their positions;
    renumber=True renumbers them, as published.
    """

    layer: int = 0
    runs: int = 16
    compat: Literal["released"] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention", "patch_features"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_whole("runs")
        self._check_choice("compat", None, "released")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        attention = view.cls_attention.float().mean(dim=0)
        bounds = run_bounds(len(attention), min(self.runs, len(attention)))
        scores = run_scores(view.patch_features.float(), attention, bounds)
        sizes = [end - start for start, end in pairwise(bounds)]
        shares = allocate(scores, view.budget, sizes, lossy=self.compat is not None)
        return Selection.of(largest_of_parts(attention, sizes, shares))
