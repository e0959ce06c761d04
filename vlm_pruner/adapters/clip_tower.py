"""Where the layers of a CLIP vision tower are, for methods that choose by its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_pruner.errors import PruningError


@dataclass(frozen=True)
class ClipTower:
    """Where things are in a CLIP tower: class token first, then patches in row-major order.

    layers:    its encoder layers. selected: number of hidden states before the one that features are taken from, that
               is, of layers that have run by then; at least 1.
    projector: from patch features to the decoder's embeddings, token by token.
    """

    layers: nn.ModuleList
    selected: int
    projector: nn.Module

    @classmethod
    def of(cls, tower: nn.Module, feature_layer: Any, projector: nn.Module) -> ClipTower:
        """From a transformers CLIPVisionModel. Raises PruningError if it has no class token, or no single layer.

        feature_layer: index into the tower's hidden states, of which number 0 is the embeddings.
        """
        tower = getattr(tower, "vision_model", tower)  # where transformers has them apart
        if not hasattr(getattr(tower, "embeddings", None), "class_embedding"):
            raise PruningError(
                f"{type(tower).__name__} has no class token; methods that choose by its attention (such as FasterVLM "
                "and VisionZip) cannot work with this model"
            )
        layers: Any = tower.get_submodule("encoder.layers")
        states = len(layers) + 1
        selected = feature_layer % states if isinstance(feature_layer, int) else 0
        if not selected:
            raise PruningError(
                f"features come from layers {feature_layer!r} of the vision tower; methods that choose by the tower's "
                "attention need one layer, and not the embeddings"
            )
        return cls(layers, selected, projector)
