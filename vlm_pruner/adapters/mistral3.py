"""Mistral 3 (Mistral Small 3.1 and later): pictures of any size, one grid each, with a text token after every row.

The tokens that end rows and pictures ([IMG_BREAK], [IMG_END]) count as text, so pruning always keeps them.
"""

from __future__ import annotations

from typing import Any

from vlm_pruner.adapters.base import Adapter, lay_out_rows, named_arguments, tokens_by_size
from vlm_pruner.geometry.layout import VisualSpan


class Mistral3Adapter(Adapter):
    """Mistral3ForConditionalGeneration, and the Mistral3Model inside it."""

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        return lay_out_rows(call, self.model.config.image_token_id, self._sizes(call))

    def _sizes(self, call: dict[str, Any]) -> list[int]:
        config = self.model.config
        return tokens_by_size(call, config.vision_config.patch_size * config.spatial_merge_size)
