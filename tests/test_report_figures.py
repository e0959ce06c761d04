"""Figures: from result files, with a clear word where one is missing, and charts that show what they are given."""

from __future__ import annotations

import argparse
import json
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_pruner.drawing.chart import Axis, Level, Point, Row, Series, apart, interval_chart, line_chart, nice_ticks
from vlm_pruner.drawing.raster import rasterise
from vlm_pruner.drawing.scene import Scene, Text
from vlm_pruner.drawing.svg import write_svg
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.receipts import Kept
from vlm_pruner.report.figures import ablation, intro, model, speed
from vlm_pruner.report.figures.__main__ import main


def words(scene: Scene) -> list[str]:
    """All texts; drawing it both ways must work, too, and nothing may stand outside."""
    assert rasterise(scene).width >= scene.width - 1
    root = ET.fromstring(write_svg(scene))
    for text in [shape for shape in scene.shapes if isinstance(shape, Text)]:
        assert -1 <= text.place[0] <= scene.width and 0 <= text.place[1] <= scene.height, text
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


@pytest.fixture
def comparison() -> dict[str, Any]:
    arms = [
        {"key": "dense@576", "name": "dense", "label": "dense", "settings": None, "tokens": 576, "budget_tokens": 576}
    ]
    cells = [{"benchmark": "mini", "arm": "dense@576", "accuracy": interval(0.77)}]
    for name, label, loss in (("vlm-pruner", "VLM-Pruner", 0.01), ("dart", "DART", 0.03), ("random", "random", 0.1)):
        for tokens in (64, 128):
            key = f"{name}@{tokens}"
            arms.append(
                {"key": key, "name": name, "label": label, "settings": {}, "tokens": tokens, "budget_tokens": tokens}
            )
            cells.append({"benchmark": "mini", "arm": key, "accuracy": interval(0.77 - loss * 128 / tokens)})
    return {"command": "vlm-pruner compare", "benchmarks": [{"name": "mini", "n": 480}], "arms": arms, "cells": cells}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that needs no model: every ninth token, in the order of a fixed shuffle."""
    order = sorted(range(0, 576, 9), key=lambda token: token * 7919 % 577)
    keeper = [token - token % 9 for token in range(576)]
    kept = Kept(Fit("pad", 24, 24), order, order[:4], keeper, "vlm-pruner")
    for module in (intro, model):
        monkeypatch.setattr(module.Chooser, "__init__", lambda self, checkpoint: None)
        monkeypatch.setattr(module.Chooser, "kept", lambda self, picture, method: kept)
    monkeypatch.setattr(intro, "scene", lambda number: Image.new("RGB", (64, 64), "green"))


def test_accuracy_against_retention(comparison: dict[str, Any]) -> None:
    said = words(intro.accuracy_chart(comparison, "mini", (900, 500)))
    assert {"VLM-Pruner", "DART", "random", "64", "128", "dense, 576 tokens"} <= set(said)
    assert any("480 questions" in word for word in said)
    comparison["cells"] = comparison["cells"][:1]
    with pytest.raises(ValueError, match="no pruned arm on 'mini'"):
        intro.accuracy_chart(comparison, "mini", (900, 500))


def test_the_introduction_has_every_method_and_picture(comparison: dict[str, Any], no_model: None) -> None:
    scene = intro.draw(argparse.Namespace(model=Path()), comparison)
    assert {f"{label}, 64 of 576" for label in intro.METHODS.values()} <= set(words(scene))
    assert write_svg(scene).count('class="kept"') == 3 * 4 * 64


def test_the_pipeline_shows_three_steps(no_model: None) -> None:
    said = words(model.draw(argparse.Namespace(model=Path()), {}))
    assert {"1  Pivots", "2  Expansion", "3  Aggregation", "576 visual tokens"} <= set(said)


def test_ablations_are_drawn_as_differences_with_the_papers_word() -> None:
    rows = [
        {"change": "without pivots", "difference": interval(-0.05), "paper": {"says": "worse"}},
        {"change": "token batch 1", "difference": interval(0.01), "paper": {"says": "nothing"}},
    ]
    said = words(ablation.draw(argparse.Namespace(), {"config": {"budget": 64}, "n": 2000, "rows": rows}))
    assert {"without pivots", "token batch 1", "paper: worse"} <= set(said)
    assert any("2000 questions" in word for word in said)


def test_speed_shows_parts_and_break_even() -> None:
    seconds = {"vision": 0.02, "prefill": 0.1, "first_token": 0.12, "end_to_end": 0.2}
    figures = {name: {"median": value} for name, value in seconds.items()}
    pruned = figures | {"selection": {"median": 0.01}}
    case = {"batch": 1, "visual": 576, "text": 60, "new_tokens": 16, "rounds": 10}
    case["arms"] = [{"key": "dense@576", "figures": figures}, {"key": "vlm-pruner@64", "figures": pruned}]  # type: ignore[assignment]
    points = [{"visual": n, "ratio": {"value": n / 200, "low": n / 220, "high": n / 180}} for n in (64, 256, 576)]
    entry = {"name": "vlm-pruner", "share": 0.111, "batch": 1, "points": points}
    said = words(speed.draw(argparse.Namespace(), {"cases": [case], "break_even": [entry]}))
    assert {"dense@576", "choosing", "200 ms", "no gain", "vlm-pruner, 11 % kept, batch 1"} <= set(said)


def test_the_command_writes_both_forms_or_says_what_is_missing(tmp_path: Path, capsys: Any) -> None:
    rows = [{"change": "x", "difference": interval(0.1), "paper": {"says": "better"}}]
    file = tmp_path / "ablations.json"
    file.write_text(json.dumps({"command": "vlm-pruner ablate", "config": {"budget": 64}, "n": 9, "rows": rows}))
    assert main(["ablation", "--results", str(file), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "ablation.svg"), str(tmp_path / "ablation.png")]
    assert Image.open(tmp_path / "ablation.png").width > 800
    for path, message in (
        (tmp_path / "gone.json", "run `vlm-pruner bench --out results/bench` first, or give --results FILE"),
        (file, "is of `vlm-pruner ablate`, the figure needs one of `vlm-pruner bench`"),
    ):
        assert main(["speed", "--results", str(path), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_a_line_chart_puts_points_where_they_belong() -> None:
    axis = Axis("x", [(1, "1"), (10, "10"), (100, "100")], logarithmic=True)
    line = Series("one", [Point(1, 0.0), Point(10, 50.0, 40.0, 60.0), Point(100, 100.0)])
    scene = line_chart("title", [line], axis, "y", levels=[Level("level", 50.0)])
    assert {"title", "one", "level", "100"} <= set(words(scene))
    with pytest.raises(ValueError, match="no series has a point"):
        line_chart("title", [], axis, "y")
    with pytest.raises(ValueError, match="it has no rows"):
        interval_chart("title", [Row("only a heading", heading=True)], "x")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-7.3, 2.1), (72.0, 78.5), (0.98, 1.02), (3, 3)])
def test_ticks_are_round_and_cover_what_is_drawn(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert len(ticks) <= 9
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) <= 1


def test_names_are_kept_apart() -> None:
    places = apart([10, 11, 12, 90, 99], 10, 0, 100)
    assert all(b - a >= 10 - 1e-9 for a, b in pairwise(places))
    assert places[-1] <= 100
