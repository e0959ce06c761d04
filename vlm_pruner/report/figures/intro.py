"""What methods keep of photographs and of mini scenes, and what accuracy is left at each budget."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import vlm_pruner as vp
from vlm_pruner.drawing.chart import MARKERS, Axis, Level, Point, Series, line_chart
from vlm_pruner.drawing.colours import GREY, LINES
from vlm_pruner.drawing.overlay import Style, draw_overlay
from vlm_pruner.drawing.scene import Scene, enlarged, moved
from vlm_pruner.drawing.sheet import sheet
from vlm_pruner.report.figures.choices import Chooser, photo, scene

KEEP, SIDE, ENLARGED = 64, 416, 1.4  # a chart's texts must still be read when the figure is shown small
METHODS = {"vlm-pruner": "VLM-Pruner", "divprune": "DivPrune", "fastv": "FastV", "random": "random"}
ALWAYS = {"vlm-pruner": LINES[0], "random": GREY}  # colours that do not depend on what else was run


def draw(args: argparse.Namespace, results: dict[str, Any]) -> Scene:
    left = selections(Chooser(args.model))
    names = [benchmark["name"] for benchmark in results["benchmarks"]][:2]
    wide = (left.width - 16) / len(names) - 16
    shapes, height = list(left.shapes), 560.0
    for number, name in enumerate(names):
        chart = accuracy_chart(results, name, (wide / ENLARGED, height / ENLARGED))
        shapes += moved(enlarged(chart.shapes, ENLARGED), 16 + number * (wide + 16), left.height + 12)
    return Scene(left.width, left.height + height + 24, shapes, left.description)


def selections(chooser: Chooser) -> Scene:
    """Pictures below each other, methods side by side."""
    pictures = [photo("cat"), photo("coffee"), scene(0)]
    panels = []
    for row, picture in enumerate(pictures):
        for name, label in METHODS.items():
            kept = chooser.kept(picture, vp.methods.get(name)(keep_tokens=KEEP))
            title = f"{label}, {KEEP} of 576" if row == 0 else ""
            panels.append((title, draw_overlay(picture, kept, Style(side=SIDE))))
    return sheet(panels, len(METHODS))


def accuracy_chart(results: Mapping[str, Any], benchmark: str, size: tuple[float, float]) -> Scene:
    """Accuracy against visual tokens kept, with the intervals that the comparison gives."""
    arms = {arm["key"]: arm for arm in results["arms"]}
    lines: dict[str, list[Point]] = {}
    labels, levels = {}, []
    for cell in results["cells"]:
        if cell["benchmark"] != benchmark:
            continue
        arm, value = arms[cell["arm"]], {name: 100 * part for name, part in cell["accuracy"].items()}
        if arm["settings"] is None:
            levels.append(Level(f"dense, {arm['tokens']} tokens", value["mean"], value["low"], value["high"]))
            continue
        labels[arm["name"]] = arm["label"]
        point = Point(arm["budget_tokens"], value["mean"], value["low"], value["high"])
        lines.setdefault(arm["name"], []).append(point)
    if not lines:
        raise ValueError(f"the results hold no pruned arm on {benchmark!r}; run the comparison with methods to compare")
    others = [name for name in lines if name not in ALWAYS]
    paints = LINES[1:6]
    looks = {name: (paints[i % len(paints)], 7.0 * (i // len(paints))) for i, name in enumerate(others)}
    looks |= {name: (colour, 0.0) for name, colour in ALWAYS.items()}
    series = [
        Series(labels[name], points, looks[name][0], MARKERS[i % len(MARKERS)], name == "vlm-pruner", looks[name][1])
        for i, (name, points) in enumerate(lines.items())
    ]
    budgets = sorted({point.x for points in lines.values() for point in points})
    axis = Axis(
        "visual tokens kept per picture, mean over the layers that are pruned",
        [(budget, f"{budget:g}") for budget in budgets],
        logarithmic=True,
    )
    n = next(entry["n"] for entry in results["benchmarks"] if entry["name"] == benchmark)
    title = f"{benchmark}: accuracy in %, {n} questions"
    return line_chart(title, series, axis, "bars: 95 % intervals", levels=levels, size=size)
