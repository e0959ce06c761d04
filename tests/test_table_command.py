"""`vlm-pruner table`: result files to cells, comparison with the paper, missing results, refusals."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from vlm_pruner.cli import main
from vlm_pruner.report.paper_numbers import COLUMNS, dense_row
from vlm_pruner.report.paper_results import paper_model

SEVEN = "checkpoints/llava-v1.5-7b"
OURS = {
    "name": "vlm-pruner", "reduction_ratio": 0.889, "keep_tokens": None, "layer": 2, "pivots": 4, "threshold": 0.8,
    "threshold_step": 0.1, "token_batch": 16, "spatial_weight": 0.5, "channels": 256, "self_weight": 0.3,
    "compat": None,
}  # fmt: skip
RANDOM = {"name": "random", "reduction_ratio": None, "keep_tokens": 64, "layer": 2, "seed": 0}


def write(folder: Path, share: float, method: dict[str, Any] | None, model: str = SEVEN, skip: str = "") -> None:
    """Nine results (but for `skip`) that are `share` of the paper's dense scores."""
    bound = dense_row("LLaVA-1.5-7B")
    assert bound is not None
    for name, value in bound.scores.items():
        if name != skip:
            result(folder / name / "r.json", name, share * value, method, model)


def result(path: Path, benchmark: str, value: float, method: dict[str, Any] | None, model: str = SEVEN) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    run = {"config": {"model_path": model, "method": method}}
    headline = {"name": "score", "value": value, "stderr": 0.5}
    path.write_text(json.dumps({"benchmark": benchmark, "headline": headline, "n": 10, "failed": 0, "run": run}))


def table(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    assert main(["table", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    return printed.out if code == 0 else printed.err


def records(text: str) -> dict[tuple[str, str, str, str], dict[str, str]]:
    return {
        (r["model"], r["visual_tokens"], r["method"], r["row"]): r for r in csv.DictReader(io.StringIO(text))
    }  # fmt: skip


def test_ours_the_papers_and_the_difference(tmp_path, capsys):
    write(tmp_path / "a", 1.0, None)
    write(tmp_path / "b", 0.9, OURS)
    found = records(table(capsys, tmp_path, "--format", "csv"))
    place = ("LLaVA-1.5-7B", "64 of 576", "VLM-Pruner")
    assert float(found[(*place, "ours")]["Avg"]) == pytest.approx(90)
    assert float(found[(*place, "ours")]["POPE"]) == pytest.approx(0.9 * 85.9)
    assert float(found[(*place, "standard_error")]["POPE"]) == 0.5
    assert float(found[(*place, "paper")]["POPE"]) == 82.2
    assert float(found[(*place, "difference")]["POPE"]) == pytest.approx(0.9 * 85.9 - 82.2)
    assert float(found[(*place, "difference")]["Avg"]) == pytest.approx(90 - 95.606, abs=0.006)
    assert ("LLaVA-1.5-7B", "64 of 576", "FastV", "ours") not in found
    assert found[("LLaVA-1.5-7B", "64 of 576", "FastV", "paper")]["GQA"] == "51.66"


def test_missing_is_missing_and_takes_the_average_with_it(tmp_path, capsys):
    write(tmp_path / "a", 1.0, None)
    write(tmp_path / "b", 0.9, OURS, skip="okvqa")
    ours = records(table(capsys, tmp_path, "--format", "csv"))[("LLaVA-1.5-7B", "64 of 576", "VLM-Pruner", "ours")]
    assert ours["OKVQA"] == ours["Avg"] == ""
    text = table(capsys, tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("VLM-Pruner") and " ours " in line)
    assert line.split()[-2:] == ["-", "-"]
    assert "missing: VLM-Pruner, 64 of 576: OKVQA" in text
    assert "0.00" not in line


def test_without_a_dense_row_there_is_no_average(tmp_path, capsys):
    write(tmp_path, 0.9, OURS)
    found = records(table(capsys, tmp_path, "--format", "csv"))
    assert found[("LLaVA-1.5-7B", "64 of 576", "VLM-Pruner", "ours")]["Avg"] == ""


def test_other_settings_are_rows_of_their_own(tmp_path, capsys):
    write(tmp_path / "a", 0.91, {**OURS, "token_batch": 1})
    write(tmp_path / "b", 0.90, OURS)
    write(tmp_path / "c", 0.80, RANDOM)
    write(tmp_path / "d", 0.81, {**RANDOM, "seed": 1})
    write(tmp_path / "e", 0.7, {"name": "of-another-time", "keep_tokens": 64, "strength": 3})
    text = table(capsys, tmp_path)
    ours = [line.split(" ours ")[0].strip() for line in text.splitlines() if " ours " in line]
    assert ours == ["VLM-Pruner", "VLM-Pruner B=1", "random", "random seed=1", "of-another-time"]
    assert max(map(len, text.splitlines())) <= 80


def test_the_embedded_model_has_no_numbers_of_the_paper(tmp_path, capsys):
    write(tmp_path / "a", 1.0, None, "playground/mini/checkpoint")
    write(tmp_path / "b", 0.8, OURS, "playground/mini/checkpoint")
    text = table(capsys, tmp_path)
    assert text.startswith("mini,") and "paper" not in text and "64 of 576" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "| 80.00 |" in table(capsys, tmp_path, "--format", "md")
    assert "paper" in table(capsys, tmp_path, "--model", "LLaVA-1.5-7B")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("llava-v1.5-7b", "LLaVA-1.5-7B"),
        ("llava-1.5-13b-hf", "LLaVA-1.5-13B"),
        ("llava-v1.6-vicuna-7b", "LLaVA-NeXT-7B"),
        ("llava-v1.6-vicuna-7b-hf", "LLaVA-NeXT-7B"),
        ("Qwen2-VL-7B-Instruct", "Qwen2-VL-7B"),
        ("llava-v1.5-7b-lora", None),
        ("llava-v1.6-mistral-7b", None),
        ("mini", None),
    ],
)
def test_which_model_of_the_paper(name, model):
    assert paper_model(name) == model


def test_next_budgets_are_shares(tmp_path, capsys):
    write(tmp_path / "a", 0.9, {**OURS, "reduction_ratio": None, "keep_tokens": 320}, "m/llava-v1.6-vicuna-7b")
    found = records(table(capsys, tmp_path, "--format", "csv"))
    assert ("LLaVA-NeXT-7B", "11.1 %", "VLM-Pruner", "difference") in found


def test_what_is_refused(tmp_path, capsys):
    write(tmp_path / "a", 0.9, OURS)
    result(tmp_path / "twice.json", "pope", 1.0, OURS)
    error = table(capsys, tmp_path, code=2)
    assert "twice.json" in error and "give only one" in error
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert "other.json is not a result" in table(capsys, tmp_path / "other.json", code=2)
    (tmp_path / "torn.json").write_text("{")
    assert "torn.json is not valid JSON" in table(capsys, tmp_path / "torn.json", code=2)
    (tmp_path / "bare.json").write_text(json.dumps({"benchmark": "pope", "headline": {"value": 1}, "run": None}))
    assert ".meta.json" in table(capsys, tmp_path / "bare.json", code=2)
    (tmp_path / "empty").mkdir()
    assert "no result" in table(capsys, tmp_path / "empty", code=2)
    assert "the paper has no model 'LLaVA-2'" in table(capsys, "--model", "LLaVA-2", code=2)
    assert "give result files" in table(capsys, code=2)


def test_failed_items_are_told(tmp_path, capsys):
    path = tmp_path / "r.json"
    result(path, "pope", 80.0, OURS)
    path.write_text(path.read_text().replace('"failed": 0', '"failed": 3'))
    assert main(["table", str(path)]) == 0
    assert "3 of 10 items failed" in capsys.readouterr().err


def test_columns_are_the_scorers_benchmarks():
    from vlm_pruner import scoring

    assert set(COLUMNS) == set(scoring.MODULES)
