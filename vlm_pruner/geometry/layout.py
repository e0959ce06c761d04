"""Locates visual tokens: coordinates in the picture, spans in the sequence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Lines:
    """Which tokens are newlines, and of which tokens.

    newlines: bool [N]. rows: long [N], the line that a newline ends or that a token lies in; -1 for tokens of no line.
    """

    newlines: Tensor
    rows: Tensor

    def part(self, tokens: Tensor) -> Lines:
        """Of some of the tokens, long [n]."""
        return Lines(self.newlines[tokens], self.rows[tokens])

    @classmethod
    def of(cls, lines: int, length: int, *, before: int = 0) -> Lines:
        """`before` tokens of no line, then lines of `length` tokens and a newline each."""
        within = torch.arange(length + 1, device="cpu").repeat(lines)
        rows = torch.arange(lines, device="cpu").repeat_interleave(length + 1)
        none = torch.full((before,), -1, device="cpu")
        return cls(torch.cat([none, within]) == length, torch.cat([none, rows]))


@dataclass(frozen=True)
class TokenLayout:
    """Coordinates of one image's or one video's N visual tokens.

    coords:   float [N, 2], (x, y) in token units; for a video [N, 3], (t, x, y) with frame number t.
    diagonal: the largest possible distance in the picture, in token units (D_max of the paper).
    lines:    which tokens are newlines, if some are.

    Distances are measured within a frame only. While a frame has no kept token, its tokens are judged by content alone;
    from its first kept token, the kept set then grows outwards.
    """

    coords: Tensor
    diagonal: float
    lines: Lines | None = field(default=None, repr=False, compare=False)
    _copies: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if self.coords.ndim != 2 or self.coords.shape[1] not in (2, 3):
            raise ValueError(f"coords must have shape [N, 2] or, of a video, [N, 3], not {list(self.coords.shape)}")
        if not self.coords.is_floating_point():
            raise ValueError(f"coords must be floating point, not {self.coords.dtype}: call .float() on them")
        if not self.diagonal > 0:
            raise ValueError(f"diagonal must be positive, not {self.diagonal}")

    @classmethod
    def grid(cls, height: int, width: int) -> TokenLayout:
        """Row-major grid: token i is at x = i mod width, y = i // width; the diagonal is sqrt(height^2 + width^2)."""
        if height < 1 or width < 1:
            raise ValueError(f"a grid needs at least one row and one column, not {height} x {width}")
        index = torch.arange(height * width, device="cpu")
        coords = torch.stack([index % width, index // width], dim=1).float()
        return cls(coords=coords, diagonal=math.hypot(height, width))

    @classmethod
    def video(cls, frames: int, height: int, width: int) -> TokenLayout:
        """`frames` grids in sequence: token i is in frame i // (height * width), where it is placed as in `grid`."""
        if frames < 1:
            raise ValueError(f"a video needs at least one frame, not {frames}")
        frame = cls.grid(height, width)
        time = torch.arange(frames, device="cpu").repeat_interleave(height * width).float()
        return cls(torch.cat([time[:, None], frame.coords.repeat(frames, 1)], dim=1), frame.diagonal)

    def __len__(self) -> int:
        return self.coords.shape[0]

    def normalised(self, like: Tensor) -> Tensor:
        """`coords` in units of the diagonal, in `like`'s dtype and on its device.

        Copied there once per layout, from pinned memory, so that the host does not wait for a GPU. Later calls copy
        nothing, and a CUDA graph can hold them.
        """
        key = (like.device, like.dtype)
        if key not in self._copies:
            coords = (self.coords / self.diagonal).to(like.dtype)
            if like.is_cuda and not coords.is_cuda:
                coords = coords.pin_memory()
            self._copies[key] = coords.to(like.device, non_blocking=True)
        return self._copies[key]

    def with_newlines(self, length: int) -> TokenLayout:
        """With a newline token after every `length` tokens, one step to the right of the last of them."""
        lines = self.coords.reshape(-1, length, self.coords.shape[1])
        newlines = lines[:, -1:].clone()
        newlines[..., -2] += 1
        coords = torch.cat([lines, newlines], dim=1).flatten(0, 1)
        return TokenLayout(coords, self.diagonal, Lines.of(len(lines), length))

    def part(self, tokens: Tensor) -> TokenLayout:
        """The layout of some of the tokens, long [n]."""
        tokens = tokens.to(self.coords.device)
        return TokenLayout(self.coords[tokens], self.diagonal, self.lines and self.lines.part(tokens))


@dataclass(frozen=True)
class Released:
    """How the released code treats a span.

    layout:   the coordinates it assumes, for models where they are wrong; None where they are right.
    rounding: how it rounds a budget.
    """

    layout: TokenLayout | None = None
    rounding: Literal["round", "floor"] = "round"


@dataclass(frozen=True)
class VisualSpan:
    """The `length` visual tokens of one image or video in one batch row, from `start` on in the padded sequence.

    offsets:     long [length], ascending: positions counted from `start`, if text stands between the tokens (as between
                 the frames of a Qwen3-VL video); None if they are consecutive.
    true_layout: the true coordinates, if `layout` has those that the released code assumes.
    """

    start: int
    length: int
    layout: TokenLayout
    offsets: Tensor | None = None
    released: Released = Released()
    true_layout: TokenLayout | None = None

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 1:
            raise ValueError(f"a span needs start >= 0 and length >= 1, not start {self.start}, length {self.length}")
        if len(self.layout) != self.length:
            raise ValueError(f"the span holds {self.length} tokens, its layout {len(self.layout)}: they must agree")
        if self.offsets is not None and self.offsets.shape != (self.length,):
            raise ValueError(f"the span holds {self.length} tokens, but offsets has shape {list(self.offsets.shape)}")

    @property
    def stop(self) -> int:
        """The position after the last visual token."""
        return self.start + (self.length if self.offsets is None else int(self.offsets[-1]) + 1)

    @classmethod
    def at(cls, positions: Sequence[int], layout: TokenLayout, released: Released = Released()) -> VisualSpan:
        """The span of the tokens at `positions`, [N] and ascending, with or without gaps."""
        start, length = positions[0], len(positions)
        gaps = positions[-1] - start + 1 > length
        offsets = torch.tensor(positions, device="cpu") - start if gaps else None
        return cls(start, length, layout, offsets, released)

    def positions(self) -> Tensor:
        """Positions of the visual tokens in the sequence: long [length], ascending."""
        return self.start + (torch.arange(self.length, device="cpu") if self.offsets is None else self.offsets)

    def index(self, device: torch.device) -> slice | Tensor:
        """An index of the visual tokens in a row on `device`: their positions, or a slice if there are no gaps."""
        if self.offsets is None:
            return slice(self.start, self.start + self.length)
        return self.positions().to(device, non_blocking=True)

    def positions_of(self, tokens: Tensor) -> Tensor:
        """Positions in the sequence, long [n] on `tokens`' device, of some of the visual tokens, long [n]."""
        if self.offsets is None:
            return tokens + self.start
        return self.positions().to(tokens.device, non_blocking=True)[tokens]

    def frames(self) -> list[VisualSpan]:
        """One span per frame of a video; the span itself for an image."""
        coords = self.layout.coords
        if coords.shape[1] == 2:
            return [self]
        return [self.part((coords[:, 0] == time).nonzero().squeeze(1)) for time in coords[:, 0].unique()]

    def part(self, tokens: Tensor) -> VisualSpan:
        """The span of some of the tokens: long [n], counted within this span, ascending."""
        released = Released(rounding=self.released.rounding)
        return VisualSpan.at(self.positions()[tokens].tolist(), self.layout.part(tokens), released)

    def as_released(self) -> VisualSpan:
        """The span with the coordinates that the released code assumes."""
        if self.released.layout is None:
            return self
        return replace(self, layout=self.released.layout, true_layout=self.layout)
