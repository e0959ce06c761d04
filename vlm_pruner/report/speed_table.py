"""Timings as plain text of 80 columns: each part's time, its speed-up over dense, and the prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlm_pruner.console import COLUMNS, wrapped
from vlm_pruner.report.table import render

PARTS = {
    "vision": "vision",
    "selection": "select",
    "prefill": "prefill",
    "first_token": "1st token",
    "per_token": "per token",
    "end_to_end": "end to end",
}
SIZES = {"peak_bytes": "peak MB", "kv_bytes": "KV MB"}
COMPARED = ("prefill", "first_token", "per_token", "end_to_end")


def case_title(case: Mapping[str, Any]) -> str:
    return (
        f"batch {case['batch']}, {case['visual']} visual and {case['text']} text tokens, {case['new_tokens']} new "
        f"tokens, {case['rounds']} rounds"
    )


def times_table(case: Mapping[str, Any]) -> str:
    """Median milliseconds and megabytes, and below them the 95th percentile."""
    rows = []
    for arm in case["arms"]:
        figures = arm["figures"]
        rows.append([arm["key"], *_times(figures, "median"), *(_megabytes(figures.get(name)) for name in SIZES)])
        rows.append(["  p95", *_times(figures, "p95"), "", ""])
    return render(["ms", *PARTS.values(), *SIZES.values()], rows, width=COLUMNS)


def _times(figures: Mapping[str, Any], which: str) -> list[str]:
    return [_milliseconds(figures[name][which]) if name in figures else "-" for name in PARTS]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{2 if seconds < 0.01 else 1 if seconds < 1 else 0}f}"


def _megabytes(figure: Mapping[str, Any] | None) -> str:
    return "-" if figure is None else f"{figure['median'] / 1e6:.1f}"


def ratios_table(case: Mapping[str, Any]) -> str:
    """Dense over pruned, its 95 % interval, the cost model's prediction, and the share of it that was reached."""
    rows: list[list[str]] = []
    for arm in case["arms"]:
        for name in COMPARED:
            figure = arm["figures"].get(name)
            if figure and figure["ratio"]:
                first = arm["key"] if name == COMPARED[0] else ""
                rows.append([first, PARTS[name], *_ratio(figure)])
    return render(["times as fast as dense", "", "ratio", "95 % interval", "predicted", "reached"], rows, 2, COLUMNS)


def _ratio(figure: Mapping[str, Any]) -> list[str]:
    ratio = figure["ratio"]
    cells = [f"{ratio['value']:.2f}", f"{ratio['low']:.2f} to {ratio['high']:.2f}"]
    if figure["predicted_ratio"] is None:
        return [*cells, "-", "-"]
    return [*cells, f"{figure['predicted_ratio']:.2f}", f"{100 * figure['reached']:.0f} %"]


def break_even_text(found: Sequence[Mapping[str, Any]]) -> str:
    """A table and a sentence for each method."""
    parts = []
    for one in found:
        rows = [
            [str(p["visual"]), str(p["kept"]), f"{1000 * p['saved_seconds']:.2f}", *_ratio({**p, "reached": 0})[:3]]
            for p in one["points"]
        ]
        header = ["visual tokens", "kept", "saved ms", "prefill ratio", "95 % interval", "predicted"]
        title = f"break-even of {one['name']}, keeping {100 * one['share']:.0f} %, batch {one['batch']}"
        parts += [title, "", render(header, rows, left=0), "", wrapped(one["says"]), ""]
    return "\n".join(parts).rstrip()


def results_text(results: Mapping[str, Any]) -> str:
    """The whole text of a run."""
    model, machine = results["model"], results["machine"]
    blocks = [
        f"{model['name']}: {model['class']}",
        f"{model['parameters'] / 1e9:.2f} billion parameters, {model['dtype']}, attention {model['attention']}",
        f"machine: {machine['name']}, {machine['flops'] / 1e12:.2f} TFLOP/s, {machine['bandwidth'] / 1e9:.1f} GB/s",
        "",
    ]
    for case in results["cases"]:
        blocks += [case_title(case), "", times_table(case), "", ratios_table(case), ""]
    if results["break_even"]:
        blocks += [break_even_text(results["break_even"]), ""]
    blocks += [
        "select is part of prefill, the vision tower is not; 1st token counts from the\nstart of generate",
        "predicted: the cost model's roofline; the vision tower counts as measured,\nchoosing tokens as free",
        *(wrapped(f"left out: {note}", "  ") for note in results["notes"]),
    ]
    return "\n".join(blocks)
