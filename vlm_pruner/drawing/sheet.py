"""Several drawings on one sheet, with titles and the key to the colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.drawing.colours import GREY, ramp
from vlm_pruner.drawing.overlay import GAP, PictureOrFrames, Style, draw_overlay
from vlm_pruner.drawing.raster import rasterise
from vlm_pruner.drawing.shapes import Bitmap, Drawing, Rectangle, Shape, Text, cut, diamond, moved, text_width
from vlm_pruner.drawing.svg import write_svg
from vlm_pruner.receipts import ImageReceipt

TITLE = 30.0
KEY = 34.0


def plain(picture: Image.Image, side: float) -> Drawing:
    """The picture alone. side: of its longer side, in pixels."""
    width, height = (side * length / max(picture.size) for length in picture.size)
    return Drawing(width, height, [Bitmap(picture, (0, 0, width, height))])


def draw_prefill(images: Sequence[ImageReceipt], pictures: Sequence[PictureOrFrames], **style: Any) -> Image.Image:
    """A prefill's pictures side by side, each with its kept tokens, RGB. `Receipt.overlay` returns this.

    pictures: one for each of `images`, in order. style: fields of `Style`. Raises ValueError if the counts differ.
    """
    if len(pictures) != len(images):
        raise ValueError(
            f"{len(pictures)} pictures were given, but the receipt is of {len(images)} images: give one each"
        )
    drawn = [draw_overlay(one, image.kept(), Style(**style)) for image, one in zip(images, pictures, strict=True)]
    return rasterise(drawn[0] if len(drawn) == 1 else sheet([("", one) for one in drawn], key=False))


def sheet(
    panels: Sequence[tuple[str, Drawing]], columns: int | None = None, key: bool = True, heading: str = ""
) -> Drawing:
    """Drawings with a title above each, `columns` in a row (None: all in one), and the key to the colours below.

    heading: a line above all. Raises ValueError if `panels` is empty.
    """
    if not panels:
        raise ValueError("there is nothing to lay side by side; give at least one picture")
    columns = min(columns or len(panels), len(panels))
    wide = max(drawing.width for _, drawing in panels)
    width = GAP + columns * (wide + GAP)
    shapes: list[Shape] = []
    top = GAP
    if heading:
        shapes.append(Text((GAP, top + 19), cut(heading, 20, width - 2 * GAP), 20))
        top += TITLE + 4
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        titled = TITLE if any(title for title, _ in row) else 0.0
        for column, (title, drawing) in enumerate(row):
            x = GAP + column * (wide + GAP)
            shapes += [Text((x, top + 17), cut(title, 17, wide), 17)] if title else []
            shapes += moved(drawing.shapes, x, top + titled)
        top += titled + max(drawing.height for _, drawing in row) + GAP
    if key:
        shapes += moved(key_shapes(width - 2 * GAP), GAP, top - GAP / 2)
        top += KEY
    return Drawing(width, top, shapes, _described(drawing for _, drawing in panels))


def stacked(drawings: Sequence[Drawing]) -> Drawing:
    """Drawings below each other."""
    shapes: list[Shape] = []
    top = 0.0
    for drawing in drawings:
        shapes += moved(drawing.shapes, 0, top)
        top += drawing.height
    return Drawing(max(drawing.width for drawing in drawings), top, shapes, _described(drawings))


def _described(drawings: Iterable[Drawing]) -> str:
    return "; ".join(dict.fromkeys(drawing.description for drawing in drawings if drawing.description))


def save_sheet(drawing: Drawing, *paths: Path) -> list[Path]:
    """Writes the drawing as PNG or SVG, by each name's ending, and makes missing folders.

    Raises ValueError for another ending, before anything is written.
    """
    for path in paths:
        if path.suffix not in (".png", ".svg"):
            raise ValueError(f"{path} ends in {path.suffix!r}; pictures are written as .png or .svg")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(write_svg(drawing), encoding="utf-8")
        else:
            rasterise(drawing).save(path, optimize=True)
    return list(paths)


def key_shapes(width: float) -> list[Shape]:
    """The colour scale of the order of selection, and, where `width` allows, the other marks."""
    shapes: list[Shape] = [Text((0, 17), "first", 14, GREY)]
    left, long = text_width("first", 14) + 8, 120
    shapes += [Rectangle((left + i, 5, left + i + 1.0, 20), ramp(i / (long - 1))) for i in range(long)]
    shapes.append(Text((left + long + 8, 17), "last selected", 14, GREY))
    left += long + 8 + text_width("last selected", 14) + 22
    if left + 250 < width:
        shapes.append(diamond(left, 13, 7))
        shapes.append(Text((left + 13, 17), "pivot", 14, GREY))
        shapes.append(Text((left + 13 + text_width("pivot", 14) + 18, 17), "pale: dropped", 14, GREY))
    return shapes
