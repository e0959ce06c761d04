"""The pipeline: a decoder whose sequence gets short, and how tokens are chosen: pivots, expansion, aggregation."""

from __future__ import annotations

import argparse
from typing import Any

import vlm_pruner as vp
from vlm_pruner.drawing.colours import GREY, INK, LINES
from vlm_pruner.drawing.overlay import Style, draw_overlay
from vlm_pruner.drawing.scene import Line, Rectangle, Scene, Shape, Text, moved
from vlm_pruner.report.figures.choices import Chooser, photo

KEEP, SIDE, GAP = 64, 450.0, 20.0
VISUAL, WORDS = LINES[0], LINES[1]
LAYERS = 8  # drawn; the names say which they stand for


def draw(args: argparse.Namespace, results: dict[str, Any]) -> Scene:
    chooser = Chooser(args.model)
    picture = photo("cat")
    method = vp.CentrifugalPruner(keep_tokens=KEEP)
    kept = chooser.kept(picture, method)
    steps = (
        ("1  Pivots", f"{method.pivots} tokens whose keys are least alike", Style(first=method.pivots, side=int(SIDE))),
        ("2  Expansion", "near and new tokens first: 24 so far", Style(first=24, side=int(SIDE))),
        ("", f"... until the budget of {KEEP} is met", Style(side=int(SIDE))),
        (
            "3  Aggregation",
            "dropped tokens fold into the most similar one (some shown)",
            Style(folds="arrows", focus=tuple(range(1, KEEP + 1, 4)), side=int(SIDE)),
        ),
    )
    shapes, width = _decoder(4 * SIDE + 3 * GAP)
    top = 268.0
    for number, (title, words, style) in enumerate(steps):
        x = number * (SIDE + GAP)
        shapes += [Text((x, top), title, 19), Text((x, top + 24), words, 15, GREY)]
        shapes += moved(draw_overlay(picture, kept, style).shapes, x, top + 38)
    height = top + 38 + SIDE
    margin = GAP
    description = (
        "A decoder whose layers before K read all visual tokens and whose later ones read those that are kept, and how "
        "they are chosen: pivots, expansion outwards from them, and folding of the dropped tokens"
    )
    return Scene(width + 2 * margin, height + 2 * margin, moved(shapes, margin, margin), description)


def _decoder(width: float) -> tuple[list[Shape], float]:
    """The sequence on its way through the layers, one bar each: its length is what a layer has to work on."""
    left, top, tall = 250.0, 40.0, 17.0
    long, words = width - left - 330, 70.0
    short = long * KEEP / 576
    shapes: list[Shape] = [
        Text((0, 18), "What a layer of the decoder has to work on", 19),
        Rectangle((480, 6, 494, 20), VISUAL),
        Text((501, 18), "visual tokens", 15, GREY),
        Rectangle((614, 6, 628, 20), WORDS),
        Text((635, 18), "text tokens", 15, GREY),
    ]
    for layer in range(LAYERS):
        y = top + layer * (tall + 7) + (12 if layer >= 2 else 0)
        visual = long if layer < 2 else short
        shapes.append(Rectangle((left, y, left + visual, y + tall), VISUAL))
        shapes.append(Rectangle((left + visual + 2, y, left + visual + 2 + words, y + tall), WORDS))
        name = (
            ("layer 0", "layer 1", "layer 2 = K")[layer] if layer < 3 else "..." if layer < LAYERS - 1 else "last layer"
        )
        shapes.append(Text((left - 14, y + 14), name, 15, INK if layer in (0, 1, 2, LAYERS - 1) else GREY, "end"))
    cut = top + 2 * (tall + 7) + 2.5
    shapes.append(Line([(left - 110, cut), (width, cut)], GREY, 1.2, dash=6))
    end = left + long + words + 16
    shapes += [
        Text((end, top + 16), "576 visual tokens", 16),
        Text((end, top + 36), "as they enter layer K they are judged", 15, GREY),
        Text((left + short + words + 18, cut + 26), f"{KEEP} visual tokens, into which the others were folded:", 16),
        Text(
            (left + short + words + 18, cut + 48), "shorter sequence, smaller cache, in every layer from K on", 15, GREY
        ),
    ]
    return shapes, width
