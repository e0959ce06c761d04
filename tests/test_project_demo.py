"""The demo run, end to end, with a tiny model of random weights: 4 x 4 visual tokens, three decoder layers."""

from __future__ import annotations

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests import tiny_original
from vlm_pruner.cli import main
from vlm_pruner.commands import demo_run
from vlm_pruner.experiments import answering, mini
from vlm_pruner.report import results
from vlm_pruner.report.examples import SIDE

KINDS = ("existence", "attribute", "reading")
FILES = ("answers.jsonl", "kept.png", "results.json", "table.txt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An original-layout checkpoint folder as far as the command looks at it before loading."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "mini" / "images").mkdir(parents=True)
    lines = []
    for number in range(12):
        Image.new("RGB", (56, 56), (20 * number, 90, 200 - 15 * number)).save(
            folder / "mini" / "images" / f"{number}.png"
        )
        text = "is there a red circle?" if number % 2 else "is there a circle?"
        lines.append(
            {
                "question_id": number,
                "image": f"{number}.png",
                "text": f"{text}\nAnswer the question using a single word or phrase.",
                "kind": KINDS[number % 3],
                "answer": "yes",
            }
        )
    (folder / "mini" / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def answerer() -> Any:
    from vlm_pruner.experiments.llava_answerer import LlavaAnswerer

    # Random weights never end an answer, and four tokens tell two apart.
    return LlavaAnswerer(*tiny_original.parts(), max_new_tokens=4)


def arguments(checkpoint: Path, data: Path, out: Path, **changes: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo_run.add_arguments(parser)
    args = parser.parse_args(["--questions", "9", "--budgets", "8,5", "--batch-size", "4"])
    vars(args).update(model=checkpoint, data=data, out=out, **changes)
    return args


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, answerer: Any) -> Any:
    monkeypatch.setattr(type(answerer), "load", classmethod(lambda cls, path, device: answerer))
    return answerer


def test_the_command_writes_table_results_and_picture(
    checkpoint: Path, data: Path, tmp_path: Path, loaded: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert demo_run.run(arguments(checkpoint, data, tmp_path)) == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if "/" not in line)  # paths are as long as they are
    assert (tmp_path / "table.txt").read_text() in printed
    for name in ("dense", "random", "VLM-Pruner B=16", "VLM-Pruner"):
        assert any(line.startswith(name) for line in printed.splitlines())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    check_results(json.loads((tmp_path / "results.json").read_text()))
    with Image.open(tmp_path / "kept.png") as picture:
        assert picture.width > 3 * SIDE, "three panels"


def check_results(results: dict[str, Any]) -> None:
    assert {"date", "config", "environment", "n", "wall_seconds", "arms"} <= results.keys()
    assert results["n"] == 9 and results["config"]["seed"] == 0
    assert len(results["config"]["weights_sha256"]) == 64
    assert results["environment"]["versions"]["torch"] == torch.__version__
    assert "git" in results["environment"] and "hardware" in results["environment"]
    for cell in results["cells"]:
        assert cell["n"] == 9 and set(cell["kinds"]) == set(KINDS)
        assert set(cell["against"]) == (set() if cell["arm"] == "dense@16" else {"dense"})
    kept = [(arm["name"], arm["tokens"], arm["kept"]) for arm in results["arms"]]
    assert kept == [("dense", 16, 16)] + [
        (name, budget, budget) for budget in (8, 5) for name in ("random", "vlm-pruner-16", "vlm-pruner")
    ]
    for arm in results["arms"]:
        assert arm["seconds"] > 0 and arm["relative_time"] > 0
        assert arm["accounting"]["kept"] == [16, 16, arm["kept"]], "three layers, pruned before the third"
    dense, smallest = results["arms"][0], results["arms"][-1]
    assert smallest["kv_bytes"] < dense["kv_bytes"]


def test_the_cache_is_measured_as_it_lies_in_memory(answerer: Any, data: Path) -> None:
    """Two layers before the pruned one keep all tokens, the third keeps 5 of 16; every entry is 2 x 32 floats."""
    from vlm_pruner import CentrifugalPruner
    from vlm_pruner.experiments.questions import read_questions

    question = read_questions(data / "mini" / "questions.jsonl")[0]
    dense, pruned = (answerer.answer([question], m)[0] for m in (None, CentrifugalPruner(keep_tokens=5)))
    entry = 2 * 32 * 4
    assert dense.receipt is None and dense.kept == 16
    assert pruned.receipt.n_after == pruned.kept == 5
    prompt = answerer._length(question) - 1 + 16
    generated, rest = divmod(dense.kv_bytes - 3 * entry * prompt, 3 * entry)
    assert rest == 0 and 0 <= generated <= 15  # the last new token is never cached
    generated, rest = divmod(pruned.kv_bytes - entry * (3 * prompt - (16 - 5)), 3 * entry)
    assert rest == 0 and 0 <= generated <= 15


def test_a_batch_answers_as_single_questions_do(answerer: Any, data: Path) -> None:
    from vlm_pruner import CentrifugalPruner
    from vlm_pruner.experiments.questions import read_questions

    questions = read_questions(data / "mini" / "questions.jsonl")
    for method in (None, CentrifugalPruner(keep_tokens=6)):
        for batch in answerer.batches(questions, 5):
            together = [reply.text for reply in answerer.answer(batch, method)]
            assert together == [answerer.answer([question], method)[0].text for question in batch]
    assert answerer.model.get_model().method is None, "the model is dense again"


def test_the_questions_are_made_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the world's own command; a folder that a killed run left half-made is not mistaken for them."""
    from vlm_pruner.experiments.questions import kinds_of, read_questions

    monkeypatch.setattr(mini, "BENCHMARKS", tmp_path)
    (tmp_path / ".unfinished-killed" / "mini" / "images").mkdir(parents=True)
    with ThreadPoolExecutor() as both:  # two commands at once
        path, other = both.map(mini.find_questions, (None, None))
    questions = read_questions(path)
    assert len(questions) >= 300 and len(kinds_of(questions)) == 6
    with Image.open(questions[-1].image) as picture:
        assert picture.size == (336, 336)
    assert path == other and sorted(entry.name for entry in tmp_path.iterdir()) == [".unfinished-killed", "mini"]
    before = path.stat().st_mtime_ns
    assert mini.find_questions(None).stat().st_mtime_ns == before


def test_batches_hold_prompts_of_one_length(answerer: Any, data: Path) -> None:
    from vlm_pruner.experiments.questions import read_questions

    questions = read_questions(data / "mini" / "questions.jsonl")
    batches = answerer.batches(questions, 4)
    assert sorted(q.question_id for batch in batches for q in batch) == list(range(12))
    assert all(len(batch) <= 4 and len({q.text for q in batch}) == 1 for batch in batches)


def test_a_run_that_was_stopped_goes_on(
    checkpoint: Path, data: Path, tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Stopped in the middle: the answers so far are on disk, and the same command adds the rest only."""
    real, calls = loaded.answer, []

    def stop_after_twenty(batch: Any, method: Any) -> Any:
        if len(calls) == 20:
            raise KeyboardInterrupt
        calls.append(method)
        return real(batch, method)

    monkeypatch.setattr(loaded, "answer", stop_after_twenty)
    with pytest.raises(KeyboardInterrupt):
        demo_run.run(arguments(checkpoint, data, tmp_path))
    left = (tmp_path / "answers.unfinished.jsonl").read_text().splitlines()
    assert len(left) > 1 and not (tmp_path / "results.json").exists()
    monkeypatch.setattr(loaded, "answer", real)
    assert demo_run.run(arguments(checkpoint, data, tmp_path)) == 0
    assert f"going on after {len(left) - 1} answers" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_text().splitlines()[: len(left)] == left


def test_a_run_that_was_stopped_while_reporting_only_reports(
    checkpoint: Path, data: Path, tmp_path: Path, loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(results, "document", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo_run.run(arguments(checkpoint, data, tmp_path))
    monkeypatch.setattr(answering, "_records", lambda *arguments, **more: pytest.fail("all was answered before"))
    assert demo_run.run(arguments(checkpoint, data, tmp_path)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "nowhere"], "no checkpoint in nowhere: config.json is missing"),
        (["--questions", "0"], "--questions is 0; it must be at least 1"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--data", "nowhere"], "question file not found: nowhere"),
        (["--questions", "13"], "cannot draw 13 questions: there are 12"),
        (["--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    checkpoint: Path, data: Path, tmp_path: Path, changes: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    usual = ["--model", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "out"), "--questions", "9"]
    assert main(["demo-run", *usual, *changes]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists(), "nothing is written before everything was checked"


def test_the_picture_that_cannot_be_read_is_named(checkpoint: Path, data: Path, tmp_path: Path, loaded: Any) -> None:
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    (broken / "mini" / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png is not a picture"):
        demo_run.run(arguments(checkpoint, broken, tmp_path / "out", questions=12))
