"""The pipeline: a decoder whose sequence gets short, and how tokens are chosen: pivots, expansion, aggregation."""

from __future__ import annotations

from pathlib import Path

import vlm_pruner as vp
from vlm_pruner.drawing.colours import GREY, INK, LINES
from vlm_pruner.drawing.overlay import GAP, Style, draw_overlay
from vlm_pruner.drawing.shapes import Drawing, Line, Rectangle, Shape, Text
from vlm_pruner.drawing.sheet import sheet, stacked
from vlm_pruner.report.figures.choices import Chooser, photo

KEEP, SIDE = 64, 288
LAYERS = ("layer 0", "layer 1", "layer 2 = K", "...", "...", "last layer")


def draw(checkpoint: Path) -> Drawing:
    picture, method = photo("cat"), vp.CentrifugalPruner(keep_tokens=KEEP)
    kept = Chooser(checkpoint).kept(picture, method)
    steps = {
        f"1  Pivots: {method.pivots} unlike tokens": {"first": method.pivots},
        "2  Expansion: near and new first": {"first": 24},
        f"... until {KEEP} are kept": {},
        "3  Aggregation into kept ones": {"folds": "arrows", "focus": tuple(range(1, KEEP + 1, 4))},
    }
    panels = [
        (title, draw_overlay(picture, kept, Style(side=SIDE, numbers=False, **settings)))  # type: ignore[arg-type]
        for title, settings in steps.items()
    ]
    below = sheet(panels)
    return stacked([_decoder(below.width), below])


def _decoder(width: float) -> Drawing:
    """One bar per layer, as long as the sequence that the layer works on."""
    left, top, tall, step = 130.0, GAP + 40, 18.0, 25.0
    long, words = width - left - 260, 60.0
    shapes: list[Shape] = [Text((GAP, GAP + 19), "The decoder gets a short sequence from layer K on", 20)]
    for layer, name in enumerate(LAYERS):
        pruned = layer >= 2
        y = top + layer * step + (12 if pruned else 0)
        visual = long * KEEP / 576 if pruned else long
        shapes += [
            Text((left - 12, y + 14), name, 15, INK, "end"),
            Rectangle((left, y, left + visual, y + tall), LINES[0]),
            Rectangle((left + visual + 2, y, left + visual + 2 + words, y + tall), LINES[1]),
        ]
    cut, end = top + 2 * step + 3, left + long + words + 16
    short_end = left + long * KEEP / 576 + words + 16
    shapes += [
        Line((GAP, cut), (width - GAP, cut), GREY, 1.2),
        Text((end, top + 14), "576 visual tokens", 17, LINES[0]),
        Text((end, top + 14 + step), "and the text", 17, LINES[1]),
        Text((short_end, cut + 26), f"{KEEP} visual tokens, which the others were folded into, and the text", 17),
        Text((short_end, cut + 52), "fewer FLOPs and a smaller KV cache in every layer from K on", 17, GREY),
    ]
    described = (
        "A decoder whose layers before K read all visual tokens, and whose later layers read the kept ones. Below, how "
        "they are chosen: pivots, expansion outwards from them, and aggregation of the dropped tokens"
    )
    return Drawing(width, top + len(LAYERS) * step + 12, shapes, described)
