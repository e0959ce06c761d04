"""Locates the layers of a CLIP vision tower, for methods that choose by its attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from vlm_pruner.errors import PruningError


@dataclass(frozen=True)
class ClipTower:
    """The parts of a CLIP tower; its sequence is the class token, then patches in row-major order.

    layers:    its encoder layers. selected: number of layers that run before the features are taken; at least 1.
    projector: from patch features to the decoder's embeddings, token by token.
    """

    layers: nn.ModuleList
    selected: int
    projector: nn.Module

    @classmethod
    def of(cls, tower: nn.Module, feature_layer: Any, projector: nn.Module) -> ClipTower:
        """Describes a transformers CLIPVisionModel. Raises PruningError without a class token or one feature layer.

        feature_layer: index into the tower's hidden states; 0 is the embeddings.
        """
        tower = getattr(tower, "vision_model", tower)  # some versions of transformers keep them apart
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
                "attention need exactly one layer, other than the embeddings"
            )
        return cls(layers, selected, projector)
