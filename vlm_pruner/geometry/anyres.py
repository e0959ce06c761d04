"""AnyRes geometry (LLaVA-1.6): chooses a canvas for a picture, cuts it into tiles, and finds where its tokens end up.

The picture is scaled onto the canvas of `grid_pinpoints` that wastes the least area, and the canvas is cut into tiles
of the tower's size; a small copy of the whole picture comes first as the base tile. Picture and canvas sizes are
(width, height), as in Pillow; token grids are (height, width).
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

Size = tuple[int, int]
Pinpoints = str | Sequence[Sequence[int]] | None  # as in config.json


def parse_pinpoints(grid_pinpoints: Pinpoints) -> list[Size]:
    """Parses canvases, (width, height) in pixels, from a list or its text. Raises ValueError for anything else."""
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
    width, height = select_best_resolution(image_size, parse_pinpoints(grid_pinpoints))
    return width // patch_size, height // patch_size


def resize_and_pad_image(image: Image.Image, target_resolution: Size) -> Image.Image:
    """Scales a picture to fit a canvas, centred on black."""
    width, height = image.size
    target_width, target_height = target_resolution
    scale_w, scale_h = target_width / width, target_height / height
    if scale_w < scale_h:
        new_width, new_height = target_width, min(math.ceil(height * scale_w), target_height)
    else:
        new_width, new_height = min(math.ceil(width * scale_h), target_width), target_height
    canvas = Image.new("RGB", (target_width, target_height), (0, 0, 0))
    corner = ((target_width - new_width) // 2, (target_height - new_height) // 2)
    canvas.paste(image.resize((new_width, new_height)), corner)
    return canvas


def divide_to_patches(image: Image.Image, patch_size: int) -> list[Image.Image]:
    """Cuts a canvas into square tiles, row by row."""
    width, height = image.size
    return [
        image.crop((left, top, left + patch_size, top + patch_size))
        for top in range(0, height, patch_size)
        for left in range(0, width, patch_size)
    ]


def unpadded_region(grid: tuple[int, int], original_size: Size) -> tuple[slice, slice]:
    """Rows and columns of a token grid (height, width) that show the picture rather than the black bars around it."""
    rows, columns = grid
    width, height = original_size
    if width / height > columns / rows:
        bar = (rows - _fitted(height * (columns / width))) // 2
        return slice(bar, rows - bar), slice(0, columns)
    bar = (columns - _fitted(width * (rows / height))) // 2
    return slice(0, rows), slice(bar, columns - bar)


def _fitted(tokens: float) -> int:
    """Whole tokens, rounded to 7 digits first as transformers does, so that 11.9999999 counts as 12, not 11."""
    return int(round(tokens, 7))
