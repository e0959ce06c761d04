"""VLM-Pruner itself (arXiv 2512.02700): pivots, centrifugal expansion, then dropped tokens merged into kept ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_pruner import kernels
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.batched import stack


@register("vlm-pruner", "VLM-Pruner", arxiv="2512.02700")
@dataclass(frozen=True)
class CentrifugalPruner(Pruner):
    """Grows outwards from `pivots` dissimilar tokens, then merges dropped tokens into their nearest kept one.

    pivots:         number of initial tokens (kappa).
    threshold:      a token joins while its modulated similarity to the kept ones is below this (tau_0) ...
    threshold_step: ... plus this much more in every further round (delta tau).
    token_batch:    tokens judged together before the kept set is updated (B). None becomes 1, exact greedy, or 16
                    with compat="released".
    spatial_weight: how much distance to the kept tokens counts (lambda); 0 ignores the picture's geometry.
    channels:       channels of highest variance that similarity is measured on (q).
    self_weight:    share of a kept token in its merged row (beta); 1 merges nothing.
    compat:         "released" reproduces the released code where it departs from the paper: a round that adds
                    nothing ends the selection below budget, negative similarities count in the merge, only the
                    first image of a row is pruned, and for Qwen2-VL the budget is rounded down and coordinates
                    refer to the grid of patches, twice as wide as the tokens' own.
    """

    pivots: int = 4
    threshold: float = 0.8
    threshold_step: float = 0.1
    token_batch: int | None = None
    spatial_weight: float = 0.5
    channels: int = 256
    self_weight: float = 0.3
    compat: Literal["released"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_choice("compat", None, "released")
        if self.token_batch is None:
            object.__setattr__(self, "token_batch", 16 if self.compat else 1)
        self._check_whole("pivots", "token_batch", "channels")
        if self.keep_tokens is not None and self.keep_tokens < self.pivots:
            raise PruningError(
                f"keep_tokens={self.keep_tokens} is less than pivots={self.pivots}, and pivots are always kept; "
                f"keep at least {self.pivots} tokens or lower pivots"
            )
        if not math.isfinite(self.threshold):
            raise PruningError(f"threshold={self.threshold} must be a finite number, such as 0.8")
        if not (math.isfinite(self.threshold_step) and self.threshold_step > 0):
            raise PruningError(f"threshold_step={self.threshold_step} must be above 0, or the budget is never reached")
        if not (math.isfinite(self.spatial_weight) and self.spatial_weight >= 0):
            raise PruningError(f"spatial_weight={self.spatial_weight} must be at least 0; 0 ignores distances")
        self._check_share("self_weight", "; 1 merges nothing")

    @property
    def least_tokens(self) -> int:
        return self.pivots

    @property
    def released(self) -> bool:
        return self.compat == "released"

    @torch.no_grad()
    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        """See Pruner.select. Computes in float32 (float64 if `hidden` is), in O(N * channels) memory.

        Raises PruningError if sizes disagree or `budget` is not between min(pivots, N) and N.
        """
        self._check_sizes(hidden, keys, layout, budget)
        return self._select(hidden[None], keys[None], [layout], budget)[0]

    @torch.no_grad()
    def choose_all(self, views: Sequence[View]) -> list[Selection]:
        """Like `choose` for each. The GPU kernels choose from all images of one size in one launch."""
        # A subclass with its own choice makes it image by image.
        own = type(self).choose is CentrifugalPruner.choose and type(self).select is CentrifugalPruner.select
        if not own or not all(kernels.loaded(self._backend(view.hidden)) for view in views):
            return super().choose_all(views)
        alike: dict[Any, list[int]] = {}
        for number, view in enumerate(views):
            self._check_sizes(view.hidden, view.keys, view.layout, view.budget)
            size = (view.hidden.shape, view.keys.shape, view.layout.coords.shape, view.hidden.dtype, view.budget)
            alike.setdefault(size, []).append(number)
        chosen: dict[int, Selection] = {}
        for numbers in alike.values():
            group = [views[number] for number in numbers]
            hidden, keys = (stack([getattr(view, name) for view in group]) for name in ("hidden", "keys"))
            made = self._select(hidden, keys, [view.layout for view in group], group[0].budget)
            chosen.update(zip(numbers, made, strict=True))
        return [chosen[number] for number in range(len(views))]

    def _select(self, hidden: Tensor, keys: Tensor, layouts: list[TokenLayout], budget: int) -> list[Selection]:
        """For I images of one size: hidden [I, N, d], keys [I, N, k]."""
        maths = self._backend(hidden)
        features = maths.screen_channels(hidden, self.channels)
        pivots = self._choose_pivots(keys, min(self.pivots, budget))
        names = ("threshold", "threshold_step", "token_batch", "spatial_weight")
        settings: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.released:
            settings["stop_when_stuck"] = True
        coords = stack([layout.normalised(features) for layout in layouts])
        grown = maths.expand(features, coords, pivots, budget, **settings)
        return [Selection(*parts) for parts in zip(*grown, pivots, strict=True)]

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        """Kept rows [R, d] after similarity-weighted aggregation, in the order of `selection.indices`."""
        if self.self_weight == 1:
            return hidden[selection.indices]
        assert selection.nearest is not None and selection.similarity is not None
        settings = {"negative_weights": True} if self.released else {}
        similar = selection.nearest[None], selection.similarity[None]
        maths = self._backend(hidden)
        return maths.fold(hidden[None], selection.indices[None], *similar, self.self_weight, **settings)[0]

    def _choose_pivots(self, keys: Tensor, count: int) -> Tensor:
        """Initial tokens, long [I, count], chosen by keys [I, N, k]. Ablations override this."""
        return self._backend(keys).choose_pivots(keys, count)

    def _backend(self, tensor: Tensor) -> kernels.Backend:
        """The kernels if allowed: they always keep exactly the budget and judge a window of candidates at once."""
        large = max(self.pivots, self.token_batch or 1) > kernels.WINDOW
        return kernels.backend(tensor, torch_only=self.released or large)

    def _check_sizes(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> None:
        n = hidden.shape[0]
        if keys.shape[0] != n or len(layout) != n:
            raise PruningError(
                f"hidden has {n} tokens, keys {keys.shape[0]}, layout {len(layout)}: all three must describe the "
                "same visual tokens"
            )
        if not min(self.pivots, n) <= budget <= n:
            raise PruningError(
                f"a budget of {budget} is impossible with {n} visual tokens and {self.pivots} pivots; "
                f"it must be {min(self.pivots, n)} to {n}"
            )
