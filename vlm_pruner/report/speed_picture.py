"""One bar per arm: where the time of an answer goes, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from vlm_pruner.report.picture import BACKGROUND, GAP, GREY, INK, _font
from vlm_pruner.report.speed_table import case_title

WIDTH, BAR, LINE, NAMES = 1200, 34, 50, 270
COLOURS = {"vision tower": "#94a3b8", "choosing": "#f59e0b", "prefill": "#2563eb", "later tokens": "#a7c7f9"}


def parts(figures: Mapping[str, Any]) -> dict[str, float]:
    """Median seconds of what an answer consists of; choosing tokens is taken out of the prefill that it is part of."""

    def median(name: str) -> float:
        return float(figures[name]["median"]) if name in figures else 0.0

    later = median("end_to_end") - median("first_token")
    choosing = median("selection")
    return {
        "vision tower": median("vision"),
        "choosing": choosing,
        "prefill": median("prefill") - choosing,
        "later tokens": later,
    }


def draw_speed(cases: Sequence[Mapping[str, Any]]) -> Image.Image:
    """All cases below each other, each to its own scale."""
    height = sum(LINE * (len(case["arms"]) + 1) + GAP for case in cases) + LINE
    canvas = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for case in cases:
        draw.text((GAP, top), case_title(case), INK, _font(22))
        top += LINE
        longest = max(sum(parts(arm["figures"]).values()) for arm in case["arms"])
        for arm in case["arms"]:
            _draw_bar(draw, arm, top, (WIDTH - NAMES - 250) / longest)
            top += LINE
        top += GAP
    _draw_key(draw, top - GAP // 2)
    return canvas


def _draw_bar(draw: ImageDraw.ImageDraw, arm: Mapping[str, Any], top: int, scale: float) -> None:
    """`scale`: pixels per second."""
    draw.text((GAP, top + 4), arm["key"], INK, _font(20))
    left = float(NAMES)
    for name, seconds in parts(arm["figures"]).items():
        right = left + scale * max(seconds, 0.0)
        draw.rectangle((round(left), top, round(right), top + BAR), fill=COLOURS[name])
        left = right
    whole = arm["figures"]["end_to_end"]
    text = f"{1000 * whole['median']:.0f} ms"
    if whole["ratio"]:
        text += f", {whole['ratio']['value']:.2f} x"
    draw.text((round(left) + 10, top + 4), text, GREY, _font(20))


def _draw_key(draw: ImageDraw.ImageDraw, top: int) -> None:
    left = float(GAP)
    for name, colour in COLOURS.items():
        draw.rectangle((round(left), top, round(left) + 24, top + 22), fill=colour)
        draw.text((round(left) + 32, top), name, GREY, _font(20))
        left += 60 + draw.textlength(name, _font(20))
