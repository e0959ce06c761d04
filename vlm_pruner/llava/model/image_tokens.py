"""One picture's tokens: its features in the order the decoder reads them, and their coordinates in the picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vlm_pruner.geometry.anyres import get_anyres_image_grid_shape, limited_grid, unpadded_region
from vlm_pruner.geometry.layout import Released, TokenLayout, VisualSpan
from vlm_pruner.geometry.tiles import base_coords, released_layout, unpadded_layout
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig


@dataclass(frozen=True)
class ImageTokens:
    """features: [N, d], ready to be spliced into the sequence. layout: coordinates of the same N tokens.

    released_layout: the coordinates that the released code assumes, if they differ.
    """

    features: Tensor
    layout: TokenLayout
    released_layout: TokenLayout | None = None

    def span(self, start: int) -> VisualSpan:
        """The span of these tokens in a row's sequence, from `start` on."""
        return VisualSpan(start, len(self.layout), self.layout, released=Released(self.released_layout))


def single_view(features: Tensor, has_class_token: bool = False, grid: tuple[int, int] | None = None) -> ImageTokens:
    """One view of a picture, features [N, d] in row-major order. grid: (rows, columns); a square by default.

    A class token in front has no position of its own; it gets the picture's centre.
    """
    if grid is None:
        side = square_side(features.shape[0] - has_class_token)
        grid = side, side
    layout = TokenLayout.grid(*grid)
    if has_class_token:
        centre = layout.coords.mean(dim=0, keepdim=True)
        layout = TokenLayout(torch.cat([centre, layout.coords]), layout.diagonal)
    return ImageTokens(features, layout)


def tiled_view(
    features: Tensor,
    image_size: tuple[int, int] | None,
    tile_pixels: int,
    config: AnyLlavaConfig,
    newline: Tensor | None,
) -> ImageTokens:
    """Base tile and tiles of one AnyRes picture, features [1 + tiles, N, d]; `image_size` is (width, height) in pixels.

    Merge types: "flat" keeps the tiles in sequence; "spatial" joins them into one grid after the base tile;
    "spatial_unpad" also cuts the bars off that grid and ends each of its rows with the newline embedding.

    "spatial_unpad", LLaVA-NeXT's, has the coordinates of `vlm_pruner.geometry.tiles`. The other two keep the bars, so
    their plane is the whole grid, and the base tile is stretched over the part that holds the picture.
    """
    unpad = config.mm_patch_merge_type == "spatial_unpad"
    if unpad and newline is None:
        raise ValueError("mm_patch_merge_type is 'spatial_unpad', but the model has no image_newline embedding")
    side = square_side(features.shape[1])
    if features.shape[0] == 1:
        base = single_view(features[0])
        return base if newline is None else _append_newline(base, newline)
    if image_size is None:
        raise ValueError("AnyRes pictures need image_sizes=[(width, height), ...], the pictures' sizes in pixels")
    across, down = _tiles(features, image_size, tile_pixels, config)
    shown = unpadded_region((down * side, across * side), image_size, rounds=config.unpad_rounds)
    if newline is not None and unpad:
        grid = _limited(_put_together(features[1:], across, down)[shown], side, config)
        return _unpadded(features[0], grid, newline)
    layout = _padded_layout(side, across, down, shown)
    if config.mm_patch_merge_type == "flat":
        grid = layout.coords[side**2 :].reshape(down * side, across * side, 2)
        coords = torch.cat([layout.coords[: side**2], _cut(grid, across, down).flatten(0, 1)])
        return ImageTokens(features.flatten(0, 1), TokenLayout(coords, layout.diagonal))
    tiles = _put_together(features[1:], across, down).flatten(0, 1)
    return ImageTokens(torch.cat([features[0], tiles]), layout)


def count_tiled(image_size: tuple[int, int], side: int, tile_pixels: int, config: AnyLlavaConfig) -> int:
    """N of `tiled_view` for an AnyRes picture of (width, height) pixels; `side`: tokens along a tile's edge."""
    across, down = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, tile_pixels)
    if config.mm_patch_merge_type != "spatial_unpad":
        return (1 + across * down) * side**2
    shown = unpadded_region((down * side, across * side), image_size, rounds=config.unpad_rounds)
    rows, columns = (part.stop - part.start for part in shown)
    rows, columns = limited_grid(rows, columns, side, config.image_aspect_ratio)
    return side**2 + rows * (columns + 1)


def _limited(grid: Tensor, side: int, config: AnyLlavaConfig) -> Tensor:
    """The grid [rows, columns, d], shrunk if it is larger than "anyres_max_k" allows."""
    size = limited_grid(grid.shape[0], grid.shape[1], side, config.image_aspect_ratio)
    if size == grid.shape[:2]:
        return grid
    return functional.interpolate(grid.permute(2, 0, 1)[None], size=size, mode="bilinear")[0].permute(1, 2, 0)


def _unpadded(base: Tensor, grid: Tensor, newline: Tensor) -> ImageTokens:
    """Base [side * side, d], then grid [rows, columns, d] with the newline embedding [d] after each row."""
    rows, columns = grid.shape[:2]
    tiles = torch.cat([grid, newline.to(grid).expand(rows, 1, -1)], dim=1)
    features = torch.cat([base, tiles.flatten(0, 1)])
    return ImageTokens(features, unpadded_layout(square_side(len(base)), rows, columns), released_layout(len(features)))


def _padded_layout(side: int, across: int, down: int, shown: tuple[slice, slice]) -> TokenLayout:
    """Base over the part `shown` of the grid, then the whole grid row by row."""
    grid = TokenLayout.grid(down * side, across * side)
    rows, columns = shown
    corner = torch.tensor([float(columns.start), float(rows.start)])
    base = base_coords(side, rows.stop - rows.start, columns.stop - columns.start) + corner
    return TokenLayout(torch.cat([base, grid.coords]), grid.diagonal)


def _put_together(tiles: Tensor, across: int, down: int) -> Tensor:
    """Tiles [down * across, side * side, d] -> one grid [down * side, across * side, d]."""
    side = square_side(tiles.shape[1])
    grid = tiles.reshape(down, across, side, side, -1).transpose(1, 2)
    return grid.reshape(down * side, across * side, -1)


def _cut(grid: Tensor, across: int, down: int) -> Tensor:
    """The inverse of `_put_together`."""
    side, depth = grid.shape[0] // down, grid.shape[-1]
    return grid.reshape(down, side, across, side, depth).transpose(1, 2).reshape(down * across, side * side, depth)


def _append_newline(base: ImageTokens, newline: Tensor) -> ImageTokens:
    features = torch.cat([base.features, newline.to(base.features)[None]])
    return ImageTokens(features, base.layout.with_newlines(len(base.layout)))


def _tiles(features: Tensor, image_size: tuple[int, int], tile_pixels: int, config: AnyLlavaConfig) -> tuple[int, int]:
    """Tiles (across, down), checked against the number of tiles in `features`."""
    across, down = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, tile_pixels)
    if across * down != features.shape[0] - 1:
        raise ValueError(
            f"a picture of {image_size[0]} x {image_size[1]} pixels has {across} x {down} tiles, "
            f"but {features.shape[0] - 1} were given: image_sizes and images must belong to the same pictures"
        )
    return across, down


def square_side(tokens: int) -> int:
    """The side of the square grid that `tokens` form."""
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} visual tokens do not form a square grid")
    return side
