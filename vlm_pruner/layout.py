"""Where visual tokens are: coordinates in the picture, spans in the sequence."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TokenLayout:
    """Coordinates of one image's N visual tokens.

    coords:   float [N, 2], (x, y) in token units.
    diagonal: the largest distance that the picture allows, in token units (D_max of the paper).
    """

    coords: Tensor
    diagonal: float

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] != 2:
            raise ValueError(f"coords must have shape [N, 2], not {list(self.coords.shape)}")
        if not self.coords.is_floating_point():
            raise ValueError(f"coords must be floating point, not {self.coords.dtype}: call .float() on them")
        if not self.diagonal > 0:
            raise ValueError(f"diagonal must be positive, not {self.diagonal}")

    @classmethod
    def grid(cls, height: int, width: int) -> TokenLayout:
        """Row-major grid: token i is at x = i mod width, y = i // width; the diagonal is sqrt(height^2 + width^2)."""
        if height < 1 or width < 1:
            raise ValueError(f"a grid needs at least one row and one column, not {height} x {width}")
        index = torch.arange(height * width)
        coords = torch.stack([index % width, index // width], dim=1).float()
        return cls(coords=coords, diagonal=math.hypot(height, width))

    def __len__(self) -> int:
        return self.coords.shape[0]


@dataclass(frozen=True)
class VisualSpan:
    """One image's visual tokens in one batch row: positions start .. start + length - 1 of the padded sequence."""

    start: int
    length: int
    layout: TokenLayout

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 1:
            raise ValueError(f"a span needs start >= 0 and length >= 1, not start {self.start}, length {self.length}")
        if len(self.layout) != self.length:
            raise ValueError(f"the span holds {self.length} tokens, its layout {len(self.layout)}: they must agree")

    @property
    def stop(self) -> int:
        return self.start + self.length
