"""Smaller pictures for families that take any size: the arm `resize` where tokens follow from a picture's pixels."""

from __future__ import annotations

import copy
import math
from typing import Any

from PIL import Image

from vlm_pruner.llava.sights import Sight


class Shrinker:
    """Makes pictures smaller until a processor makes no more visual tokens of them than `sight` allows.

    The processor's lower limit on pixels is lifted, or it would enlarge them again. Raises ValueError for a processor
    that scales pictures to fixed sizes or cuts them into tiles: there, tokens do not follow from the size.
    """

    def __init__(self, processor: Any, sight: Sight) -> None:
        images = processor.image_processor
        if not takes_any_size(images):
            raise ValueError(
                f"method=resize: {type(images).__name__} does not scale pictures by their number of pixels, so a "
                "smaller picture does not have fewer visual tokens; use a method that prunes, or blind"
            )
        self._sight = sight
        self._whole = copy.deepcopy(images)
        self._merge = int(images.merge_size)
        self._pixels = int(images.patch_size) * self._merge  # of a token's side
        images.size = type(images.size)(**{**dict(images.size), "shortest_edge": self._pixels**2})

    def tokens(self, picture: Image.Image) -> int:
        """Visual tokens of the whole picture."""
        width, height = picture.size
        return int(self._whole.get_number_of_image_patches(height, width, {})) // self._merge**2

    def __call__(self, picture: Image.Image) -> Image.Image:
        whole, sight = self.tokens(picture), self._sight
        wanted = sight.keep_tokens or max(1, round(whole * (1 - (sight.reduction_ratio or 0))))
        rows, columns = best_grid(min(wanted, whole), picture.width / picture.height)
        return picture.resize((columns * self._pixels, rows * self._pixels), Image.Resampling.BICUBIC)


def takes_any_size(images: Any) -> bool:
    """Whether an image processor scales pictures by their number of pixels, so that tokens follow from their size."""
    return hasattr(images, "merge_size") and hasattr(images, "get_number_of_image_patches")


def best_grid(tokens: int, aspect: float) -> tuple[int, int]:
    """(rows, columns) of at most `tokens`: uses most of them, and keeps columns / rows near `aspect`."""

    def cost(grid: tuple[int, int]) -> float:
        rows, columns = grid
        return math.log(tokens / (rows * columns)) + abs(math.log(columns / rows / aspect)) / 2

    grids = [
        (rows, columns)
        for rows in range(1, tokens + 1)
        for columns in {tokens // rows, max(1, min(tokens // rows, round(rows * aspect)))}
    ]
    return min(grids, key=cost)
