"""A scene as pixels, drawn at twice its size and scaled down, so that edges are smooth."""

from __future__ import annotations

import math
from functools import singledispatchmethod
from itertools import pairwise

from PIL import Image, ImageDraw, ImageFont

from vlm_pruner.drawing.colours import rgb
from vlm_pruner.drawing.scene import Box, Group, Line, Picture, Point, Polygon, Rectangle, Scene, Shape, Text, Veil

FINE = 2


def rasterise(scene: Scene) -> Image.Image:
    """RGB, of the scene's size in whole pixels."""
    size = math.ceil(scene.width), math.ceil(scene.height)
    canvas = Image.new("RGB", (FINE * size[0], FINE * size[1]), scene.background)
    pen = _Pen(canvas)
    for shape in scene.shapes:
        pen.draw(shape)
    return canvas.resize(size, Image.Resampling.BOX)


class _Pen:
    def __init__(self, canvas: Image.Image) -> None:
        self.canvas = canvas
        self.pen = ImageDraw.Draw(canvas, "RGBA")  # so that what is drawn mixes with what is there

    @singledispatchmethod
    def draw(self, shape: Shape) -> None:
        raise TypeError(f"cannot draw a {type(shape).__name__}")

    @draw.register
    def _group(self, shape: Group) -> None:
        for part in shape.shapes:
            self.draw(part)

    @draw.register
    def _picture(self, shape: Picture) -> None:
        left, top, right, bottom = _whole(shape.box)
        size = max(right - left, 1), max(bottom - top, 1)
        # Magnified pixels stay what they are, as in the tower's eyes; photographs are scaled down smoothly.
        kind = Image.Resampling.BICUBIC if size[0] > shape.image.width else Image.Resampling.LANCZOS
        self.canvas.paste(shape.image.convert("RGB").resize(size, kind), (left, top))

    @draw.register
    def _rectangle(self, shape: Rectangle) -> None:
        left, top, right, bottom = _whole(shape.box)
        if right <= left or bottom <= top:
            return
        self.pen.rounded_rectangle(
            (left, top, right - 1, bottom - 1), FINE * shape.round, _paint(shape.fill, shape.opacity),
            _paint(shape.stroke, shape.opacity), round(FINE * shape.width) if shape.stroke else 0,
        )  # fmt: skip

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
        points = [(FINE * x, FINE * y) for x, y in shape.points]
        paint, width = _paint(shape.stroke, shape.opacity), max(1, round(FINE * shape.width))
        if shape.head:
            tip = arrow_head(points, FINE * shape.head)
            points = [*points[:-1], ((tip[1][0] + tip[2][0]) / 2, (tip[1][1] + tip[2][1]) / 2)]
            self.pen.polygon(tip, paint)
        for start, end in pairwise(points):
            for piece in _dashes(start, end, FINE * shape.dash):
                self.pen.line(piece, paint, width, joint="curve")

    @draw.register
    def _polygon(self, shape: Polygon) -> None:
        points = [(FINE * x, FINE * y) for x, y in shape.points]
        self.pen.polygon(points, _paint(shape.fill, shape.opacity))
        if shape.stroke:
            self.pen.line([*points, points[0]], _paint(shape.stroke, 1), max(1, round(FINE * shape.width)), "curve")

    @draw.register
    def _text(self, shape: Text) -> None:
        anchor = {"start": "ls", "middle": "ms", "end": "rs"}[shape.anchor]
        place = FINE * shape.place[0], FINE * shape.place[1]
        outline = FINE if shape.halo else 0
        font = ImageFont.load_default(FINE * shape.size)
        self.pen.text(place, shape.text, shape.fill, font, anchor, stroke_width=outline, stroke_fill=shape.halo)


def arrow_head(points: list[Point], length: float) -> tuple[Point, Point, Point]:
    """Tip, left and right corner of the head at the end of a line."""
    (x0, y0), (x1, y1) = points[-2], points[-1]
    angle = math.atan2(y1 - y0, x1 - x0)
    corners = [(x1 - length * math.cos(angle + turn), y1 - length * math.sin(angle + turn)) for turn in (-0.45, 0.45)]
    return (x1, y1), corners[0], corners[1]


def _dashes(start: Point, end: Point, dash: float) -> list[tuple[Point, Point]]:
    length = math.dist(start, end)
    if not dash or length == 0:
        return [(start, end)]
    cuts = [i * dash / length for i in range(math.ceil(length / dash))]
    at = [(start[0] + t * (end[0] - start[0]), start[1] + t * (end[1] - start[1])) for t in [*cuts, 1.0]]
    return list(pairwise(at))[::2]


def _whole(box: Box) -> tuple[int, int, int, int]:
    left, top, right, bottom = (round(FINE * value) for value in box)
    return left, top, right, bottom


def _paint(colour: str | None, opacity: float) -> tuple[int, int, int, int] | None:
    return None if colour is None else (*rgb(colour), round(255 * opacity))
