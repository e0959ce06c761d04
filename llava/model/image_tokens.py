"""One picture's tokens: its features in the order in which the decoder reads them, and their place in the picture."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from llava.anyres import get_anyres_image_grid_shape, unpadded_region
from llava.model.llava_config import LlavaConfig
from vlm_pruner.layout import TokenLayout


@dataclass(frozen=True)
class ImageTokens:
    """features: [N, d], ready to be spliced into the sequence. layout: coordinates of the same N tokens."""

    features: Tensor
    layout: TokenLayout


def single_view(features: Tensor, has_class_token: bool = False) -> ImageTokens:
    """One view of a picture, features [N, d] in row-major order.

    A class token in front belongs to no place; it gets the picture's centre.
    """
    side = _side(features.shape[0] - has_class_token)
    layout = TokenLayout.grid(side, side)
    if has_class_token:
        centre = layout.coords.mean(dim=0, keepdim=True)
        layout = TokenLayout(torch.cat([centre, layout.coords]), layout.diagonal)
    return ImageTokens(features, layout)


def tiled_view(
    features: Tensor, image_size: tuple[int, int] | None, tile_pixels: int, config: LlavaConfig, newline: Tensor | None
) -> ImageTokens:
    """Base tile and tiles of one AnyRes picture, features [1 + tiles, N, d]; `image_size` is (width, height) in pixels.

    Merge types: "flat" puts the tiles one after another; "spatial" puts them together to one grid behind the base
    tile; "spatial_unpad" also cuts the bars off that grid and ends each of its rows with the newline embedding.
    Coordinates are those of the put-together grid; the base tile is stretched over it.
    """
    unpad = config.mm_patch_merge_type == "spatial_unpad"
    if unpad and newline is None:
        raise ValueError("mm_patch_merge_type is 'spatial_unpad', but the model has no image_newline embedding")
    side = _side(features.shape[1])
    if features.shape[0] == 1:
        base = single_view(features[0])
        return base if newline is None else _append_newline(base, newline, side)
    if image_size is None:
        raise ValueError("AnyRes pictures need image_sizes=[(width, height), ...], the pictures' sizes in pixels")
    across, down = _tiles(features, image_size, tile_pixels, config)
    rows, columns = down * side, across * side
    if config.mm_patch_merge_type == "flat":
        tokens, coords = features[1:], _cut(_grid_coords(rows, columns), across, down)
    else:
        tokens = _put_together(features[1:], across, down)
        if unpad:
            tokens = tokens[unpadded_region((rows, columns), image_size)]
        rows, columns = tokens.shape[:2]
        if newline is not None:
            tokens = torch.cat([tokens, newline.to(tokens).expand(rows, 1, -1)], dim=1)
        coords = _grid_coords(*tokens.shape[:2])
    base_coords = _grid_coords(side, side) * torch.tensor([columns / side, rows / side])
    return ImageTokens(
        torch.cat([features[0], tokens.flatten(0, 1)]),
        TokenLayout(torch.cat([base_coords.flatten(0, 1), coords.flatten(0, 1)]), math.hypot(rows, columns)),
    )


def _put_together(tiles: Tensor, across: int, down: int) -> Tensor:
    """Tiles [down * across, side * side, d] -> one grid [down * side, across * side, d]."""
    side = _side(tiles.shape[1])
    grid = tiles.reshape(down, across, side, side, -1).transpose(1, 2)
    return grid.reshape(down * side, across * side, -1)


def _cut(grid: Tensor, across: int, down: int) -> Tensor:
    """The inverse of `_put_together`."""
    side, depth = grid.shape[0] // down, grid.shape[-1]
    return grid.reshape(down, side, across, side, depth).transpose(1, 2).reshape(down * across, side * side, depth)


def _append_newline(base: ImageTokens, newline: Tensor, side: int) -> ImageTokens:
    place = torch.tensor([[float(side), side - 1.0]])
    features = torch.cat([base.features, newline.to(base.features)[None]])
    return ImageTokens(features, TokenLayout(torch.cat([base.layout.coords, place]), base.layout.diagonal))


def _tiles(features: Tensor, image_size: tuple[int, int], tile_pixels: int, config: LlavaConfig) -> tuple[int, int]:
    """Tiles (across, down), checked against the number of tiles that were given."""
    across, down = get_anyres_image_grid_shape(image_size, config.image_grid_pinpoints, tile_pixels)
    if across * down != features.shape[0] - 1:
        raise ValueError(
            f"a picture of {image_size[0]} x {image_size[1]} pixels has {across} x {down} tiles, "
            f"but {features.shape[0] - 1} were given: image_sizes and images must be of the same pictures"
        )
    return across, down


def _grid_coords(rows: int, columns: int) -> Tensor:
    """(x, y) of a grid, [rows, columns, 2]."""
    return TokenLayout.grid(rows, columns).coords.reshape(rows, columns, 2)


def _side(tokens: int) -> int:
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"{tokens} visual tokens do not form a square grid")
    return side
