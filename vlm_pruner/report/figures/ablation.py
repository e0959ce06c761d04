"""What each change to VLM-Pruner does to its accuracy, with its interval, beside what the paper found."""

from __future__ import annotations

import argparse
from typing import Any

from vlm_pruner.drawing.chart import Row, interval_chart
from vlm_pruner.drawing.scene import Scene, moved


def draw(args: argparse.Namespace, results: dict[str, Any]) -> Scene:
    rows = [_row(row) for row in results["rows"]]
    config = results["config"]
    title = f"VLM-Pruner changed in one place: {config['budget']} visual tokens, {results['n']} questions"
    words = "accuracy minus the default's, in points; 95 % intervals"
    chart = interval_chart(title, rows, words)
    return Scene(chart.width + 32, chart.height + 24, moved(chart.shapes, 16, 16), chart.description)


def _row(row: dict[str, Any]) -> Row:
    difference = row["difference"]
    says = row["paper"]["says"]
    note = "" if says == "nothing" else f"paper: {says}"
    value, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
    return Row(row["change"], value, low, high, note)
