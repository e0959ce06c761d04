"""One comparison over several models: spreads, verdicts that hold for all, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlm_pruner.cli import main
from vlm_pruner.report import models_table
from vlm_pruner.report.paper_results import TableError


def _cell(arm: str, accuracy: float, against: dict[str, tuple[float, str]]) -> dict[str, Any]:
    kinds = {"existence": {"mean": accuracy}, "reading": {"mean": accuracy - 0.1}}
    differences = {name: {"mean": mean, "verdict": verdict} for name, (mean, verdict) in against.items()}
    return {
        "benchmark": "mini", "arm": arm, "n": 120, "accuracy": {"mean": accuracy}, "kinds": kinds,
        "against": differences,
    }  # fmt: skip


def _write(folder: Path, model: str, cells: list[dict[str, Any]]) -> Path:
    arms = [{"key": c["arm"], "label": c["arm"].partition("@")[0]} for c in cells]
    arms = [{**arm, "budget": arm["key"].partition("@")[2] or None} for arm in arms]
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"model": {"path": model}, "arms": arms, "cells": cells}))
    return folder


@pytest.fixture
def three(tmp_path) -> list[Path]:
    """random loses on all models; residual wins on two and is unclear on the third; fastv ran on two."""
    made = []
    for number, (dense, lost, residual) in enumerate([(0.98, -0.4, 0.05), (0.9, -0.3, 0.02), (0.94, -0.2, 0.03)]):
        better = "better" if number else "not distinguishable"
        cells = [
            _cell("dense", dense, {}),
            _cell("random@64", dense + lost, {"dense": (lost, "worse")}),
            _cell("residual@64", dense, {"dense": (0.0, "not distinguishable"), "vlm-pruner": (residual, better)}),
        ]
        cells += [_cell(f"fastv@{budget}", 0.5, {}) for budget in range(40, 65)] if number else []
        made.append(_write(tmp_path / str(number), f"judge{number}", cells))
    return made


def test_spreads_and_verdicts_of_all(three: list[Path]) -> None:
    found = models_table.read(three)
    dense, random, residual = models_table.rows(found)
    assert dense.accuracy.percent() == "94.0 [90.0, 98.0]" and dense.against == {}
    spread, verdict = random.against["dense"]
    assert spread.percent("+") == "-30.0 [-40.0, -20.0]" and verdict == "worse"
    assert residual.against["vlm-pruner"][1] == "not distinguishable", "one of three is unclear"
    assert residual.kinds["reading"].values == pytest.approx((0.88, 0.8, 0.84))
    assert models_table.left_out(found) == [f"fastv@{budget}" for budget in range(40, 65)]


def test_verdicts_hold_once_all_agree(three: list[Path]) -> None:
    (own,) = (row for row in models_table.rows(models_table.read(three[1:])) if row.label == "residual")
    assert own.against["vlm-pruner"][1] == "better"


def test_opposite_verdicts_are_no_verdict(tmp_path) -> None:
    paths = [_write(tmp_path / v, v, [_cell("random@64", 0.5, {"dense": (0.1, v)})]) for v in ("better", "worse")]
    (row,) = models_table.rows(models_table.read(paths))
    assert row.against["dense"][1] == "not distinguishable"


@pytest.mark.parametrize("layout", ["terminal", "md"])
def test_the_command_prints_it(three: list[Path], layout: str, capsys) -> None:
    assert main(["table", "--layout", "models", "--format", layout, *map(str, three)]) == 0
    text = capsys.readouterr().out
    assert "-30.0 [-40.0, -20.0]-" in text and "3. judge2 on mini, n = 120" in text
    assert "left out, since not all ran them: fastv@40" in text
    assert layout == "md" or max(map(len, text.splitlines())) <= 100


def test_what_gives_no_spread_is_refused(three: list[Path], tmp_path) -> None:
    with pytest.raises(TableError, match="1 result of vlm-pruner compare; a spread needs two"):
        models_table.read(three[:1])
    with pytest.raises(TableError, match="judge0 on mini is there twice"):
        models_table.read([three[0], three[0] / "results.json"])
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        models_table.read([tmp_path / "nothing"])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(TableError, match=r"other\.json is no result of vlm-pruner compare"):
        models_table.read([tmp_path / "other.json"])
    other = _write(tmp_path / "other", "x", [_cell("fastv@32", 0.5, {})])
    with pytest.raises(TableError, match=r"share no arm.*same --methods and --budget"):
        models_table.rows(models_table.read([three[0], other]))


def test_flags_that_do_not_fit_are_refused(three: list[Path], capsys) -> None:
    for more, said in ((["--format", "csv"], "no --format csv"), (["--model", "LLaVA-1.5-7B"], "leave it out")):
        assert main(["table", "--layout", "models", *map(str, three), *more]) != 0
        assert said in capsys.readouterr().err
