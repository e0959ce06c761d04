"""LLaVA in the original layout: this repository's `LlavaLlamaForCausalLM`, whose decoder is told its visual spans."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_pruner.adapters.base import Adapter
from vlm_pruner.errors import PruningError
from vlm_pruner.fit import Fit
from vlm_pruner.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.towers import ClipTower


class LlavaOriginalAdapter(Adapter):
    """The model has spliced its pictures in before the decoder runs, and passes `visual_spans` along."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
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
        tiled = (self.model.config.image_aspect_ratio or "").startswith("anyres")
        if self.decoder.vision_tower is not None and not tiled:
            method.budget(self.decoder.vision_tower.num_patches)

    def tower(self) -> ClipTower:
        tower = self.decoder.vision_tower
        return ClipTower.of(tower.vision_tower, tower.select_layer, self.decoder.mm_projector)

    def fit(self, layout: TokenLayout) -> Fit | None:
        fit: Fit | None = self.decoder.fit(layout)
        return fit

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        spans = kwargs.get("visual_spans")
        if spans is not None:
            return spans
        tokens = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        return [[] for _ in range(tokens.shape[0])]
