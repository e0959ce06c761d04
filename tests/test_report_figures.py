"""Figures: drawn from result files, with a clear error where one is missing; charts show the numbers that they get."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_pruner.drawing.chart import save_chart
from vlm_pruner.drawing.shapes import Drawing, Text
from vlm_pruner.drawing.svg import write_svg
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.receipts import Kept
from vlm_pruner.report import charts
from vlm_pruner.report.figures import intro, model
from vlm_pruner.report.figures.__main__ import main


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}


@pytest.fixture
def comparison() -> dict[str, Any]:
    """Of two benchmarks, the second of one budget and without a dense arm."""
    arm = {"accounting": None, "budget": None}
    arms = [{**arm, "key": "dense@576", "label": "dense", "settings": None, "budget_tokens": 576}]
    dense = {"benchmark": "mini", "n": 480, "arm": "dense@576", "accuracy": interval(0.77), "against": {}}
    cells = [dense]
    for label, loss in (("random", 0.1), ("VLM-Pruner", 0.01), ("DART", 0.03)):
        for tokens in (128, 64):
            key = f"{label}@{tokens}"
            arms.append({**arm, "key": key, "label": label, "settings": {}, "budget_tokens": tokens})
            verdict = "worse" if label == "random" else "not distinguishable"
            cell = {**dense, "arm": key, "accuracy": interval(0.77 - loss * 128 / tokens)}
            cells.append({**cell, "against": {"dense": {"verdict": verdict}}})
    cells.append({**cells[1], "benchmark": "other", "n": 60, "against": {}})
    return {"command": "vlm-pruner compare", "arms": arms, "cells": cells}


@pytest.fixture
def timings() -> dict[str, Any]:
    seconds = {"vision": 0.02, "prefill": 0.1, "first_token": 0.12, "end_to_end": 0.2}
    figures: dict[str, Any] = {name: {"median": value} for name, value in seconds.items()}
    pruned = figures | {"selection": {"median": 0.01}, "end_to_end": {"median": 0.16, "ratio": {"value": 1.25}}}
    case: dict[str, Any] = {"batch": 1, "visual": 576, "text": 60, "new_tokens": 16, "rounds": 10}
    case["arms"] = [{"key": "dense@576", "figures": figures}, {"key": "vlm-pruner@64", "figures": pruned}]
    points = [{"visual": n, "ratio": {"value": n / 200, "low": n / 220, "high": n / 180}} for n in (64, 256, 576)]
    entry = {"name": "vlm-pruner", "share": 0.111, "batch": 1, "points": points}
    return {"command": "vlm-pruner bench", "cases": [case], "break_even": [entry]}


@pytest.fixture
def ablations() -> dict[str, Any]:
    rows = [
        {"change": "without pivots", "difference": interval(-0.05), "paper": {"says": "worse"}},
        {"change": "token batch 1", "difference": interval(0.01), "paper": {"says": "nothing"}},
        {"change": "layer 4", "difference": interval(0.03), "paper": {"says": "worse"}},
    ]
    return {"command": "vlm-pruner ablate", "config": {"budget": 64}, "n": 2000, "rows": rows}


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A choice that needs no model: every ninth token, in the order of a fixed shuffle."""
    order = sorted(range(0, 576, 9), key=lambda token: token * 7919 % 577)
    keeper = [token - token % 9 for token in range(576)]
    kept = Kept(Fit("pad", 24, 24), order, order[:4], keeper, "vlm-pruner")
    for module in (intro, model):
        monkeypatch.setattr(module.Chooser, "__init__", lambda self, checkpoint: None)
        monkeypatch.setattr(module.Chooser, "kept", lambda self, picture, method: kept)
    monkeypatch.setattr(intro, "mini_scene", lambda number: Image.new("RGB", (64, 64), "green"))


def words(figure: Any) -> set[str]:
    """All texts of a chart, none of which may reach out of it."""
    from matplotlib.text import Text as Word

    figure.draw_without_rendering()
    found = [word for word in figure.findobj(Word) if word.get_text().strip() and word.get_visible()]
    frame = figure.bbox
    for word in found:
        if word.axes is None or word.axes.axison:
            box = word.get_window_extent()
            assert frame.x0 - 1 <= box.x0 and box.x1 <= frame.x1 + 1, (word.get_text(), box, frame)
    return {word.get_text().strip() for word in found}


def test_accuracy_has_a_panel_per_method_and_benchmark(comparison: dict[str, Any]) -> None:
    figure = charts.accuracy(comparison)
    assert {"VLM-Pruner", "DART", "random", "64", "128"} <= words(figure)
    assert {"mini: accuracy in %, 480 questions", "other: accuracy in %, 60 questions"} <= words(figure)
    used = [panel for panel in figure.axes if panel.axison]
    assert [panel.get_title("left") for panel in used] == ["VLM-Pruner", "random", "DART", "random"]
    assert figure.axes[0].get_xscale() == "log"
    comparison["cells"] = []
    with pytest.raises(ValueError, match="the results hold no cell"):
        charts.accuracy(comparison)


def test_a_methods_line_and_intervals_are_where_the_numbers_are(comparison: dict[str, Any]) -> None:
    ours, random = charts.accuracy(comparison).axes[:2]
    line = next(line for line in ours.lines if line.get_color() == charts.LINES[0] and len(line.get_xdata()) == 2)
    assert list(line.get_xdata()) == [64, 128]
    assert list(line.get_ydata()) == pytest.approx([75, 76])
    ends = [segment for bars in ours.collections[1:] for segment in bars.get_segments()]
    assert [sorted(end[:, 1]) for end in ends] == [pytest.approx([73, 77]), pytest.approx([74, 78])]
    dots = {
        name: {dot.get_markerfacecolor() for dot in panel.lines if dot.get_marker() == "o"}
        for name, panel in (("ours", ours), ("random", random))
    }
    assert dots == {"ours": {charts.LINES[0]}, "random": {"white"}}  # random is worse than dense


def test_a_budget_for_the_whole_decoder_stands_at_its_mean_over_layers() -> None:
    arm = {"accounting": {"average_tokens": 250.5}, "budget_tokens": 180}
    assert [charts.tokens({"arm": {**arm, "budget": budget}}) for budget in ("avg:250", "flops:0.4")] == [250.5] * 2
    assert charts.tokens({"arm": {**arm, "budget": "180"}}) == 180


def test_speed_shows_parts_and_break_even(timings: dict[str, Any]) -> None:
    said = words(charts.speed(timings))
    assert {"dense@576", "choosing", "200 ms", "160 ms, 1.25 × as fast", "no gain"} <= said
    assert "vlm-pruner, 11 % kept, batch 1" in said
    bars = charts.speed(timings).axes[0].patches
    assert [bar.get_width() for bar in bars[:4]] == pytest.approx([20, 0, 100, 80])
    assert [bar.get_width() for bar in bars[4:]] == pytest.approx([20, 10, 90, 40])
    timings["break_even"] = []
    assert "no gain" not in words(charts.speed(timings))


def test_ablations_are_drawn_as_differences_with_the_papers_word(ablations: dict[str, Any]) -> None:
    figure = charts.ablation(ablations)
    assert {"without pivots", "token batch 1", "paper: worse"} <= words(figure)
    assert any("2000 questions" in word for word in words(figure))
    dots = [line for line in figure.axes[0].lines if line.get_marker() in "o^v"]
    assert [(dot.get_xdata()[0], dot.get_marker()) for dot in dots] == [(-5, "v"), (1, "o"), (3, "^")]
    ablations["rows"] = []
    with pytest.raises(ValueError, match="hold no variation"):
        charts.ablation(ablations)


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_a_chart_has_the_same_bytes_every_time(ablations: dict[str, Any], tmp_path: Path, ending: str) -> None:
    first, second = (tmp_path / f"{name}{ending}" for name in ("first", "second"))
    for path in (first, second):
        save_chart(charts.ablation(ablations), path)
    assert first.read_bytes() == second.read_bytes()
    assert b"matplotlib version" not in first.read_bytes().lower() and b"dc:date" not in first.read_bytes()


def test_without_matplotlib_a_command_goes_on_and_a_figure_says_what_to_install(
    ablations: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    assert charts.write_if_installed(tmp_path / "a.png", charts.ablation, ablations) == []
    remedy = "charts need matplotlib: pip install 'vlm-pruner[figures]'"
    assert capsys.readouterr().err == f"a.png was not drawn: {remedy}\n"
    file = tmp_path / "ablations.json"
    file.write_text(json.dumps(ablations))
    assert main(["ablation", "--results", str(file), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"figures: {remedy}\n"


def test_results_that_cannot_be_drawn_do_not_pass_for_a_missing_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hold no cell"):
        charts.write_if_installed(tmp_path / "a.png", charts.accuracy, {"cells": [], "arms": []})


def texts(drawing: Drawing) -> list[str]:
    """All texts, none of which may stand outside of the drawing."""
    found = [shape for shape in drawing.shapes if isinstance(shape, Text)]
    for text in found:
        assert 0 <= text.at[0] <= drawing.width and 0 <= text.at[1] <= drawing.height, text
    return [text.text for text in found]


def test_the_introduction_has_every_method_and_picture(no_model: None) -> None:
    drawing = intro.draw(Path())
    assert {f"{label}, 64 of 576" for label in intro.METHODS.values()} <= set(texts(drawing))
    assert write_svg(drawing).count('class="kept"') == 3 * 4 * 64


def test_the_pipeline_shows_three_steps(no_model: None) -> None:
    said = " ".join(texts(model.draw(Path())))
    assert all(step in said for step in ("1  Pivots", "2  Expansion", "3  Aggregation", "576 visual tokens"))


def test_the_command_writes_both_forms_or_says_what_is_missing(
    ablations: dict[str, Any], tmp_path: Path, capsys: Any
) -> None:
    file = tmp_path / "ablations.json"
    file.write_text(json.dumps(ablations))
    assert main(["ablation", "--results", str(file), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "ablation.svg"), str(tmp_path / "ablation.png")]
    assert Image.open(tmp_path / "ablation.png").width == 1700
    for path, message in (
        (tmp_path / "gone.json", "run `vlm-pruner bench --out results/bench` first, or give --results FILE"),
        (file, "is of `vlm-pruner ablate`, the figure needs one of `vlm-pruner bench`"),
    ):
        assert main(["speed", "--results", str(path), "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
