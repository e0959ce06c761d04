"""A drawing as one SVG text with its pictures inside; nothing is loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from functools import singledispatch
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from PIL import Image

from vlm_pruner.drawing.colours import BACKGROUND
from vlm_pruner.drawing.raster import arrow_head
from vlm_pruner.drawing.shapes import Bitmap, Box, Drawing, Group, Line, Point, Polygon, Rectangle, Shape, Text, Veil

FONT = "Inter, 'Helvetica Neue', Arial, sans-serif"
SHARPER = 2  # pixels stored per pixel drawn, where the picture has that many


def write_svg(drawing: Drawing) -> str:
    """A whole document, starting with <svg."""
    width, height = math.ceil(drawing.width), math.ceil(drawing.height)
    described = f"<title>{escape(drawing.description)}</title>" if drawing.description else ""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'role="img" font-family="{FONT}">{described}',
        f'<rect width="100%" height="100%" fill="{BACKGROUND}"/>',
        *(_write(shape) for shape in drawing.shapes),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


@singledispatch
def _write(shape: Shape) -> str:
    raise TypeError(f"cannot write a {type(shape).__name__}")


@_write.register
def _(shape: Group) -> str:
    kind = f' class="{shape.kind}"' if shape.kind else ""
    data = "".join(f" data-{name}={quoteattr(value)}" for name, value in shape.data.items())
    title = f"<title>{escape(shape.title)}</title>" if shape.title else ""
    return f"<g{kind}{data}>{title}" + "".join(_write(part) for part in shape.shapes) + "</g>"


@_write.register
def _(shape: Bitmap) -> str:
    return f'<image {_box(shape.box)} preserveAspectRatio="none" href="{_small(shape)}"/>'


@_write.register
def _(shape: Rectangle) -> str:
    left, top, right, bottom = shape.box
    inset = shape.width / 2 if shape.stroke else 0.0
    if right - left <= 2 * inset or bottom - top <= 2 * inset:
        return ""
    box = _box((left + inset, top + inset, right - inset, bottom - inset))
    return f"<rect {box}{_paint(shape.fill, shape.stroke, shape.width, shape.opacity)}/>"


@_write.register
def _(shape: Veil) -> str:
    path = "".join(
        f"M{_n(left)} {_n(top)}H{_n(right)}V{_n(bottom)}H{_n(left)}Z"
        for left, top, right, bottom in [shape.box, *shape.holes]
    )
    return f'<path fill-rule="evenodd" d="{path}" fill="{shape.fill}" fill-opacity="{_n(shape.opacity)}"/>'


@_write.register
def _(shape: Line) -> str:
    paint = _paint(None, shape.stroke, shape.width, shape.opacity)
    line = f'<polyline points="{_points([shape.start, shape.end])}"{paint}/>'
    if not shape.head:
        return line
    return line + f'<polygon points="{_points(arrow_head(shape))}"{_paint(shape.stroke, None, 0, shape.opacity)}/>'


@_write.register
def _(shape: Polygon) -> str:
    return f'<polygon points="{_points(shape.points)}"{_paint(shape.fill, shape.stroke, shape.width)}/>'


@_write.register
def _(shape: Text) -> str:
    anchor = "" if shape.anchor == "start" else f' text-anchor="{shape.anchor}"'
    halo = f' stroke="{shape.halo}" stroke-width="2" paint-order="stroke" stroke-linejoin="round"' if shape.halo else ""
    x, y = shape.at
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(shape.size)}" fill="{shape.fill}"{anchor}{halo}>'
        f"{escape(shape.text)}</text>"
    )


def _small(shape: Bitmap) -> str:
    """The picture with at most SHARPER pixels per pixel drawn, as PNG or JPEG, whichever is smaller."""
    left, top, right, bottom = shape.box
    image = shape.image.convert("RGB")
    most = max(1, round(SHARPER * (right - left))), max(1, round(SHARPER * (bottom - top)))
    if image.width > most[0]:
        image = image.resize(most, Image.Resampling.LANCZOS)
    return min(data_url(image, "png", optimize=True), data_url(image, "jpeg", quality=88), key=len)


def thumbnail(picture: Image.Image, side: int, **settings: Any) -> str:
    """The picture as a data URL, scaled down to `side` pixels. settings: as `data_url`'s."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return data_url(small, "webp", **settings)


def data_url(image: Image.Image, kind: str, **settings: Any) -> str:
    """The picture as text that HTML and SVG load pictures from. kind: png, jpeg, webp; settings: of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _paint(fill: str | None, stroke: str | None, width: float, opacity: float = 1.0) -> str:
    line = f' stroke="{stroke}" stroke-width="{_n(width)}"' if stroke else ""
    return f' fill="{fill or "none"}"{line}' + (f' opacity="{_n(opacity)}"' if opacity < 1 else "")


def _box(box: Box) -> str:
    left, top, right, bottom = box
    return f'x="{_n(left)}" y="{_n(top)}" width="{_n(right - left)}" height="{_n(bottom - top)}"'


def _points(points: Sequence[Point]) -> str:
    return " ".join(f"{_n(x)},{_n(y)}" for x, y in points)


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
