"""The field's own scoring commands, the OK-VQA converter and ``vlm-pruner check-data``."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from conformance import conformance
from test_eval_data import COMMANDS

from llava.eval import convert_okvqa_questions
from playground.mini import benchmarks
from vlm_pruner import scoring
from vlm_pruner.cli import main
from vlm_pruner.commands.check_data import BENCHMARKS


@pytest.mark.parametrize("benchmark", list(scoring.MODULES))
def test_the_fields_commands_give_the_scorers_numbers(benchmark: str, tmp_path: Path) -> None:
    folder = conformance("scorers") / BENCHMARKS[benchmark].folder
    case = next(iter(json.loads((folder / "expected.json").read_text(encoding="utf-8"))["scenarios"].values()))
    answers = folder / (case.get("answers") or case["results"])
    module, flags = COMMANDS[benchmark]
    paths = [word if word.startswith("--") else str(folder / word) for word in flags]
    command = importlib.import_module(f"llava.eval.{module}")
    assert command.main([*paths, "--result-file", str(answers), "--json", str(tmp_path / "out.json")]) == 0
    expected = json.loads(json.dumps(scoring.score(benchmark, folder, answers).as_json()))
    assert json.loads((tmp_path / "out.json").read_text()).items() >= expected.items()
    with pytest.raises(SystemExit):
        command.main(["--help"])


def test_a_file_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = importlib.import_module("llava.eval.eval_textvqa")
    assert command.main(["--annotation-file", "nowhere.json", "--result-file", "x"]) == 2
    error = capsys.readouterr().err
    assert "nowhere.json" in error and error.count("\n") == 1


def test_okvqa_questions_from_the_official_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"image_id": 297147, "question": "What sport?", "question_id": 2971475}
    (tmp_path / "official.json").write_text(json.dumps({"questions": [record]}))
    flags = ["--questions", str(tmp_path / "official.json"), "--out", str(tmp_path / "okvqa_val.jsonl")]
    assert convert_okvqa_questions.main(flags) == 0
    assert json.loads((tmp_path / "okvqa_val.jsonl").read_text()) == {
        "image": "val2014/COCO_val2014_000000297147.jpg", "question": "What sport?", "question_id": 2971475,
    }  # fmt: skip
    (tmp_path / "official.json").write_text("{}")
    assert convert_okvqa_questions.main(flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    benchmarks.write(root, [benchmark.folder for benchmark in BENCHMARKS.values()], count=1)
    return root


def test_complete_data(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--data", str(data)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: complete" in shown for name in BENCHMARKS) and "missing" not in shown
    assert "gqa: complete, 1 pictures" in shown


def test_everything_missing_is_named_with_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    for benchmark in BENCHMARKS.values():
        for name, source in benchmark.files.items():
            assert f"{tmp_path / benchmark.folder / name}   from {source}" in shown


def test_missing_pictures_are_named(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmarks.write(tmp_path, ["gqa"], count=5)
    pictures = sorted((tmp_path / "gqa" / "data" / "images").iterdir())
    for picture in pictures[1:]:
        picture.unlink()
    assert main(["check-data", "gqa", "--data", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "4 of 5 pictures, among them:" in shown and shown.count(".png") == 3
    assert main(["check-data", "gqa", "--data", str(tmp_path), "--all"]) == 1
    assert capsys.readouterr().out.count(".png") == 4


def test_seed_needs_no_videos(data: Path, tmp_path: Path) -> None:
    benchmarks.write(tmp_path, ["seed_bench"], count=1)
    with (tmp_path / "seed_bench" / "llava-seed-bench.jsonl").open("a") as file:
        file.write(json.dumps({"question_id": "v1", "image": "SEED-Bench-video-image/1.png", "text": "?"}) + "\n")
    assert main(["check-data", "seed", "--data", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "content", "expected"),
    [
        (["chess"], "{}", "no benchmark is called 'chess'"),
        (["pope"], "not json", "llava_pope_test.jsonl, line 1 is not valid JSON"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], content: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pope" / "val2014").mkdir(parents=True)
    (tmp_path / "pope" / "llava_pope_test.jsonl").write_text(content)
    assert main(["check-data", *arguments, "--data", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
