"""What people have in their files: every scorer, through both doors, on answers and labels of every broken kind.

A broken file is one line that names it and exit code 2; what can be scored all the same is counted and told.
"""

from __future__ import annotations

import copy
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llava.eval import (
    convert_okvqa_questions,
    evaluate,
    model_vqa_loader,
    model_vqa_mmbench,
    model_vqa_ocrbench,
    model_vqa_okvqa,
    model_vqa_science,
)  # fmt: skip
from llava.eval.questions import Question
from playground.mini import benchmarks
from vlm_pruner import scoring
from vlm_pruner.cli import main

COUNT = 4
ALL = list(scoring.MODULES)
TASKS = {"scienceqa": model_vqa_science, "mmbench": model_vqa_mmbench, "ocrbench": model_vqa_ocrbench,
         "okvqa": model_vqa_okvqa}  # fmt: skip
REFUSE_UNKNOWN = ("pope", "mme", "textvqa", "okvqa")  # where the official scripts stop, too
# benchmark -> the field's command, and its flags with paths below the benchmark's folder
COMMANDS = {
    "gqa": ("eval_gqa", ["--questions", "data/testdev_balanced_questions.json"]),
    "scienceqa": ("eval_science_qa", ["--base-dir", "."]),
    "textvqa": ("eval_textvqa", ["--annotation-file", "TextVQA_0.5.1_val.json"]),
    "pope": ("eval_pope", ["--annotation-dir", "coco", "--question-file", "llava_pope_test.jsonl"]),
    "mme": ("eval_mme", ["--annotation-dir", "."]),
    "mmbench": ("eval_mmbench", ["--annotation-file", "mmbench_dev_20230712.tsv"]),
    "ocrbench": ("eval_ocrbench", ["--annotation-file", "OCRBench/OCRBench.json"]),
    "seed": ("eval_seed", ["--annotation-file", "SEED-Bench.json"]),
    "okvqa": ("eval_okvqa", ["--annotation-file", "mscoco_val2014_annotations.json"]),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine benchmarks with a few questions each, and an answer file beside each."""
    root = tmp_path_factory.mktemp("data")
    benchmarks.write(root, [scoring.needs(name).folder for name in ALL], count=COUNT)
    for name in ALL:
        task, needs = TASKS.get(name, model_vqa_loader).TASK, scoring.needs(name)
        questions = root / needs.folder / needs.questions.path
        flags = ["--model-path", "x", "--question-file", str(questions), "--answers-file", "x"]
        items = task.read(evaluate.build_parser(task).parse_args(flags))
        lines = [{"question_id": i.question_id, "prompt": i.prompt, task.reply_field: "yes"} for i in items]
        assert all(isinstance(item, Question) for item in items)
        write(root / needs.folder / "answers.jsonl", lines)
    return root


@pytest.fixture(params=ALL)
def benchmark(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(whole: Path, benchmark: str, tmp_path: Path) -> Path:
    """The benchmark's folder, free to be changed."""
    name = scoring.needs(benchmark).folder
    ignored = shutil.ignore_patterns("*.png", "*.jpg")
    return Path(shutil.copytree(whole / name, tmp_path / name, ignore=ignored))


def write(path: Path, lines: list[Any]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reply_field(benchmark: str) -> str:
    return TASKS.get(benchmark, model_vqa_loader).TASK.reply_field


def score(benchmark: str, folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    out = folder / "score.json"
    flags = ["--data", str(folder), "--answers", str(folder / "answers.jsonl"), "--json", str(out), *more]
    code = main(["score", benchmark, *flags])
    return code, json.loads(out.read_text(encoding="utf-8")) if code == 0 else {}


def field_score(benchmark: str, folder: Path, *more: str) -> int:
    module, flags = COMMANDS[benchmark]
    paths = [word if word.startswith("--") else str(folder / word) for word in flags]
    command = importlib.import_module(f"llava.eval.{module}")
    return command.main([*paths, "--result-file", str(folder / "answers.jsonl"), *more])


def check_refused(benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str], *expected: str) -> None:
    """Both doors: exit code 2, and one line that says what is expected."""
    for door in (score, field_score):
        done = door(benchmark, folder)
        code, error = done if isinstance(done, int) else done[0], capsys.readouterr().err
        assert code == 2 and error.count("\n") == 1, error
        assert all(part in error for part in expected), error


def test_complete_answers_are_told_of_nothing(benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, result = score(benchmark, folder)
    coverage = result["coverage"]
    assert code == 0 and coverage["questions"] == coverage["replies"] > 1
    assert not any(coverage[name] for name in ("missing", "repeated", "unknown", "failed", "strayed"))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    partial = {"ocrbench": "not 1000", "mme": "no files of"}  # the mini benchmarks are not the whole ones
    assert all(partial.get(benchmark, "?") in note for note in notes)
    assert field_score(benchmark, folder) == 0


@pytest.mark.parametrize("reply", [None, ["yes"], {"text": "yes"}, 7, True, ...], ids=repr)
def test_a_reply_that_is_no_text_is_refused_or_counted_as_failed(
    benchmark: str, folder: Path, reply: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, name = read(folder / "answers.jsonl"), reply_field(benchmark)
    lines[1] = {key: value for key, value in {**lines[1], name: reply}.items() if value is not ...}
    write(folder / "answers.jsonl", lines)
    check_refused(benchmark, folder, capsys, f"1 of {len(lines)} items failed", "line 2")
    code, result = score(benchmark, folder, "--allow-errors", "1")
    assert code == 0 and result["failed"] == result["coverage"]["failed"] == 1
    assert "count as empty replies" in capsys.readouterr().out
    write(folder / "answers.jsonl", [*lines[:1], {**lines[1], name: ""}, *lines[2:]])
    assert score(benchmark, folder)[1]["metrics"] == result["metrics"]


def test_missing_repeated_and_unknown_replies_are_counted(
    benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = read(folder / "answers.jsonl")
    write(folder / "answers.jsonl", [*lines[1:], lines[-1]])
    code, result = score(benchmark, folder)
    coverage, shown = result["coverage"], capsys.readouterr().out
    assert code == 0 and coverage["missing"] == 1 and coverage["repeated"] == 1, "one does not hide the other"
    assert coverage["questions"] == coverage["replies"] == len(lines)
    assert f"note: 1 of {len(lines)} questions have no reply" in shown
    assert f"note: 1 of {len(lines)} replies answer a question once more" in shown
    write(folder / "answers.jsonl", [*lines, {**lines[0], "question_id": 987654321}])
    if benchmark in REFUSE_UNKNOWN:
        return check_refused(benchmark, folder, capsys, "987654321")
    code, result = score(benchmark, folder)
    assert code == 0 and result["coverage"]["unknown"] == 1
    assert "1 of" in (shown := capsys.readouterr().out) and "answer no question of the benchmark" in shown


def test_answers_to_other_questions_are_noticed(
    benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids exist, the questions under them are others: one is told, most of them are refused."""
    lines = read(folder / "answers.jsonl")
    other = "Who sings the song that nobody asked about?\nAnswer the question using a single word or phrase."
    write(folder / "answers.jsonl", [{**lines[0], "prompt": other}, *lines[1:]])
    if benchmark in ("textvqa", "mme"):  # the question is part of the key
        check_refused(benchmark, folder, capsys, "that nobody asked about")
    else:
        code, result = score(benchmark, folder)
        assert code == 0 and result["coverage"]["strayed"] == 1
        assert "are answers and data of the same release?" in capsys.readouterr().out
    write(folder / "answers.jsonl", [{**line, "prompt": other} for line in lines])
    if benchmark == "okvqa":  # only the whole folder has the questions
        assert score(benchmark, folder)[0] == 2
    else:
        check_refused(benchmark, folder, capsys, "that nobody asked about")


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda labels: labels[1:], "labels"),
        (lambda labels: [*labels, labels[0]], "labels"),
        (lambda labels: [{**labels[0], "image": "COCO_val2014_000000000001.jpg"}, *labels[1:]], "differ at question 1"),
        (lambda labels: [*labels[:-1], {**labels[-1], "text": "Is there a unicorn?"}], "a unicorn?"),
    ],
    ids=["fewer", "more", "another picture", "another object"],
)
@pytest.mark.parametrize("benchmark", ["pope"], indirect=True)
def test_pope_labels_of_another_release_are_refused(
    benchmark: str, folder: Path, edit: Any, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((folder / "coco").iterdir()):
        before = path.read_bytes()
        write(path, edit(read(path)))
        check_refused(benchmark, folder, capsys, expected, "e3e39262c85a6a83f26cf5094022a782cb0df58d")
        path.write_bytes(before)


@pytest.mark.parametrize("benchmark", ["okvqa"], indirect=True)
def test_okvqa_annotations_of_other_pictures_are_refused(
    benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "mscoco_val2014_annotations.json"
    document = json.loads(path.read_text())
    question = read(folder / "okvqa_val.jsonl")[0]
    write(folder / "okvqa_val.jsonl", [{**question, "image": "val2014/COCO_val2014_000000000007.jpg"}])
    for annotation in document["annotations"]:
        annotation["image_id"] = 8
    path.write_text(json.dumps(document))
    assert score(benchmark, folder)[0] == 2
    assert "about picture 7, and the annotations are about 8" in capsys.readouterr().err


def files_of(benchmark: str, folder: Path) -> list[Path]:
    """The answer file and every file that the scorer reads."""
    needs = scoring.needs(benchmark)
    named = [folder / file.path for file in (needs.questions, *needs.labels)]
    named = [file for path in named for file in ([path] if path.is_file() else sorted(path.rglob("*.txt"))[:1])]
    unread = {"llava_gqa_testdev_balanced.jsonl", "llava_test_CQM-A.json", "llava_textvqa_val_v051_ocr.jsonl",
              "llava_mme.jsonl", "llava-seed-bench.jsonl"}  # fmt: skip
    return [folder / "answers.jsonl", *(path for path in named if path.name not in unread)]


DEEP = "[" * 100_000
BROKEN = {
    "latin-1": lambda text: ("é" + text).encode("latin-1", "replace"),
    "utf-16": lambda text: text.encode("utf-16"),
    "cut": lambda text: text.rstrip().encode()[:-7],
    "empty": lambda text: b"",
    "binary": lambda text: bytes(range(256)),
    "nested": lambda text: DEEP.encode(),
    "digits": lambda text: b"9" * 10_000,
    "list": lambda text: b"[]",
    "list of text": lambda text: b'["x"]',
    "text": lambda text: b'"x"',
    "null": lambda text: b"null",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_one_line(benchmark: str, folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for path in files_of(benchmark, folder):
        before = path.read_bytes()
        path.write_bytes(BROKEN[kind](before.decode()))
        if benchmark == "okvqa" and path.name == "okvqa_val.jsonl":
            if kind not in ("empty", "cut"):
                assert score(benchmark, folder)[0] == 2 and capsys.readouterr().err.count("\n") == 1
        elif kind == "cut" and path.suffix == ".tsv":
            code = score(benchmark, folder)[0]  # rows are whole: a shorter table
            assert code in (0, 2) and capsys.readouterr().err.count("\n") == (code == 2)
        else:
            check_refused(benchmark, folder, capsys, path.name)
        path.write_bytes(before)


@pytest.mark.parametrize("kind", BROKEN)
def test_check_data_on_a_broken_file_is_one_line(
    benchmark: str, folder: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for picture in scoring.needs(benchmark).pictures:
        (folder / picture).mkdir(parents=True, exist_ok=True)
    for path in files_of(benchmark, folder)[1:]:
        before = path.read_bytes()
        path.write_bytes(BROKEN[kind](before.decode()))
        code = main(["check-data", benchmark, "--data", str(folder.parent)])
        error = capsys.readouterr().err
        assert code in (0, 1, 2) and error.count("\n") == (code == 2), error
        path.write_bytes(before)


@pytest.mark.parametrize("kind", BROKEN)
def test_converting_a_broken_file_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = json.dumps({"questions": [{"image_id": 1, "question": "What?", "question_id": 1}]})
    (tmp_path / "q.json").write_bytes(BROKEN[kind](text))
    flags = ["--questions", str(tmp_path / "q.json"), "--out", str(tmp_path / "out.jsonl")]
    assert convert_okvqa_questions.main(flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "q.json" in error and not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("benchmark", ["pope"], indirect=True)
def test_the_table_of_a_broken_result_is_one_line(
    benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = {"config": {"model_path": "x", "method": {"name": "random", "keep_tokens": 64}}}
    (folder / "answers.jsonl.meta.json").write_text(json.dumps(run))
    whole = score(benchmark, folder)[1]
    path = folder / "result.json"
    capsys.readouterr()
    for content in [whole, *variants(whole, 4)]:
        path.write_text(json.dumps(content), encoding="utf-8")
        code = main(["table", str(path)])
        error = capsys.readouterr().err
        assert code in (0, 2) and "Traceback" not in error, error
        assert code == 0 or error.count("\n") == 1, error
    for kind in BROKEN.values():
        path.write_bytes(kind(json.dumps(whole)))
        assert main(["table", str(path)]) == 2 and capsys.readouterr().err.count("\n") == 1


def test_a_byte_order_mark_is_read_over(benchmark: str, folder: Path) -> None:
    expected = score(benchmark, folder)
    for path in files_of(benchmark, folder):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert score(benchmark, folder) == expected and expected[0] == 0


def variants(value: Any, depth: int = 4) -> Iterator[Any]:
    """The document with one value, on the way to the first entry, of every other kind or left out."""
    yield from (other for other in (None, [], {}, "x", 7, [None], {"x": None}) if other != value)
    if not depth or not isinstance(value, dict | list) or not value:
        return
    for key in [0] if isinstance(value, list) else list(value)[:12]:
        for part in variants(value[key], depth - 1):
            changed = copy.copy(value)
            changed[key] = part
            yield changed
        if isinstance(value, dict):
            yield {name: part for name, part in value.items() if name != key}


def test_json_of_another_shape_is_one_line_or_scored(
    benchmark: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value of every other kind, in every file: never a traceback, and never an answer of the last resort."""
    for path in files_of(benchmark, folder):
        if path.suffix not in (".json", ".jsonl"):
            continue
        text = path.read_text(encoding="utf-8")
        lines = path.suffix == ".jsonl" or path.parent.name == "coco"
        for changed in variants(json.loads(text.splitlines()[0] if lines else text), 2 if lines else 4):
            rest = "\n" + "\n".join(text.splitlines()[1:]) if lines else ""
            path.write_text(json.dumps(changed) + rest, encoding="utf-8")
            code = score(benchmark, folder)[0]
            error = capsys.readouterr().err
            assert code in (0, 2) and error.count("\n") == (code == 2), (path.name, error)
            assert "'s form (" not in error, (path.name, error)
        path.write_text(text, encoding="utf-8")


def test_half_an_emoji_is_no_reason_to_stop(benchmark: str, folder: Path) -> None:
    lines, name = read(folder / "answers.jsonl"), reply_field(benchmark)
    write(folder / "answers.jsonl", [{**line, name: "yes \ud83d"} for line in lines])
    upload = ["--upload", str(folder / "up")] if benchmark in ("mmbench", "seed") else []
    assert score(benchmark, folder, "--items", str(folder / "items.jsonl"), *upload)[0] == 0
    (folder / "items.jsonl").read_bytes().decode("utf-8")


def test_the_tilde_is_the_home_folder(
    benchmark: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outputs = ["--json=~/out/score.json", "--items=~/out/items.jsonl"]
    assert main(["score", benchmark, "--data=~", "--answers=~/answers.jsonl", *outputs]) == 0
    module, flags = COMMANDS[benchmark]
    command = importlib.import_module(f"llava.eval.{module}")
    paths = [
        f"{flag}={'~' if path == '.' else f'~/{path}'}" for flag, path in zip(flags[::2], flags[1::2], strict=True)
    ]
    assert command.main([*paths, "--result-file=~/answers.jsonl", "--json=~/out/other.json"]) == 0
    assert (folder / "out" / "score.json").is_file() and (folder / "out" / "other.json").is_file()
    assert not list((tmp_path / "here").iterdir())


def test_check_data_tells_of_another_release(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "--data", str(whole)]) == 0
    shown = capsys.readouterr().out
    for name in ALL:
        for file in (scoring.needs(name).questions, *scoring.needs(name).labels):
            if file.count:
                assert f"{whole / scoring.needs(name).folder / file.path} has " in shown
                assert f"the release of the published scores has {file.count}: {file.source}" in shown
