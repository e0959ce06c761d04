"""The scripts of benchmarks/: they start without the package installed, and their parts that no other file tests."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
import torch

import vlm_pruner as vp
from benchmarks import calibration_cost, candidates
from benchmarks.suites import SUITES
from vlm_pruner.methods import View

SCRIPTS = [
    script
    for script in sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
    if "__main__" in script.read_text(encoding="utf-8")
]
OURS = {"vlm_pruner", "llava", "playground", "benchmarks", "tests"}
MAKES = {name: make for suite in SUITES.values() for name, make in suite.items()}
CANDIDATES = [name for name, make in MAKES.items() if type(make(9)).__module__ == candidates.__name__]
TOKENS, TEXT, WIDTH = 36, 5, 32


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_finds_the_repository_before_it_imports_from_it(script: Path) -> None:
    """Python puts only the script's own folder on the path."""
    body = ast.parse(script.read_text(encoding="utf-8")).body
    inserted = [node.lineno for node in body if ast.unparse(node).startswith("sys.path.insert(0, ")]
    imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in imports:
        module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
        if str(module).partition(".")[0] in OURS:
            assert inserted and inserted[0] < node.lineno, f"{script.name}:{node.lineno} imports {module} too early"


@pytest.mark.parametrize("name", CANDIDATES)
def test_a_candidate_creates_its_tensors_on_the_device_of_its_inputs(name: str) -> None:
    """A tensor created without a device lands on "meta" here, as it would on the CPU beside a picture on a GPU."""
    method = MAKES[name](9)
    generator = torch.Generator().manual_seed(0)
    hidden, keys = (torch.randn(TOKENS, WIDTH, generator=generator) for _ in range(2))
    looked = torch.rand(2, TEXT, TOKENS, generator=generator)
    given = {"text_hidden": torch.zeros(TEXT, WIDTH), "attend_next": lambda rows: looked[:, rows]}
    view = View(hidden, keys, vp.TokenLayout.grid(6, 6), 9, **given)
    with torch.device("meta"):
        selection = method.choose(view)
        merged = method.merge(hidden, selection)
    assert selection.indices.tolist() == sorted(set(selection.order.tolist())) and len(selection.indices) == 9
    assert merged.shape == (9, WIDTH) and merged.isfinite().all()


def test_a_row_is_the_ratio_to_the_same_method() -> None:
    times = {"dense": [9.0, 9.0], "dart": [1.0, 2.0], "dart:calibrate=size": [1.5, 3.0]}
    (row,) = calibration_cost.report(times)
    assert (row["method"], row["calibrate"]) == ("dart", "size")
    assert row["value"] == row["low"] == row["high"] == pytest.approx(50)


def test_it_times_every_calibration_of_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--model", "tiny", "--visual", "16", "--keep", "4", "--rounds", "2", "--text", "6"]
    calibration_cost.main([*small, "--methods", "vlm-pruner,divprune:layer=1"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(json.loads(last)["rows"]) == 4 and all(" % [" in line for line in lines)
