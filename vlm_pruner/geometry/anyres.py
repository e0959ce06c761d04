"""AnyRes geometry (LLaVA-1.6): chooses a canvas for a picture, cuts it into tiles, and finds where its tokens end up.

The picture is scaled onto the canvas of `grid_pinpoints` that wastes the least area, and the canvas is cut into tiles
of the tower's size; a small copy of the whole picture comes first as the base tile. Picture and canvas sizes are
(width, height), as in Pillow; token grids are (height, width).
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from PIL import Image

Size = tuple[int, int]
Pinpoints = str | Sequence[Sequence[int]] | None  # as in config.json

_RANGE = re.compile(r"\((\d+)x(\d+)\)")
_LARGE = 1.1  # grids that exceed the limit by more than this along each side are shrunk


def parse_pinpoints(grid_pinpoints: Pinpoints, tile: int | None = None) -> list[Size]:
    """Parses canvases, (width, height) in pixels, from a list or its text. Raises ValueError for anything else.

    The text may also be a range in tiles, such as "(1x1),...,(6x6)", which `tile`, a tile's side in pixels, scales.
    """
    if isinstance(grid_pinpoints, str) and tile is not None and (corners := _RANGE.findall(grid_pinpoints)):
        (left, top), (right, bottom) = ((int(across), int(down)) for across, down in (corners[0], corners[-1]))
        tiles = itertools.product(range(left, right + 1), range(top, bottom + 1))
        return [(across * tile, down * tile) for across, down in tiles]
    try:
        pairs: Any = ast.literal_eval(grid_pinpoints) if isinstance(grid_pinpoints, str) else grid_pinpoints
        return [(int(width), int(height)) for width, height in pairs]
    except (ValueError, SyntaxError, TypeError):
        message = f"image_grid_pinpoints is {grid_pinpoints!r}; expected a list of [width, height] pairs in pixels"
        raise ValueError(message) from None


def select_best_resolution(original_size: Size, possible_resolutions: Sequence[Size]) -> Size:
    """The canvas on which the scaled picture keeps the most pixels; ties go to the one that wastes the fewest."""
    width, height = original_size

    def merit(canvas: Size) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        fitted = int(width * scale) * int(height * scale)
        useful = min(fitted, width * height)
        return useful, useful - canvas[0] * canvas[1]

    return max(possible_resolutions, key=merit)


def get_anyres_image_grid_shape(image_size: Size, grid_pinpoints: Pinpoints, patch_size: int) -> tuple[int, int]:
    """Number of tiles (across, down) for a picture; `patch_size` is a tile's side in pixels."""
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints, patch_size))
    return width // patch_size, height // patch_size


def scaled_to_fit(size: Size, canvas: Size) -> tuple[Size, Size]:
    """(size, left top corner) of a picture scaled to fit a canvas and centred on it."""
    across, down = canvas[0] / size[0], canvas[1] / size[1]
    if across < down:
        width, height = canvas[0], min(math.ceil(size[1] * across), canvas[1])
    else:
        width, height = min(math.ceil(size[0] * down), canvas[0]), canvas[1]
    return (width, height), ((canvas[0] - width) // 2, (canvas[1] - height) // 2)


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Scales a picture to fit a canvas, centred on black."""
    canvas = Image.new("RGB", target_resolution, (0, 0, 0))
    size, corner = scaled_to_fit(image.size, target_resolution)
    canvas.paste(image.resize(size), corner)
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts a canvas into square tiles, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def unpadded_region(grid: Size, original_size: Size, *, rounds: bool = False) -> tuple[slice, slice]:
    """Rows and columns of a token grid (height, width) that show the picture rather than the black bars around it.

    rounds: whether the picture's tokens are rounded to 7 digits before they are truncated. transformers does so; the
    original code takes 11.9999999 for 11 and so cuts off a little more for a few sizes, such as 820 x 369.
    """
    rows, columns = grid
    width, height = original_size
    if width / height > columns / rows:
        bar = (rows - _whole(height * (columns / width), rounds)) // 2
        return slice(bar, rows - bar), slice(0, columns)
    bar = (columns - _whole(width * (rows / height), rounds)) // 2
    return slice(0, rows), slice(bar, columns - bar)


def _whole(tokens: float, rounds: bool) -> int:
    return int(round(tokens, 7)) if rounds else int(tokens)


def limited_grid(rows: int, columns: int, side: int, aspect_ratio: str | None) -> tuple[int, int]:
    """The (rows, columns) to which "anyres_max_k" shrinks a grid: about k tiles of side x side tokens at most.

    Grids up to 1.1 times that size along each side stay, and all grids where `aspect_ratio` names no limit.
    """
    limit = re.search(r"anyres_max_(\d+)", aspect_ratio or "")
    if limit is None:
        return rows, columns
    times = math.sqrt(rows * columns / (int(limit[1]) * side**2))
    return (int(rows // times), int(columns // times)) if times > _LARGE else (rows, columns)
