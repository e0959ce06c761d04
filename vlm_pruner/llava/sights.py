"""Shows a model less of a picture without pruning: a smaller picture, or none.

`resize` shrinks pictures until their visual tokens fit the budget, and interpolates the tower's position embeddings.
`blind` leaves pictures out, so that a model answers from the question alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor
from torch.nn import functional

from vlm_pruner.errors import PruningError

RESIZE, BLIND = "resize", "blind"

Grid = tuple[int, int]  # rows and columns of visual tokens


@dataclass(frozen=True)
class Sight:
    """name: resize or blind. The budget is a share to remove, or a number of tokens; blind has none."""

    name: str
    reduction_ratio: float | None = None
    keep_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.name == BLIND:
            return
        if (self.reduction_ratio is None) == (self.keep_tokens is None):
            raise PruningError("resize needs a budget: give exactly one of reduction_ratio and keep_tokens")
        if self.reduction_ratio is not None and not 0 <= self.reduction_ratio < 1:
            raise PruningError(f"reduction_ratio={self.reduction_ratio} must be at least 0 and below 1")
        if self.keep_tokens is not None and self.keep_tokens < 1:
            raise PruningError(f"keep_tokens={self.keep_tokens} must be at least 1")

    def grid(self, side: int) -> Grid:
        """The grid for a picture whose whole grid is side x side. Raises PruningError for more tokens than that."""
        wanted = round(side**2 * (1 - (self.reduction_ratio or 0))) if self.keep_tokens is None else self.keep_tokens
        if wanted > side**2:
            raise PruningError(
                f"keep_tokens={wanted}, but a picture has only {side**2} visual tokens; use that or less"
            )
        return largest_grid(max(1, wanted), side)

    def describe(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) if self.name == RESIZE else {"name": BLIND, "reduction_ratio": None, "keep_tokens": 0}


def largest_grid(tokens: int, side: int) -> Grid:
    """The largest rows x columns of at most `tokens`, columns = rows or rows + 1, within side x side."""
    rows = min(side, math.isqrt(tokens))
    return (rows, rows + 1) if rows * (rows + 1) <= tokens and rows < side else (rows, rows)


def shrunk(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Pixel values [3, height, width] at another (height, width), without aliasing."""
    return functional.interpolate(pixels[None].float(), size=tuple(size), mode="bicubic", antialias=True)[0].to(pixels)
