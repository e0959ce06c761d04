"""The nine scorers against the official scorers' numbers, item by item if those are known."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conformance import conformance
from openpyxl import load_workbook

from vlm_pruner import scoring
from vlm_pruner.cli import main
from vlm_pruner.scoring import mme

FOLDERS = {"mme": "MME", "ocrbench": "OCRBench", "seed": "seed_bench"}


def expectations(benchmark: str) -> tuple[Path, dict[str, Any]]:
    folder = conformance("scorers") / FOLDERS.get(benchmark, benchmark)
    return folder, json.loads((folder / "expected.json").read_text(encoding="utf-8"))["scenarios"]


def answer_files(benchmark: str) -> Iterator[tuple[Path, Path, dict[str, Any]]]:
    """Data folder, answer file and expectation of each scenario."""
    folder, cases = expectations(benchmark)
    for case in cases.values():
        if "metrics" in case:
            yield folder, folder / (case.get("answers") or case["results"]), case


def leaves(expected: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every value of the official scorer beside ours."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{path}/{name} is missing"
            yield from leaves(value, found[name], f"{path}/{name}")
    else:
        yield path, expected, found


@pytest.mark.parametrize("benchmark", list(scoring.MODULES))
def test_metrics_equal_the_official_scorers(benchmark: str, tmp_path: Path) -> None:
    for folder, answers, case in answer_files(benchmark):
        out = tmp_path / "out.json"
        assert main(["score", benchmark, "--data", str(folder), "--answers", str(answers), "--json", str(out)]) == 0
        result = json.loads(out.read_text(encoding="utf-8"))
        for path, expected, found in leaves(case["metrics"], result["metrics"]):
            close = pytest.approx(expected, abs=1e-6) if isinstance(expected, float) else expected
            assert found == close, path
        assert result["n"] > 0 and result["headline"]["stderr"] > 0


def scored(benchmark: str) -> Iterator[tuple[scoring.Score, dict[str, Any]]]:
    for folder, answers, case in answer_files(benchmark):
        yield scoring.score(benchmark, folder, answers), case


def by_id(score: scoring.Score, name: str, key: str = "question_id") -> dict[str, Any]:
    return {str(item[key]): item[name] for item in score.items}


def test_pope_replies_are_read_as_the_official_scorer_reads_them() -> None:
    for score, case in scored("pope"):
        assert by_id(score, "parsed") == case["parsed_answers"]


def test_gqa_predictions() -> None:
    for score, case in scored("gqa"):
        assert by_id(score, "parsed") == case["converted_predictions"]
        assert {str(item["question_id"]) for item in score.items if item["correct"]} == set(case["correct_ids"])


def test_scienceqa_letters() -> None:
    for score, case in scored("scienceqa"):
        assert by_id(score, "parsed") == case["parsed_answer"]
        assert by_id(score, "predicted") == case["predicted_choice_index"]


@pytest.mark.parametrize("benchmark", ["textvqa", "okvqa"])
def test_soft_scores_per_answer(benchmark: str) -> None:
    for score, case in scored(benchmark):
        for item, expected in zip(score.items, case["per_answer"], strict=True):
            assert item == {**expected, "score": pytest.approx(expected["score"], abs=1e-6)}


def test_mme_labels() -> None:
    for score, case in scored("mme"):
        found = {(item["subtask"], item["image"], item["question"]): item["label"] for item in score.items}
        for expected in case["per_answer"]:
            subtask, *_, image = expected["question_id"].split("/")
            assert found[subtask, image.split(".")[0], expected["question"]] == expected["label"]


def test_mme_replies() -> None:
    for reply in expectations("mme")[1]["reply_parsing"]["cases"]:
        assert mme.parse_reply(reply["text"]) == reply["label"], reply


def test_mmbench_letters_and_upload_sheet() -> None:
    for score, case in scored("mmbench"):
        assert by_id(score, "extracted", "index") == case["vlmevalkit_extracted"]
        circular = {str(item["index"]): int(item["circular"]) for item in score.items if item["index"] < 1_000_000}
        assert circular == case["vlmevalkit_circular_hit"]
        (header, *rows) = load_workbook(io.BytesIO(score.uploads["mmbench_upload.xlsx"]())).active.values
        assert list(header) == case["upload_columns"]
        place, index = header.index("prediction"), header.index("index")
        assert [{"index": row[index], "prediction": row[place]} for row in rows] == case["upload_rows"]


def test_ocrbench_results() -> None:
    for score, case in scored("ocrbench"):
        expected = [int(digit) for digit in case["result"]] if isinstance(case["result"], str) else case["result"]
        assert [item["result"] for item in score.items] == expected


def test_ocrbench_answer_lines_are_joined_with_the_questions(tmp_path: Path) -> None:
    """Our generators write one line per question; the result file is the released loader's."""
    folder, cases = expectations("ocrbench")
    entries = json.loads((folder / cases["small"]["results"]).read_text(encoding="utf-8"))
    lines = [{"question_id": entry["id"], "text": entry["predict"]} for entry in entries]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score = scoring.score("ocrbench", folder, tmp_path / "answers.jsonl")
    assert [item["result"] for item in score.items] == cases["small"]["result"]


def test_seed_upload_lines() -> None:
    for score, case in scored("seed"):
        if case["upload"] is None:
            assert score.uploads == {}
        else:
            lines = score.uploads["seed_upload.jsonl"]().decode().splitlines()
            assert [json.loads(line) for line in lines] == case["upload"]


@pytest.mark.parametrize("benchmark", list(scoring.MODULES))
def test_empty_and_foreign_answer_files_are_refused(
    benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = expectations(benchmark)
    foreign = {"question_id": "nobody", "prompt": "What?", "text": "yes"}
    for content in ("", json.dumps(foreign) + "\n", "{ broken\n"):
        (tmp_path / "answers.jsonl").write_text(content)
        assert main(["score", benchmark, "--data", str(folder), "--answers", str(tmp_path / "answers.jsonl")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
