"""Kept tokens on the original picture: kept patches bright, framed and numbered in order, the rest veiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from vlm_pruner.drawing.colours import FAINT, GREY, INK, PADDING, order_colour
from vlm_pruner.drawing.raster import rasterise
from vlm_pruner.drawing.shapes import Bitmap, Drawing, Group, Line, Rectangle, Shape, Text, Veil, cut, diamond, moved
from vlm_pruner.drawing.svg import write_svg
from vlm_pruner.geometry.fit import Box, GridView
from vlm_pruner.receipts import Kept

GAP = 16.0
CAPTION = 24.0  # height of a line of text above or below a picture
VEIL = 0.68
LEAST_NUMBERED = 17.0  # pixels along a patch: a number on a smaller one is unreadable
PLANES_PER_ROW = 4

PictureOrFrames = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True)
class Style:
    """Options for drawing kept tokens.

    first:   draw only this many tokens, in order of selection; None: all. A token's colour stays the same.
    numbers: write each token's number in the order, from 1, where its patch is large enough.
    pivots:  mark the tokens that selection started from with a double frame and a diamond.
    folds:   "hue": a dropped patch takes the colour of the kept one that it was folded into; "arrows": points to it.
    focus:   with folds, the numbers of the kept tokens whose dropped ones are drawn; empty: all.
    side:    pixels of the longer side of a drawn picture. title: a line above.
    """

    first: int | None = None
    numbers: bool = True
    pivots: bool = True
    folds: Literal["hue", "arrows"] | None = None
    focus: tuple[int, ...] = ()
    side: int = 768
    title: str = ""

    def __post_init__(self) -> None:
        if self.folds not in (None, "hue", "arrows"):
            raise ValueError(f"folds={self.folds!r} must be None, 'hue' or 'arrows'")
        if not 32 <= self.side <= 8192:
            raise ValueError(f"side={self.side} must be between 32 and 8192 pixels")


def overlay(picture: PictureOrFrames, kept: Kept, style: Style | None = None) -> Image.Image:
    """The picture, upright and of the size that the model's processor got, with its kept tokens. RGB.

    picture: one picture, or the frames of a video. Where the model saw several views (overview and tiles, or frames),
    each is drawn with its name below.

    Raises ValueError if the receipt cannot be of this picture, or `style` asks for more tokens than were kept.
    """
    return rasterise(draw_overlay(picture, kept, style or Style()))


def overlay_svg(picture: PictureOrFrames, kept: Kept, style: Style | None = None) -> str:
    """`overlay` as SVG. Every kept token is a <g class="kept" data-order="1" data-token="345"> with a tooltip."""
    return write_svg(draw_overlay(picture, kept, style or Style()))


def draw_overlay(picture: PictureOrFrames, kept: Kept, style: Style) -> Drawing:
    """`overlay` as shapes."""
    if style.first is not None and not 0 <= style.first <= len(kept.order):
        raise ValueError(f"first={style.first}, but {len(kept.order)} tokens were kept; use 0 to {len(kept.order)}")
    panels = [_Panel(plane, kept, style).drawing() for plane in planes(picture, kept)]
    top = CAPTION if style.title else 0.0
    wide = max(panel.width for panel in panels)
    high = max(panel.height for panel in panels)
    columns = min(len(panels), PLANES_PER_ROW)
    rows = -(-len(panels) // columns)
    shapes: list[Shape] = []
    for number, panel in enumerate(panels):
        row, column = divmod(number, columns)
        shapes += moved(panel.shapes, column * (wide + GAP), top + row * (high + GAP))
    width, height = columns * (wide + GAP) - GAP, top + rows * (high + GAP) - GAP
    if style.title:
        shapes.append(Text((0, CAPTION - 9), cut(style.title, 15, width), 15))
    return Drawing(width, height, shapes, describe(kept))


def describe(kept: Kept) -> str:
    """One sentence for screen readers."""
    pivots = f", from {len(kept.pivots)} pivots on" if kept.pivots else ""
    name = kept.method or "a method"
    return f"{len(kept.order)} visual tokens kept by {name}{pivots}, drawn in place and in order of selection"


@dataclass(frozen=True)
class Plane:
    """One view that the model had of the picture, with the grids that cover it."""

    name: str
    picture: Image.Image
    views: list[GridView]


def planes(picture: PictureOrFrames, kept: Kept) -> list[Plane]:
    """The views that the model had of the picture, in order."""
    frames = [picture] if isinstance(picture, Image.Image) else list(picture)
    if not frames:
        raise ValueError("no picture was given; give one, or the frames of a video")
    views = kept.fit.views(frames[0].size)
    names = list(dict.fromkeys(view.plane for view in views))
    shown = [frames[0]] * len(names)
    if kept.fit.frames > 1:  # where a step of the tower covers several frames, the first of them is drawn
        shown = [frames[number * len(frames) // len(names)] for number in range(len(names))]
    return [
        Plane(name, image, [view for view in views if view.plane == name])
        for name, image in zip(names, shown, strict=True)
    ]


class _Panel:
    """One plane drawn. `_place` turns boxes in pixels of the original picture into boxes on the panel."""

    def __init__(self, plane: Plane, kept: Kept, style: Style) -> None:
        self.plane, self.kept, self.style = plane, kept, style
        width, height = plane.picture.size
        regions = [(0.0, 0.0, float(width), float(height)), *(view.region for view in plane.views)]
        lefts, tops, rights, bottoms = zip(*regions, strict=True)
        self.left, self.top = min(lefts), min(tops)
        across, down = max(rights) - self.left, max(bottoms) - self.top
        self.scale = style.side / max(across, down)
        self.width, self.height = across * self.scale, down * self.scale
        self.boxes = {token: self._place(box) for view in plane.views for token, box in view.boxes()}
        self.number = {token: number for number, token in enumerate(kept.order, start=1)}
        self.shown = [token for token in kept.order[: style.first] if token in self.boxes]

    def drawing(self) -> Drawing:
        whole = (0.0, 0.0, float(self.plane.picture.width), float(self.plane.picture.height))
        shapes: list[Shape] = [
            Rectangle((0, 0, self.width, self.height), PADDING),
            Bitmap(self.plane.picture, self._place(whole)),
            *self._dropped(),
            *(self._token(token) for token in self.shown),
            *(self._arrows() if self.style.folds == "arrows" else []),
            Rectangle((0, 0, self.width, self.height), None, FAINT),
        ]
        if self.plane.name == "picture":
            return Drawing(self.width, self.height, shapes)
        kept = sum(token in self.boxes for token in self.kept.order)
        caption = f"{self.plane.name}: {kept} of {len(self.boxes)} kept{self._newlines()}"
        shapes.append(Text((0, self.height + 17), cut(caption, 13, self.width), 13, GREY))
        return Drawing(self.width, self.height + CAPTION, shapes)

    def _newlines(self) -> str:
        """Counts the tokens that end a row of tiles, because they lie nowhere in the picture."""
        if self.plane.name != "tiles" or self.kept.fit.kind != "anyres":
            return ""
        first = self.kept.fit.base**2
        count = sum(token not in self.boxes and token >= first for token in self.kept.order)
        return f", and {count} row ends" if count else ""

    def _place(self, box: Box) -> Box:
        left, top, right, bottom = box
        s = self.scale
        return (left - self.left) * s, (top - self.top) * s, (right - self.left) * s, (bottom - self.top) * s

    def _dropped(self) -> list[Shape]:
        holes = [self.boxes[token] for token in self.shown]
        whole = (0.0, 0.0, self.width, self.height)
        if self.style.folds != "hue" or self.kept.keeper is None:
            return [Veil(whole, holes, "#ffffff", VEIL)]
        folded = self._folded()
        tints = [Rectangle(self.boxes[token], self._colour(keeper), opacity=0.55) for token, keeper in folded]
        return [Veil(whole, [*holes, *(self.boxes[token] for token, _ in folded)], "#ffffff", VEIL), *tints]

    def _folded(self) -> list[tuple[int, int]]:
        """(dropped token, the kept one that it was folded into) of this plane, for the keepers that `style` shows."""
        if self.kept.keeper is None:
            return []
        wanted = set(self.kept.order[: self.style.first])
        if self.style.focus:
            wanted &= {token for token in wanted if self.number[token] in self.style.focus}
        return [
            (token, self.kept.keeper[token])
            for token in self.boxes
            if token not in self.number and self.kept.keeper[token] in wanted
        ]

    def _arrows(self) -> list[Shape]:
        here = [(token, keeper) for token, keeper in self._folded() if keeper in self.boxes]
        size = self._patch()
        return [
            Line(_centre(self.boxes[token]), _centre(self.boxes[keeper]), colour, width, opacity, head)
            for token, keeper in here
            for colour, width, opacity, head in (
                (INK, 2.4, 0.35, 0.0),  # a dark seam makes yellow visible on white
                (self._colour(keeper), 1.3, 0.9, size * 0.25),
            )
        ]

    def _token(self, token: int) -> Group:
        box, colour, number, size = self.boxes[token], self._colour(token), self.number[token], self._patch()
        pivot = self.style.pivots and token in self.kept.pivots
        edge = max(1.5, 0.07 * size)
        shapes: list[Shape] = [Rectangle(box, None, INK if pivot else colour, edge + (1.5 if pivot else 0))]
        if pivot:
            reach = min(max(0.19 * size, 3.5), 9.0)
            corner = diamond(box[0] + reach + 0.1 * size, box[1] + reach + 0.1 * size, reach)
            shapes += [Rectangle(box, None, colour, edge), corner]
        if self.style.numbers and size >= LEAST_NUMBERED:
            font = min(max(0.41 * size, 8.0), 16.0)
            shapes.append(
                Text((box[2] - edge - 1, box[3] - edge - 1.5), str(number), font, "#ffffff", "end", "#000000")
            )
        title = f"number {number} of {len(self.kept.order)}: token {token}" + (", a pivot" if pivot else "")
        return Group(shapes, "kept", title, {"order": str(number), "token": str(token)})

    def _colour(self, token: int) -> str:
        return order_colour(self.number[token] - 1, len(self.kept.order))

    def _patch(self) -> float:
        """Pixels along the shorter side of a patch."""
        view = self.plane.views[0]
        left, top, right, bottom = view.region
        return self.scale * min((right - left) / view.columns, (bottom - top) / view.rows)


def _centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
