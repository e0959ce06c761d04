"""VLM-Pruner itself (arXiv 2512.02700): pivots, centrifugal expansion, then dropped tokens folded into kept ones."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlm_pruner import kernels
from vlm_pruner import selection as torch_path
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.kernels.together import in_groups, stack
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View

Merge = tuple[Tensor, Selection]  # an image's hidden states [N, d], and what to keep of it


@register("vlm-pruner")
@dataclass(frozen=True)
class CentrifugalPruner(Pruner):
    """Selection grows outwards from `pivots` unlike tokens; dropped tokens are folded into their nearest kept one.

    pivots:         number of starting tokens (kappa).
    threshold:      a token joins while its modulated similarity to the kept ones is below this (tau_0) ...
    threshold_step: ... plus this much more in every further round (delta tau).
    token_batch:    tokens judged together before the kept set is updated (B). None becomes 1, exact greedy, or 16
                    with compat="released".
    spatial_weight: how much distance to the kept tokens counts (lambda); 0 ignores the picture's geometry.
    channels:       channels of highest variance that similarity is measured on (q).
    self_weight:    share of a kept token in its merged row (beta); 1 folds nothing in.
    compat:         "released" reproduces the released code where it parts from the paper: a round that adds
                    nothing ends the selection under budget, negative similarities weigh in when folding, only
                    the first image of a row is pruned, and Qwen2-VL's budget is rounded down and its tokens
                    are placed on the grid of patches, twice as wide as their own.
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
        if self.compat not in (None, "released"):
            raise PruningError(f"compat={self.compat!r} must be None or 'released'")
        if self.token_batch is None:
            object.__setattr__(self, "token_batch", 16 if self.compat else 1)
        for name in ("pivots", "token_batch", "channels"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise PruningError(f"{name}={value!r} must be a whole number of at least 1")
        if self.keep_tokens is not None and self.keep_tokens < self.pivots:
            raise PruningError(
                f"keep_tokens={self.keep_tokens} is less than pivots={self.pivots}, and pivots are always kept; "
                f"keep at least {self.pivots} tokens or lower pivots"
            )
        self._check_numbers()

    def _check_numbers(self) -> None:
        if not math.isfinite(self.threshold):
            raise PruningError(f"threshold={self.threshold} must be a finite number, such as 0.8")
        if not (math.isfinite(self.threshold_step) and self.threshold_step > 0):
            raise PruningError(f"threshold_step={self.threshold_step} must be above 0, or the budget is never reached")
        if not (math.isfinite(self.spatial_weight) and self.spatial_weight >= 0):
            raise PruningError(f"spatial_weight={self.spatial_weight} must be at least 0; 0 ignores distances")
        if not 0 <= self.self_weight <= 1:
            raise PruningError(f"self_weight={self.self_weight} must be between 0 and 1; 1 folds nothing in")

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
        if self._fused(hidden):
            return self._select_fused([View(hidden, keys, layout, budget)])[0]
        features = torch_path.screen_channels(hidden, self.channels)
        pivots = self._choose_pivots(keys, min(self.pivots, budget))
        places = layout.places(features)
        grown = torch_path.expand(features, places, pivots, budget, stop_when_stuck=self.released, **self._criterion())
        return Selection(*grown, pivots)

    def choose_all(self, views: Iterable[View]) -> list[Selection]:
        """See Pruner.choose_all. The GPU kernels work on all images of one size and budget at once.

        Not for a subclass that chooses one image in a way of its own.
        """
        own = type(self).choose is Pruner.choose and type(self).select is CentrifugalPruner.select

        def kind(view: View) -> Hashable:
            shapes = view.hidden.shape, view.keys.shape, view.layout.coords.shape
            return (*shapes, view.budget) if own and self._fused(view.hidden) else None

        return in_groups(views, kind, together=self._select_fused, alone=self.choose)

    @torch.no_grad()
    def _select_fused(self, views: list[View]) -> list[Selection]:
        """By the kernels, which keep exactly the budget. All views are of the same sizes."""
        fused, budget = kernels.load(), views[0].budget
        for view in views:
            self._check_sizes(view.hidden, view.keys, view.layout, view.budget)
        features = fused.screen_channels(stack([view.hidden for view in views]), self.channels)
        pivots = self._choose_pivots(stack([view.keys for view in views]), min(self.pivots, budget))
        places = stack([view.layout.places(features) for view in views])
        grown = fused.expand(features, places, pivots, budget, **self._criterion())
        return [Selection(*parts) for parts in zip(*grown, pivots, strict=True)]

    def _criterion(self) -> dict[str, Any]:
        """What decides whether a token joins."""
        names = ("threshold", "threshold_step", "token_batch", "spatial_weight")
        return {name: getattr(self, name) for name in names}

    def _choose_pivots(self, keys: Tensor, count: int) -> Tensor:
        """Tokens to start from: long [count] of keys [N, k], or [I, count] of keys [I, N, k], for the GPU kernels.

        Ablations start elsewhere.
        """
        pivots: Tensor = (torch_path if keys.ndim == 2 else kernels.load()).choose_pivots(keys, count)
        return pivots

    def _fused(self, hidden: Tensor) -> bool:
        """Whether the GPU kernels are to be used and can be: they keep exactly the budget, and work in float32."""
        fits = max(self.pivots, self.token_batch or 1) <= kernels.WINDOW
        return fits and not self.released and hidden.dtype != torch.float64 and kernels.wanted(hidden)

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

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        """Kept rows after similarity-weighted aggregation, [R, d] in the order of `selection.indices`."""
        if self.self_weight == 1:
            return hidden[selection.indices]
        if self._fused_merge(hidden):
            return self._merge_fused([(hidden, selection)])[0]
        assert selection.nearest is not None and selection.similarity is not None
        return torch_path.fold(
            hidden,
            selection.indices,
            selection.nearest,
            selection.similarity,
            self.self_weight,
            negative_weights=self.released,
        )

    def merge_all(self, images: Iterable[Merge]) -> list[Tensor]:
        """See Pruner.merge_all, and `choose_all`."""
        own = type(self).merge is CentrifugalPruner.merge

        def kind(image: Merge) -> Hashable:
            hidden, selection = image
            return (hidden.shape, selection.indices.shape) if own and self._fused_merge(hidden) else None

        return in_groups(images, kind, together=self._merge_fused, alone=lambda image: self.merge(*image))

    def _merge_fused(self, images: list[Merge]) -> list[Tensor]:
        """By the kernels. All images are of the same sizes."""
        choices = [selection for _, selection in images]
        parts = ([getattr(choice, name) for choice in choices] for name in ("indices", "nearest", "similarity"))
        hidden = stack([hidden for hidden, _ in images])
        return list(kernels.load().fold(hidden, *map(stack, parts), self.self_weight))

    def _fused_merge(self, hidden: Tensor) -> bool:
        needs_gradient = torch.is_grad_enabled() and hidden.requires_grad  # which the kernels do not give
        return self.self_weight != 1 and not needs_gradient and self._fused(hidden)
