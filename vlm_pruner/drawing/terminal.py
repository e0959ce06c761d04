"""Kept tokens in a terminal: one cell per token, with its number in the order of selection.

With colours, a kept token's cell has the colour of the order, and a dropped one's its patch's own colour, dimmed.
Without, the numbers stand among dots.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from PIL import Image

from vlm_pruner.console import COLUMNS
from vlm_pruner.drawing.colours import order_colour, rgb
from vlm_pruner.drawing.overlay import PictureOrFrames, planes
from vlm_pruner.geometry.fit import Box
from vlm_pruner.receipts import Kept

Colour = tuple[int, int, int]


def wants_colour(stream: TextIO, choice: str = "auto") -> bool:
    """Whether to write colours. choice: always, never, or auto: as the terminal and NO_COLOR say."""
    if choice != "auto":
        return choice == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


def wants_ascii(stream: TextIO) -> bool:
    """Whether the stream's encoding lacks the signs for kept and dropped."""
    try:
        "█·".encode(getattr(stream, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return True
    return False


def draw_cells(picture: PictureOrFrames, kept: Kept, *, colour: bool = False, ascii_only: bool = False) -> str:
    """Lines of at most COLUMNS characters: every plane of the picture, and a legend.

    Grids of up to COLUMNS / 3 columns show numbers, larger ones only whether a token was kept, and those with more
    columns than COLUMNS whether any of several was.
    """
    blocks = []
    for plane in planes(picture, kept):
        title = [] if plane.name == "picture" else [plane.name]
        grid = _as_grid([pair for view in plane.views for pair in view.boxes()])
        blocks.append("\n".join([*title, *_Cells(plane.picture, kept, colour, ascii_only).lines(grid)]))
    return "\n".join([*blocks, _legend(kept, colour, ascii_only)])


Grid = list[list[tuple[int, Box]]]


def _as_grid(boxes: Sequence[tuple[int, Box]]) -> Grid:
    """Tokens row by row, in the picture's order across tiles."""
    rows: dict[float, list[tuple[int, Box]]] = {}
    for token, box in boxes:
        rows.setdefault(round(box[1], 3), []).append((token, box))
    return [sorted(row, key=lambda pair: pair[1][0]) for _, row in sorted(rows.items())]


class _Cells:
    def __init__(self, picture: Image.Image, kept: Kept, colour: bool, ascii_only: bool) -> None:
        self.picture, self.kept, self.colour, self.ascii_only = picture, kept, colour, ascii_only
        self.number = {token: number for number, token in enumerate(kept.order, start=1)}

    def lines(self, grid: Grid) -> list[str]:
        columns = max(len(row) for row in grid)
        digits = len(str(len(self.kept.order)))
        cell = next((size for size in (digits + 1, 2, 1) if columns * size <= COLUMNS), 1)
        together = -(-columns * cell // COLUMNS)  # a cell covers together x together tokens
        numbered = cell > digits
        lines = []
        for top in range(0, len(grid), together):
            strip = grid[top : top + together]
            groups = [
                [pair for row in strip for pair in row[left : left + together]] for left in range(0, columns, together)
            ]
            lines.append("".join(self._cell(group, cell, numbered) for group in groups) + ("\x1b[0m" * self.colour))
        return lines

    def _cell(self, group: list[tuple[int, Box]], size: int, numbered: bool) -> str:
        numbers = sorted(self.number[token] for token, _ in group if token in self.number)
        dropped, block = (".", "#") if self.ascii_only else ("·", "█")
        if not numbers:
            sign = (" " if self.colour else dropped).rjust(size)
        elif numbered:
            sign = str(numbers[0]).rjust(size)
        else:
            sign = block * size
        return self._paint(sign, numbers, [box for _, box in group], numbered) if self.colour else sign

    def _paint(self, sign: str, numbers: list[int], boxes: list[Box], numbered: bool) -> str:
        if not numbers:
            red, green, blue = (round(0.45 * channel + 20) for channel in self._mean(boxes))
            return f"{_code(48, (red, green, blue), grey=True)}{sign}"
        colour = rgb(order_colour(numbers[0] - 1, len(self.kept.order)))
        if not numbered:
            return f"{_code(38, colour)}{sign}"
        ink = (0, 0, 0) if _lightness(colour) > 110 else (255, 255, 255)
        return f"{_code(48, colour)}{_code(38, ink)}{sign}"

    def _mean(self, boxes: list[Box]) -> Colour:
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        width, height = self.picture.size
        inside = max(min(lefts), 0), max(min(tops), 0), min(max(rights), width), min(max(bottoms), height)
        if inside[2] - inside[0] < 1 or inside[3] - inside[1] < 1:
            return 128, 128, 128  # padding
        pixel = self.picture.convert("RGB").resize((1, 1), Image.Resampling.BOX, box=inside).getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return pixel[0], pixel[1], pixel[2]


def _legend(kept: Kept, colour: bool, ascii_only: bool) -> str:
    dropped = "a dim patch" if colour else ("." if ascii_only else "·")
    pivots = ", ".join(str(number) for number, token in enumerate(kept.order, start=1) if token in kept.pivots)
    words = f"numbers: order of selection; {dropped}: dropped" + (f"; pivots: {pivots}" if pivots else "")
    return words if len(words) <= COLUMNS else words[: COLUMNS - 3] + "..."


def _lightness(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _code(layer: int, colour: Colour, grey: bool = False) -> str:
    """The escape code that sets ink (38) or background (48), in 24 bits or, on other terminals, in 256 colours.

    grey: of 256 colours, take a grey rather than a wrong colour.
    """
    if os.environ.get("COLORTERM") in ("truecolor", "24bit"):
        return f"\x1b[{layer};2;{colour[0]};{colour[1]};{colour[2]}m"
    if grey:
        return f"\x1b[{layer};5;{232 + round(_lightness(colour) / 255 * 23)}m"
    red, green, blue = (round(channel / 255 * 5) for channel in colour)
    return f"\x1b[{layer};5;{16 + 36 * red + 6 * green + blue}m"
