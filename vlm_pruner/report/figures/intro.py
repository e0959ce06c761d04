"""The tokens that four methods keep of two photographs and a mini scene."""

from __future__ import annotations

from pathlib import Path

import vlm_pruner as vp
from vlm_pruner.drawing.overlay import Style, draw_overlay
from vlm_pruner.drawing.shapes import Drawing
from vlm_pruner.drawing.sheet import sheet
from vlm_pruner.report.figures.choices import Chooser, mini_scene, photo

KEEP = 64
METHODS = {"vlm-pruner": "VLM-Pruner", "divprune": "DivPrune", "fastv": "FastV", "random": "random"}


def draw(checkpoint: Path) -> Drawing:
    """Pictures below each other, methods side by side. Numbers, too small to read in a README, are left out."""
    chooser, style = Chooser(checkpoint), Style(side=288, numbers=False)
    panels = []
    for row, picture in enumerate((photo("cat"), photo("coffee"), mini_scene(0))):
        for name, label in METHODS.items():
            kept = chooser.kept(picture, vp.methods.get(name)(keep_tokens=KEEP))
            panels.append((f"{label}, {KEEP} of 576" if row == 0 else "", draw_overlay(picture, kept, style)))
    return sheet(panels, len(METHODS))
