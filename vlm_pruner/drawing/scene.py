"""What is drawn, before it is decided how: a list of shapes that `raster` turns into pixels and `svg` into text.

All lengths are in pixels of the finished picture, x to the right and y down.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageFont

from vlm_pruner.drawing.colours import BACKGROUND, INK

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Picture:
    """A picture scaled into a box."""

    image: Image.Image
    box: Box


@dataclass(frozen=True)
class Rectangle:
    """Its stroke lies within the box. round: radius of the corners."""

    box: Box
    fill: str | None = None
    stroke: str | None = None
    width: float = 1.0
    opacity: float = 1.0
    round: float = 0.0


@dataclass(frozen=True)
class Veil:
    """A colour laid over a box, except for the holes."""

    box: Box
    holes: Sequence[Box]
    fill: str
    opacity: float


@dataclass(frozen=True)
class Line:
    """A line through points. head: length of an arrow's head at its end. dash: length of its dashes; 0: none."""

    points: Sequence[Point]
    stroke: str = INK
    width: float = 1.0
    opacity: float = 1.0
    head: float = 0.0
    dash: float = 0.0


@dataclass(frozen=True)
class Polygon:
    points: Sequence[Point]
    fill: str
    stroke: str | None = None
    width: float = 1.0
    opacity: float = 1.0


@dataclass(frozen=True)
class Text:
    """One line of text. place: where its baseline starts, has its middle, or ends, as `anchor` says.

    halo: colour of an outline that keeps it readable on a picture.
    """

    place: Point
    text: str
    size: float = 14.0
    fill: str = INK
    anchor: str = "start"
    halo: str | None = None


@dataclass(frozen=True)
class Group:
    """Shapes that belong together. In SVG the title is a tooltip and what a screen reader says; `data` are data-...="""

    shapes: Sequence[Shape]
    kind: str = ""
    title: str = ""
    data: dict[str, str] = field(default_factory=dict)


Shape = Picture | Rectangle | Veil | Line | Polygon | Text | Group


@dataclass(frozen=True)
class Scene:
    """A finished drawing. description: what a screen reader says of the whole."""

    width: float
    height: float
    shapes: Sequence[Shape]
    description: str = ""
    background: str = BACKGROUND


def text_width(text: str, size: float) -> float:
    """Pixels that a line of text takes (measured in Pillow's font; an SVG viewer's may differ a little)."""
    return float(ImageFont.load_default(size).getlength(text))


def wrap(text: str, size: float, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces; a single word that is longer stays whole."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def cut(text: str, size: float, width: float) -> str:
    """The text, shortened to `width` pixels with an ellipsis at its end."""
    while len(text) > 1 and text_width(text, size) > width:
        text = text[:-2].rstrip() + "…"
    return text


def moved(shapes: Iterable[Shape], x: float, y: float) -> list[Shape]:
    """The shapes, shifted."""
    return [_moved(shape, x, y) for shape in shapes]


def _moved(shape: Shape, x: float, y: float) -> Shape:
    if isinstance(shape, Group):
        return replace(shape, shapes=moved(shape.shapes, x, y))
    if isinstance(shape, Text):
        return replace(shape, place=(shape.place[0] + x, shape.place[1] + y))
    if isinstance(shape, Line | Polygon):
        return replace(shape, points=[(left + x, top + y) for left, top in shape.points])
    if isinstance(shape, Veil):
        return replace(shape, box=shift(shape.box, x, y), holes=[shift(hole, x, y) for hole in shape.holes])
    return replace(shape, box=shift(shape.box, x, y))


def enlarged(shapes: Iterable[Shape], factor: float) -> list[Shape]:
    """The shapes of a chart `factor` times as large, texts and lines included."""

    def box(old: Box) -> Box:
        return old[0] * factor, old[1] * factor, old[2] * factor, old[3] * factor

    large: list[Shape] = []
    for shape in shapes:
        if isinstance(shape, Text):
            place = shape.place[0] * factor, shape.place[1] * factor
            large.append(replace(shape, place=place, size=shape.size * factor))
        elif isinstance(shape, Line | Polygon):
            points = [(x * factor, y * factor) for x, y in shape.points]
            large.append(replace(shape, points=points, width=shape.width * factor))
        elif isinstance(shape, Rectangle):
            large.append(replace(shape, box=box(shape.box), round=shape.round * factor))
        else:
            raise TypeError(f"a {type(shape).__name__} is not part of a chart, and is not enlarged")
    return large


def shift(box: Box, x: float, y: float) -> Box:
    """The box, shifted."""
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y
