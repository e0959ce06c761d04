"""A drawing as a list of shapes, which `raster` turns into pixels and `svg` into text.

All lengths are in pixels of the finished drawing, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageFont

from vlm_pruner.drawing.colours import INK
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
    stroke: str
    width: float


@dataclass(frozen=True)
class Text:
    """One line of text. anchor: whether `at` is the "start" or the "end" of its baseline.

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


def text_width(text: str, size: float) -> float:
    """Width in pixels of a line of text in Pillow's font; an SVG viewer's may differ a little."""
    return float(ImageFont.load_default(size).getlength(text))


def cut(text: str, size: float, width: float) -> str:
    """The text, shortened to `width` pixels with an ellipsis at its end."""
    while len(text) > 1 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text


def diamond(x: float, y: float, reach: float) -> Polygon:
    """The mark of a pivot, around (x, y)."""
    return Polygon([(x, y - reach), (x + reach, y), (x, y + reach), (x - reach, y)], "#ffffff", "#000000", 1.2)


def moved(shapes: Iterable[Shape], x: float, y: float) -> list[Shape]:
    """The shapes, shifted."""

    def point(old: Point) -> Point:
        return old[0] + x, old[1] + y

    def box(old: Box) -> Box:
        return old[0] + x, old[1] + y, old[2] + x, old[3] + y

    def move(shape: Shape) -> Shape:
        match shape:
            case Group():
                return replace(shape, shapes=moved(shape.shapes, x, y))
            case Text():
                return replace(shape, at=point(shape.at))
            case Line():
                return replace(shape, start=point(shape.start), end=point(shape.end))
            case Polygon():
                return replace(shape, points=[point(corner) for corner in shape.points])
            case Veil():
                return replace(shape, box=box(shape.box), holes=[box(hole) for hole in shape.holes])
            case _:
                return replace(shape, box=box(shape.box))

    return [move(shape) for shape in shapes]
