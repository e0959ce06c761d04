"""Mistral 3 (Mistral Small 3.1 and later): pictures of any size, one grid each, with a word after every row.

The model treats the words that end rows and pictures ([IMG_BREAK], [IMG_END]) as text, so pruning always keeps them.
"""

from __future__ import annotations

from typing import Any

import torch

from vlm_pruner.adapters.base import (
    Adapter,
    check_not_cut,
    encoded,
    lay_out,
    named_arguments,
    placeholder_positions,
    placeholders,
    runs,
)
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan


class Mistral3Adapter(Adapter):
    """Mistral3ForConditionalGeneration, and the Mistral3Model inside it."""

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call, token_id = named_arguments(self.entry, args, kwargs), self.model.config.image_token_id
        sizes = self._sizes(call)
        if not sizes:
            return lay_out(call, {})
        places = placeholders(call, token_id)
        check_not_cut(call, places)
        rows = placeholder_positions(places, sizes)
        return lay_out(call, {token_id: [_grid(where) for row in rows for where in row]})

    def _sizes(self, call: dict[str, Any]) -> list[int]:
        """Numbers of visual tokens of the call's pictures."""
        features = encoded(call, "image")
        if features is not None:
            return [len(tokens) for tokens in features]
        if call.get("pixel_values") is None or call.get("image_sizes") is None:
            return []
        config = self.model.config
        pixels = config.vision_config.patch_size * config.spatial_merge_size  # of a token's height and width
        return (torch.as_tensor(call["image_sizes"]) // pixels).prod(dim=-1).tolist()


def _grid(where: list[int]) -> TokenLayout:
    """The layout of the picture at positions `where` [N]: a row ends at each gap between positions."""
    rows = runs(where)
    if len(set(rows)) != 1:
        raise PruningError(
            f"the {len(where)} placeholders of a picture do not form rows of {rows[0]}; pass the prompt as the "
            "processor returns it, with a break after every row"
        )
    return TokenLayout.grid(len(rows), rows[0])
