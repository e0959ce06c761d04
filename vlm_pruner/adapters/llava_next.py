"""LLaVA-NeXT (1.6) in transformers' classes: pictures of any resolution, each one span of base, tiles and newlines.

`vlm_pruner.geometry.tiles` defines the tokens' coordinates and the treatment of newlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.adapters.base import Adapter, check_one_token_a_patch, encoded, lay_out, named_arguments
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit, Size
from vlm_pruner.geometry.layout import Released, TokenLayout, VisualSpan
from vlm_pruner.geometry.tiles import released_layout, unpadded_layout


class LlavaNextAdapter(Adapter):
    """LlavaNextForConditionalGeneration, and the LlavaNextModel inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_one_token_a_patch(model, self.entry.vision_tower)
        vision = model.config.vision_config
        self._side = vision.image_size // vision.patch_size

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        spans = lay_out(call, {self.model.config.image_token_id: self._layouts(call)})
        return [[replace(span, released=Released(released_layout(span.length))) for span in row] for row in spans]

    def fit(self, layout: TokenLayout) -> Fit:
        config = self.model.config
        canvases = tuple((width, height) for height, width in config.image_grid_pinpoints)
        return anyres_fit(layout, self._side, config.vision_config.image_size, canvases)

    def _layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        """Layouts of the call's pictures. `generate` encodes them first and passes features instead of sizes."""
        pictures = encoded(call, "image")
        if pictures is not None:
            return [self._read_off(features) for features in pictures]
        if call.get("pixel_values") is None or call.get("image_sizes") is None:
            return []
        return [self._from_size(height, width) for height, width in pairs(call["image_sizes"])]

    def _from_size(self, height: int, width: int) -> TokenLayout:
        """The layout of a picture of that many pixels."""
        return unpadded_layout(self._side, *self._grid(height, width))

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a picture's tile tokens."""
        config = self.model.config
        return unpadded_grid(height, width, config.image_grid_pinpoints, config.vision_config.image_size, self._side)

    def _read_off(self, features: Tensor) -> TokenLayout:
        """Derives the layout from packed features [N, d]: every row of the grid ends with the newline embedding."""
        base = self._side**2
        newlines = (features == self.entry.image_newline.to(features)).all(dim=-1).nonzero().squeeze(1)
        rows = len(newlines)
        columns = int(newlines[0]) - base if rows else 0
        if columns < 0 or len(features) != base + rows * (columns + 1):
            raise PruningError(
                f"a picture's {len(features)} features are not {base} of the base and a grid whose rows end with "
                "image_newline; pass the prompt in one forward call, and features as get_image_features packs them"
            )
        return unpadded_layout(self._side, rows, columns)


def unpadded_grid(
    height: int, width: int, pinpoints: Sequence[Sequence[int]], pixels: int, side: int
) -> tuple[int, int]:
    """Rows and columns of tile tokens of a picture of height x width pixels, by transformers' own arithmetic.

    pinpoints: canvases (height, width) in pixels. pixels, side: pixels and tokens along a tile.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

    down, across = get_anyres_image_grid_shape((height, width), pinpoints, pixels)
    grid = torch.empty(1, down * side, across * side, device="meta")
    rows, columns = unpad_image(grid, (height, width)).shape[1:]
    return rows, columns


def anyres_fit(layout: TokenLayout, side: int, pixels: int, canvases: tuple[Size, ...], *, rounds: bool = True) -> Fit:
    """The fit of base, tiles and newlines; `pixels` along a tile, canvases as (width, height)."""
    tiles = layout.coords[side**2 :]
    rows, columns = (int(tiles[:, 1].max()) + 1, int(tiles[:, 0].max())) if len(tiles) else (0, 0)
    return Fit("anyres", rows, columns, base=side, pixels=pixels, canvases=canvases, rounds=rounds)


def pairs(image_sizes: Any) -> Iterable[tuple[int, int]]:
    """(height, width) of each picture, from a tensor or a list."""
    return image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes
