"""Several drawn pictures on one sheet, with titles and the key to their colours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.drawing.colours import BACKGROUND, GREY, INK, ramp
from vlm_pruner.drawing.overlay import GAP, Pictures, Style, overlay
from vlm_pruner.drawing.raster import rasterise
from vlm_pruner.drawing.scene import Picture, Polygon, Rectangle, Scene, Shape, Text, cut, moved, text_width
from vlm_pruner.drawing.svg import write_svg
from vlm_pruner.receipts import ImageReceipt

TITLE = 30.0
KEY = 34.0


def side_by_side(
    panels: Sequence[tuple[str, Image.Image]], columns: int | None = None, key: bool = True
) -> Image.Image:
    """Pictures with a title above each, `columns` in a row (None: all in one), and the key to the colours below.

    Raises ValueError if there is none.
    """
    scenes = [
        (title, Scene(image.width, image.height, [Picture(image, (0, 0, image.width, image.height))]))
        for title, image in panels
    ]
    return rasterise(sheet(scenes, columns, key))


def draw_prefill(images: Sequence[ImageReceipt], pictures: Sequence[Pictures], **style: Any) -> Image.Image:
    """A prefill's pictures with the kept tokens drawn in place, side by side, RGB; what `Receipt.overlay` gives.

    pictures: one for each of `images`, in order. style: fields of `Style`. Raises ValueError if the numbers differ.
    """
    if len(pictures) != len(images):
        raise ValueError(
            f"{len(pictures)} pictures were given, but the receipt is of {len(images)} images: give one each"
        )
    drawn = [overlay(picture, image.kept(), Style(**style)) for image, picture in zip(images, pictures, strict=True)]
    return drawn[0] if len(drawn) == 1 else side_by_side([("", one) for one in drawn], key=False)


def sheet(panels: Sequence[tuple[str, Scene]], columns: int | None = None, key: bool = True) -> Scene:
    """The scene of the sheet; `side_by_side` of scenes, so that what is a vector stays one."""
    if not panels:
        raise ValueError("there is nothing to lay side by side; give at least one picture")
    columns = min(columns or len(panels), len(panels))
    wide = max(scene.width for _, scene in panels)
    shapes: list[Shape] = []
    top = GAP
    for start in range(0, len(panels), columns):
        row = panels[start : start + columns]
        titled = TITLE if any(title for title, _ in row) else 0.0
        for column, (title, scene) in enumerate(row):
            x = GAP + column * (wide + GAP)
            shapes.append(Text((x, top + 17), cut(title, 17, wide), 17, INK))
            shapes += moved(scene.shapes, x, top + titled)
        top += titled + max(scene.height for _, scene in row) + GAP
    width, height = GAP + columns * (wide + GAP), top
    if key:
        shapes += moved(key_shapes(width - 2 * GAP), GAP, height - GAP / 2)
        height += KEY
    described = "; ".join(dict.fromkeys(scene.description for _, scene in panels if scene.description))
    shown = [shape for shape in shapes if not (isinstance(shape, Text) and not shape.text)]
    return Scene(width, height, shown, described, BACKGROUND)


def save_sheet(scene: Scene, *paths: Path) -> list[Path]:
    """Written as what the names' endings say, .png or .svg; folders are made. Raises ValueError for another ending."""
    for path in paths:
        if path.suffix not in (".png", ".svg"):
            raise ValueError(f"{path} ends in {path.suffix!r}; pictures are written as .png or .svg")
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".svg":
            path.write_text(write_svg(scene), encoding="utf-8")
        else:
            rasterise(scene).save(path, optimize=True)
    return list(paths)


def key_shapes(width: float) -> list[Shape]:
    """The colour scale of the order of selection and what else the marks mean, in one line as far as it fits."""
    shapes: list[Shape] = [Text((0, 17), "first", 14, GREY)]
    left, long = text_width("first", 14) + 8, 120
    shapes += [Rectangle((left + i, 5, left + i + 1.0, 20), ramp(i / (long - 1))) for i in range(long)]
    shapes.append(Text((left + long + 8, 17), "last selected", 14, GREY))
    left += long + 8 + text_width("last selected", 14) + 22
    if left + 250 < width:
        shapes.append(Polygon([(left, 6), (left + 7, 13), (left, 20), (left - 7, 13)], "#ffffff", "#000000", 1.2))
        shapes.append(Text((left + 13, 17), "pivot", 14, GREY))
        shapes.append(Text((left + 13 + text_width("pivot", 14) + 18, 17), "pale: dropped", 14, GREY))
    return shapes
