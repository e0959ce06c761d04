"""PyramidDrop (CVPR 2025, arXiv 2410.17247): keeps, in stages, what the prompt's last token would attend to next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.fastv import attention_order
from vlm_pruner.methods.schedule import stage_budgets, stage_layers
from vlm_pruner.methods.view import View


@register("pyramiddrop", "PyramidDrop", arxiv="2410.17247")
@dataclass(frozen=True)
class PyramidDropPruner(Pruner):
    """Each stage keeps what the last token attends to in the next layer. Needs text after the image.

    keep_tokens, reduction_ratio: the mean over the layers from the first stage on, so that the cost equals that of a
        method that prunes once to that many tokens, before `layer`. Each stage keeps half of the previous one, as
        published.
    layer:  the first stage; two more follow at one and two thirds of the remaining layers.
    stages: alternatively, the layers themselves. ratios: alternatively to a budget, the share of an image's tokens that
        each stage keeps, rounded down. The published setting for 32 layers: stages=(8, 16, 24), ratios=(0.5, 0.25,
        0.125).

    Kept tokens keep their positions; renumber=True renumbers them at each stage, as the published code does.
    """

    stages: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None

    needs: ClassVar[frozenset[str]] = frozenset({"attend_next"})

    def __post_init__(self) -> None:
        for name in ("stages", "ratios"):  # JSON gives lists
            given = getattr(self, name)
            if not isinstance(given, (tuple, list, type(None))):
                raise PruningError(f"{name}={given!r} must be a list of numbers, one for each stage")
            object.__setattr__(self, name, None if given is None else tuple(given))
        if self.stages is not None:
            if list(self.stages) != sorted(set(self.stages)) or not self.stages:
                raise PruningError(f"stages={self.stages} must be different layers in ascending order")
            object.__setattr__(self, "layer", self.stages[0])
        super().__post_init__()

    def _check_budget(self) -> None:
        ratios, stages = self.ratios, len(self.stages or (0, 0, 0))
        if ratios is None:
            super()._check_budget()
            return
        if self.keep_tokens is not None or self.reduction_ratio is not None:
            raise PruningError("give either ratios or a budget (keep_tokens or reduction_ratio), not both")
        if len(ratios) != stages:
            raise PruningError(f"ratios={ratios} must have one number for each of {stages} stages")
        if list(ratios) != sorted(ratios, reverse=True) or not all(0 < ratio <= 1 for ratio in ratios):
            raise PruningError(f"ratios={ratios} must not rise, and must lie above 0 and up to 1")

    def layers(self, depth: int) -> tuple[int, ...]:
        return self.stages or stage_layers(self.layer, depth, (0, 1 / 3, 2 / 3))

    def budget(self, tokens: int, rounding: str = "round") -> int:
        if self.ratios is None:
            return super().budget(tokens, rounding)
        return max(1, int(tokens * self.ratios[0]))

    def budgets(self, tokens: int, depth: int, rounding: str = "round") -> tuple[int, ...]:
        layers = self.layers(depth)
        if self.ratios is not None:
            return tuple(max(1, int(tokens * ratio)) for ratio in self.ratios[: len(layers)])
        halves = [0.5**stage for stage in range(len(layers))]
        return stage_budgets(tokens, self.budget(tokens, rounding), layers, depth, halves)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        return Selection.of(attention_order(view.attend_next(torch.tensor([-1], device="cpu")), view.budget))
