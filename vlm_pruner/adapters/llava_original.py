"""LLaVA in the original layout: this repository's `LlavaLlamaForCausalLM` and `LlavaQwenForCausalLM`."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_pruner.adapters.base import Adapter, named_arguments, rows_without_spans
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner


class LlavaOriginalAdapter(Adapter):
    """The model splices its pictures in before the decoder runs, and passes `visual_spans` along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.videos = bool(model.config.takes_videos)
        own = self.decoder.method
        if own is not None:
            raise PruningError(
                f"the decoder already prunes with its own method ({type(own).__name__}); "
                "set model.model.method = None before pruning it from outside"
            )

    @property
    def decoder(self) -> nn.Module:
        return self.model.model

    @property
    def entry(self) -> nn.Module:
        return self.model.model

    def check(self, method: Pruner) -> None:
        self.decoder.check(method)

    def tower(self) -> ClipTower:
        tower = self.decoder.vision_tower
        layer = getattr(tower, "select_layer", None)  # SigLIP's has none, and no class token either
        return ClipTower.of(tower.vision_tower, layer, self.decoder.mm_projector)

    def fit(self, layout: TokenLayout) -> Fit | None:
        fit: Fit | None = self.decoder.fit(layout)
        return fit

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        spans = kwargs.get("visual_spans")
        if spans is not None:
            return spans
        return rows_without_spans(named_arguments(self.entry, args, kwargs))
