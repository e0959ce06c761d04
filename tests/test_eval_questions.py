"""Broken question files: a line that cannot be asked is recorded under its id, and the run continues."""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from eval_stub import StubEngine
from PIL import Image

from llava.eval import (
    evaluate,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_ocrbench,
    model_vqa_okvqa,
    model_vqa_science,
    model_vqa_video,
    options,
)  # fmt: skip
from vlm_pruner.cli import main

RECORDS: dict[ModuleType, dict[str, Any]] = {
    model_vqa_loader: {"question_id": 1, "image": "a.png", "text": "What?"},
    model_vqa_okvqa: {"question_id": 1, "image": "a.png", "question": "What?"},
    model_vqa_ocrbench: {"id": 1, "image_path": "a.png", "question": "What?"},
    model_vqa_science: {"id": "1", "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]},
    model_vqa_video: {"question_id": 1, "video": "a", "question": "What?", "options": ["red", "blue"]},
}
OPTIONAL = (model_vqa_science, model_vqa_video)  # a picture, or options, may be left out
LISTS = (model_vqa_ocrbench, model_vqa_science)


@pytest.fixture(params=list(RECORDS), ids=lambda module: module.__name__.rpartition("_")[2])
def module(request: pytest.FixtureRequest) -> ModuleType:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    return tmp_path


class Stub(StubEngine):
    """Also asks without a picture."""

    def prepare(self, question: Any) -> Any:
        return super().prepare(question) if question.images else (question.asked, (0, 0))


def ask(module: ModuleType, folder: Path, content: bytes, *more: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and answers of a run over a question file of that content."""
    (folder / "questions.json").write_bytes(content)
    flags = ["--model-path", "stub", "--question-file", str(folder / "questions.json")]
    flags += ["--image-folder", str(folder), "--answers-file", str(folder / "answers.jsonl"), *more]
    code = evaluate.main(module.TASK, flags, lambda args, method: Stub(folder))
    path = folder / "answers.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return code, [json.loads(line) for line in lines]


def encoded(module: ModuleType, records: list[Any]) -> bytes:
    return (json.dumps(records) if module in LISTS else "\n".join(map(json.dumps, records))).encode()


def broken_records(good: dict[str, Any]) -> list[Any]:
    """Each field of a question left out, or of another kind, or with half an emoji; and records that are none."""
    records: list[Any] = [[], "x", None, 7, {}]
    for name in good:
        records.append({key: value for key, value in good.items() if key != name})
        records += [{**good, name: value} for value in ([], {}, [[]], [None], [{"value": 7}], {"x": 1})]
        if isinstance(good[name], str):
            records.append({**good, name: f"{good[name]} \ud83d"})
    return records


def test_every_broken_question_is_recorded_and_the_others_are_answered(module: ModuleType, folder: Path) -> None:
    good = RECORDS[module]
    broken = broken_records(good)
    code, lines = ask(module, folder, encoded(module, [good, *broken, good]))
    assert len(lines) == len(broken) + 2 and code == 1
    assert "error" not in lines[0] and "error" not in lines[-1]
    asked = [line["prompt"] for line in lines[1:-1] if "error" not in line]
    assert len(asked) <= (2 if module in OPTIONAL else 0), asked
    assert all(isinstance(line["error"], str) and line["error"] for line in lines[1:-1] if "error" in line)


def test_a_deeply_nested_question_is_recorded_or_one_line(
    module: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    deep, good = "[" * 100_000, json.dumps(RECORDS[module])
    content = f"[{good}, {deep}]" if module in LISTS else f"{deep}\n{good}"
    code, lines = ask(module, folder, content.encode())
    if module in LISTS:
        assert code == 2 and not lines and "nested too deeply" in capsys.readouterr().err
    else:
        assert code == 1 and ["error" in line for line in lines] == [True, False]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe[", b"{}", b"7", b'"x"', b"null", "é".encode("latin-1")])
def test_a_file_without_questions_is_one_line(
    module: ModuleType, folder: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    code, lines = ask(module, folder, content)
    error = capsys.readouterr().err
    if code == 2:
        assert error.count("\n") == 1 and "questions.json" in error and not lines
    else:
        assert code == 1 and module not in LISTS and len(lines) == 1 and "error" in lines[0]


def test_a_byte_order_mark_is_read_over(module: ModuleType, folder: Path) -> None:
    code, lines = ask(module, folder, b"\xef\xbb\xbf" + encoded(module, [RECORDS[module]]))
    assert code == 0 and len(lines) == 1


def test_an_unforeseen_failure_of_one_item_is_recorded(
    module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Stub.prepare

    def fail_once(engine: Stub, question: Any) -> Any:
        if question.index == 1:
            raise RuntimeError("a decoder of pictures\nthat nobody foresaw")
        return prepare(engine, question)

    monkeypatch.setattr(Stub, "prepare", fail_once)
    code, lines = ask(module, folder, encoded(module, [RECORDS[module]] * 3))
    assert code == 1 and [line.get("error") for line in lines] == [
        None, "RuntimeError: a decoder of pictures that nobody foresaw", None,
    ]  # fmt: skip


def test_the_tilde_is_the_home_folder(
    module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(here := tmp_path_factory.mktemp("here"))
    (folder / "questions.json").write_bytes(encoded(module, [RECORDS[module]]))
    flags = ["--model-path=~/model", "--question-file=~/questions.json", "--image-folder=~"]
    flags += ["--answers-file=~/out/answers.jsonl"]
    assert evaluate.main(module.TASK, flags, lambda args, method: Stub(Path(args.image_folder))) == 0
    assert len((folder / "out" / "answers.jsonl").read_text().splitlines()) == 1 and not list(here.iterdir())


# --- MMBench's table

COLUMNS = ("index", "question", "A", "B", "answer", "image")


def picture(color: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), color).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def table(rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, delimiter="\t", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({"question": "What?", "A": "red", "B": "blue", "answer": "A", **row} for row in rows)
    return text.getvalue().encode()


def pictures_asked(folder: Path, rows: list[dict[str, Any]]) -> list[Any]:
    """The picture of each row, or its error."""
    (folder / "t.tsv").write_bytes(table(rows))
    flags = ["--model-path", "x", "--question-file", str(folder / "t.tsv"), "--answers-file", "x"]
    items = model_vqa_mmbench.TASK.read(evaluate.build_parser(model_vqa_mmbench.TASK).parse_args(flags))
    return [item.images[0] if hasattr(item, "images") else item.error for item in items]


@pytest.mark.parametrize("space", [" ", "\n", "\r\n", "\t", "  \n"], ids=repr)
def test_white_space_is_no_part_of_base64(folder: Path, space: str) -> None:
    whole = picture("red")
    expected = base64.b64decode(whole)
    split = space.join(whole[start : start + 76] for start in range(0, len(whole), 76)) + space
    assert pictures_asked(folder, [{"index": 1, "image": whole}, {"index": 2, "image": split}]) == [expected] * 2


def test_a_picture_may_be_named_by_the_index_of_its_row(folder: Path) -> None:
    red, blue = picture("red"), picture("blue")
    rows = [{"index": 1_000_007, "image": "7"}, {"index": 7, "image": red}, {"index": 9, "image": blue},
            {"index": 2_000_007, "image": "7"}, {"index": 8, "image": "5"}, {"index": 4, "image": "1000007"},
            {"index": 6, "image": "6"}, {"index": 3, "image": ""}]  # fmt: skip
    found = pictures_asked(folder, rows)
    assert found[:4] == [base64.b64decode(red), base64.b64decode(red), base64.b64decode(blue), base64.b64decode(red)]
    for error, expected in zip(found[4:], ["row 5, which the table lacks", "refers to row 7", "refers to row 6",
                                           "has no picture"], strict=True):  # fmt: skip
        assert expected in error


@pytest.mark.parametrize("answers", ["no column", "empty cells"])
def test_a_table_without_answers_is_asked_and_makes_its_sheet(
    folder: Path, answers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from openpyxl import load_workbook

    columns = tuple(name for name in COLUMNS if name != "answer" or answers == "empty cells")
    rows = [{"index": index, "image": picture("red"), "answer": ""} for index in (1, 2, 1_000_001)]
    replies = ["=A", "B \ud83d\x07", "#N/A"]  # a formula, an error and characters that no sheet may hold: all are text
    code, lines = ask(model_vqa_mmbench, folder, table(rows, columns))
    assert code == 0 and len(lines) == 3
    path = folder / "answers.jsonl"
    path.write_text(
        "".join(json.dumps({**line, "text": reply}) + "\n" for line, reply in zip(lines, replies, strict=True))
    )
    data = (folder / "questions.json").rename(folder / "t.tsv")
    flags = ["score", "mmbench", "--data", str(data), "--answers", str(path)]
    capsys.readouterr()
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "test split" in error and "--upload" in error
    assert main([*flags, "--upload", str(folder / "up")]) == 0
    assert "has no answers" in capsys.readouterr().out
    header, *rows_of_cells = load_workbook(folder / "up" / "mmbench_upload.xlsx").active.rows
    place = [cell.value for cell in header].index("prediction")
    predictions = [row[place] for row in rows_of_cells]
    assert [(cell.value, cell.data_type) for cell in predictions] == [("=A", "s"), ("B ", "s"), ("#N/A", "s")]


def test_the_sheet_without_openpyxl_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.tsv").write_bytes(table([{"index": 1, "image": picture("red")}]))
    (folder / "a.jsonl").write_text('{"question_id": 1, "text": "A"}\n')
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    flags = ["score", "mmbench", "--data", str(folder / "t.tsv"), "--answers", str(folder / "a.jsonl")]
    assert main(flags) == 0
    assert main([*flags, "--upload", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "pip install 'vlm-pruner[mmbench]'" in error


# --- TextVQA's OCR line

OCR = "what brand?\nReference OCR token: X, Y\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("name", "config", "is_next"),
    [
        ("llava-v1.6-vicuna-7b", {"image_aspect_ratio": "anyres"}, True),
        ("mine", {"image_aspect_ratio": "anyres"}, True),
        ("mine", {"model_type": "llava_next"}, True),
        ("runs-1.6/llava-v1.5-7b", {"image_aspect_ratio": "pad"}, False),
        ("llava-v1.6-vicuna-7b", {"image_aspect_ratio": "pad"}, False),
        ("runs-1.6/llava-v1.5-7b", None, False),
        ("llava-v1.6-vicuna-7b", None, True),
    ],
)
def test_the_ocr_line_goes_by_what_the_checkpoint_is(
    folder: Path, name: str, config: dict[str, Any] | None, is_next: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model" / name).mkdir(parents=True)
    if config is not None:
        (folder / "model" / name / "config.json").write_text(json.dumps(config))
    questions = folder / "q.jsonl"
    questions.write_text(json.dumps({"question_id": "a", "image": "a.png", "text": OCR}))
    flags = ["--model-path", str(folder / "model" / name), "--question-file", str(questions), "--answers-file", "x"]
    args = evaluate.build_parser(model_vqa_loader.TASK).parse_args([*flags, "--is_textvqa"])
    (item,) = model_vqa_loader.read(args)
    told = "is not LLaVA-1.6, so TextVQA's OCR line stays" in capsys.readouterr().err
    assert ("OCR" in item.asked) == told == (not is_next) and options.is_llava_next(args.model_path) == is_next
