"""A drawing as pixels, made at twice its size and scaled down for smooth edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import singledispatchmethod

from PIL import Image, ImageDraw, ImageFont

from vlm_pruner.drawing.colours import BACKGROUND, rgb
from vlm_pruner.drawing.shapes import Bitmap, Box, Drawing, Group, Line, Point, Polygon, Rectangle, Shape, Text, Veil

FINE = 2


def rasterise(drawing: Drawing) -> Image.Image:
    """RGB, of the drawing's size rounded up."""
    size = math.ceil(drawing.width), math.ceil(drawing.height)
    canvas = Image.new("RGB", (FINE * size[0], FINE * size[1]), BACKGROUND)
    pen = _Pen(canvas)
    for shape in drawing.shapes:
        pen.draw(shape)
    return canvas.resize(size, Image.Resampling.BOX)


class _Pen:
    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self.pen = ImageDraw.Draw(canvas, "RGBA")  # paints mix with the pixels below

    @singledispatchmethod
    def draw(self, shape: Shape) -> None:
        raise TypeError(f"cannot draw a {type(shape).__name__}")

    @draw.register
    def _group(self, shape: Group) -> None:
        for part in shape.shapes:
            self.draw(part)

    @draw.register
    def _picture(self, shape: Bitmap) -> None:
        left, top, right, bottom = _whole(shape.box)
        size = max(right - left, 1), max(bottom - top, 1)
        kind = Image.Resampling.BICUBIC if size[0] > shape.image.width else Image.Resampling.LANCZOS
        self.canvas.paste(shape.image.convert("RGB").resize(size, kind), (left, top))

    @draw.register
    def _rectangle(self, shape: Rectangle) -> None:
        left, top, right, bottom = _whole(shape.box)
        if right <= left or bottom <= top:
            return
        fill, stroke = _paint(shape.fill, shape.opacity), _paint(shape.stroke, shape.opacity)
        width = round(FINE * shape.width) if shape.stroke else 0
        self.pen.rectangle((left, top, right - 1, bottom - 1), fill, stroke, width)

    @draw.register
    def _veil(self, shape: Veil) -> None:
        left, top, right, bottom = _whole(shape.box)
        mask = Image.new("L", (right - left, bottom - top), round(255 * shape.opacity))
        for hole in shape.holes:
            x, y, x2, y2 = _whole(hole)
            mask.paste(0, (x - left, y - top, x2 - left, y2 - top))
        self.canvas.paste(Image.new("RGB", mask.size, shape.fill), (left, top), mask)

    @draw.register
    def _line(self, shape: Line) -> None:
        paint, end = _paint(shape.stroke, shape.opacity), shape.end
        if shape.head:
            tip, left, right = arrow_head(shape)
            end = (left[0] + right[0]) / 2, (left[1] + right[1]) / 2
            self.pen.polygon(_fine([tip, left, right]), paint)
        self.pen.line(_fine([shape.start, end]), paint, max(1, round(FINE * shape.width)))

    @draw.register
    def _polygon(self, shape: Polygon) -> None:
        points = _fine(shape.points)
        self.pen.polygon(points, shape.fill)
        self.pen.line([*points, points[0]], shape.stroke, max(1, round(FINE * shape.width)), "curve")

    @draw.register
    def _text(self, shape: Text) -> None:
        anchor = "ls" if shape.anchor == "start" else "rs"
        outline = FINE if shape.halo else 0
        font = ImageFont.load_default(FINE * shape.size)
        (at,) = _fine([shape.at])
        self.pen.text(at, shape.text, shape.fill, font, anchor, stroke_width=outline, stroke_fill=shape.halo)


def arrow_head(line: Line) -> tuple[Point, Point, Point]:
    """Tip, left and right corner of the head at the end of a line."""
    (x0, y0), (x1, y1) = line.start, line.end
    angle = math.atan2(y1 - y0, x1 - x0)
    left, right = (
        (x1 - line.head * math.cos(angle + turn), y1 - line.head * math.sin(angle + turn)) for turn in (-0.45, 0.45)
    )
    return line.end, left, right


def _fine(points: Sequence[Point]) -> list[Point]:
    return [(FINE * x, FINE * y) for x, y in points]


def _whole(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(FINE * value) for value in box)
    return left, top, right, bottom


def _paint(colour: str | None, opacity: float) -> tuple[int, int, int, int] | None:
    return None if colour is None else (*rgb(colour), round(255 * opacity))
