"""A drawing as a list of shapes, which `raster` turns into pixels and `svg` into text.

All lengths are in pixels of the finished drawing, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageFont

from vlm_pruner.drawing.colours import BACKGROUND, INK
from vlm_pruner.geometry.fit import Box

Point = tuple[float, float]


@dataclass(frozen=True)
class Bitmap:
    """A photograph or other pixels, scaled into a box."""

    image: Image.Image
    box: Box


@dataclass(frozen=True)
class Rectangle:
    """Its stroke lies within the box."""

    box: Box
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Veil:
    """A colour laid over a box, except for the holes."""

    box: Box
    holes: Sequence[Box]
    fill: str
    opacity: float


@dataclass(frozen=True)
class Line:
    """A straight line. head: length of the arrowhead at its end."""

    start: Point
    end: Point
    stroke: str = INK
    width: float = 1.0
    opacity: float = 1.0
    head: float = 0.0


@dataclass(frozen=True)
class Polygon:
    points: Sequence[Point]
    fill: str
    stroke: str | None = None
    width: float = 1.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Text:
    """One line of text. anchor: whether `at` is the start, the middle or the end of its baseline.

    halo: colour of an outline that keeps it readable on a picture.
    """

    at: Point
    text: str
    size: float = 14.0
    fill: str = INK
    anchor: str = "start"
    halo: str | None = None


@dataclass(frozen=True)
class Group:
    """Shapes that belong together. In SVG the title is a tooltip, also for screen readers; `data` become data-NAME."""

    shapes: Sequence[Shape]
    kind: str = ""
    title: str = ""
    data: dict[str, str] = field(default_factory=dict)


Shape = Bitmap | Rectangle | Veil | Line | Polygon | Text | Group


@dataclass(frozen=True)
class Drawing:
    """A finished drawing. description: what a screen reader says of it."""

    width: float
    height: float
    shapes: Sequence[Shape]
    description: str = ""
    background: str = BACKGROUND


def text_width(text: str, size: float) -> float:
    """Width in pixels of a line of text in Pillow's font; an SVG viewer's may differ a little."""
    return float(ImageFont.load_default(size).getlength(text))


def cut(text: str, size: float, width: float) -> str:
    """The text, shortened to `width` pixels with an ellipsis at its end."""
    while len(text) > 1 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text


def moved(shapes: Iterable[Shape], x: float, y: float) -> list[Shape]:
    """The shapes, shifted."""
    return [_moved(shape, x, y) for shape in shapes]


def _moved(shape: Shape, x: float, y: float) -> Shape:
    def point(old: Point) -> Point:
        return old[0] + x, old[1] + y

    if isinstance(shape, Group):
        return replace(shape, shapes=moved(shape.shapes, x, y))
    if isinstance(shape, Text):
        return replace(shape, at=point(shape.at))
    if isinstance(shape, Line):
        return replace(shape, start=point(shape.start), end=point(shape.end))
    if isinstance(shape, Polygon):
        return replace(shape, points=[point(corner) for corner in shape.points])
    if isinstance(shape, Veil):
        return replace(shape, box=shift(shape.box, x, y), holes=[shift(hole, x, y) for hole in shape.holes])
    return replace(shape, box=shift(shape.box, x, y))


def shift(box: Box, x: float, y: float) -> Box:
    """The box, shifted."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y
