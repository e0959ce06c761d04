"""Where the time of an answer goes, dense and pruned, and from how many visual tokens on pruning pays."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from vlm_pruner.drawing.chart import MARKERS, Axis, Level, Point, Series, bar_chart, line_chart
from vlm_pruner.drawing.colours import LINES
from vlm_pruner.drawing.scene import Scene, Shape, moved
from vlm_pruner.report.speed_picture import COLOURS, parts
from vlm_pruner.report.speed_table import case_title

WIDTH = 720


def draw(args: argparse.Namespace, results: dict[str, Any]) -> Scene:
    charts = [_latency(case) for case in results["cases"]]
    if results["break_even"]:
        charts.append(break_even_chart(results["break_even"]))
    return below_each_other(charts)


def _latency(case: Mapping[str, Any]) -> Scene:
    bars = [(arm["key"], parts(arm["figures"])) for arm in case["arms"]]
    return bar_chart(case_title(case), bars, COLOURS, lambda value: f"{1000 * value:.0f} ms", (WIDTH, 0))


def break_even_chart(entries: Sequence[Mapping[str, Any]]) -> Scene:
    """How much faster a pruned prefill is, against the number of visual tokens before pruning."""
    series, tokens = [], set()
    for number, entry in enumerate(entries):
        points = [Point(p["visual"], *(p["ratio"][part] for part in ("value", "low", "high"))) for p in entry["points"]]
        tokens |= {point.x for point in points}
        label = f"{entry['name']}, {100 * entry['share']:.0f} % kept, batch {entry['batch']}"
        colour, mark = LINES[number % len(LINES)], MARKERS[number % len(MARKERS)]
        series.append(Series(label, points, colour, mark, strong=number == 0))
    axis = Axis("visual tokens before pruning", [(token, f"{token:g}") for token in sorted(tokens)], logarithmic=True)
    title = "Break-even: time dense / pruned, above 1 pruning wins"
    level = Level("no gain", 1.0)
    return line_chart(title, series, axis, "bars: 95 % intervals of medians", levels=[level], size=(WIDTH, 400))


def below_each_other(scenes: Sequence[Scene], gap: float = 20) -> Scene:
    shapes: list[Shape] = []
    top = gap
    for scene in scenes:
        shapes += moved(scene.shapes, gap, top)
        top += scene.height + gap
    return Scene(max(scene.width for scene in scenes) + 2 * gap, top, shapes, "; ".join(s.description for s in scenes))
