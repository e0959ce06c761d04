"""Every reader of files, on damaged ones: a clear error or a result, never a crash, a hang or a heap of memory.

A few hundred damaged files in all; `VLM_PRUNER_FUZZ=5000 python -m pytest tests/test_fuzz.py` tries more.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llava.eval import model_vqa_loader
from llava.eval.evaluate import build_parser
from tests import checkpoints, llava_tiny
from tests.mutations import DEEP, damaged
from tests.test_eval_data import whole  # noqa: F401  (a fixture)
from vlm_pruner import asking, scoring
from vlm_pruner.asking.counting import open_counter
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.experiments.questions import read_questions
from vlm_pruner.frames import read_frames
from vlm_pruner.images import read_image
from vlm_pruner.report.html_data import read_results
from vlm_pruner.web.uploads import accept

CASES = int(os.environ.get("VLM_PRUNER_FUZZ", "300"))
SECONDS, MEGABYTES = 30, 600  # that one file may take
ROOT = Path(__file__).resolve().parents[1]


def survives(read: Callable[[], Any], what: str) -> str:
    """ "read" or "refused". Anything but a ValueError or OSError with a message is a defect of the reader."""
    began, before = time.perf_counter(), resident()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
        outcome = "read"
    except (ValueError, OSError) as error:
        assert str(error).strip(), f"{what}: {type(error).__name__} without a message"
        outcome = "refused"
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    assert time.perf_counter() - began < SECONDS, f"{what} took {time.perf_counter() - began:.0f} s"
    assert resident() - before < MEGABYTES, f"{what} took {resident() - before:.0f} MB"
    return outcome


def resident() -> float:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if status.exists() else 0.0


def try_all(path: Path, read: Callable[[], Any], share: float, first: int = 0) -> None:
    """Damages the file in CASES * share ways, one after the other."""
    content, outcomes = path.read_bytes(), []
    for seed in range(first, first + max(2, round(CASES * share))):
        path.write_bytes(damaged(content, seed))
        outcomes.append(survives(read, f"{path.name}, seed {seed}"))
    path.write_bytes(content)
    assert survives(read, path.name) == "read", "the undamaged file is refused"
    assert "refused" in outcomes, "no damage was noticed: is the file read at all?"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No reader of a damaged file opens a connection."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a reader of files opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    lines = [{"question_id": i, "image": "a.png", "text": "?", "kind": "k", "answer": "b"} for i in range(3)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_question_files_of_experiments(questions: Path) -> None:
    try_all(questions, lambda: read_questions(questions), 0.1)


def test_question_files_of_generators(questions: Path) -> None:
    """A broken line is a broken question, not the end."""
    task = model_vqa_loader.TASK
    flags = ["--model-path", "x", "--question-file", str(questions), "--answers-file", "x"]
    args = build_parser(task).parse_args(flags)
    content = questions.read_bytes()
    for seed in range(round(CASES * 0.05)):
        questions.write_bytes(damaged(content, seed))
        survives(lambda: task.read(args), f"questions, seed {seed}")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_pictures(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    llava_tiny.picture(1).resize((40, 30)).save(path, kind)
    try_all(path, lambda: (read_image(path), accept(path.read_bytes(), "a")), 0.04)


def test_animated_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    frames = [llava_tiny.picture(number).resize((20, 20)) for number in range(4)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    try_all(path, lambda: read_frames(path, 3), 0.05)


@pytest.mark.parametrize("name", scoring.MODULES)
def test_scorers(name: str, whole: Path, tmp_path: Path) -> None:  # noqa: F811
    """Annotations, questions and answers of all nine benchmarks."""
    needs = scoring.needs(name)
    folder = Path(
        shutil.copytree(whole / needs.folder, tmp_path / "data", ignore=shutil.ignore_patterns("*.png", "*.jpg"))
    )
    files = [folder / "answers.jsonl", *(folder / one for one in needs.files if (folder / one).is_file())]
    contents = {path: path.read_bytes() for path in files}
    for seed in range(max(4, round(CASES * 0.03))):
        path = files[seed % len(files)]
        path.write_bytes(damaged(contents[path], seed))
        survives(lambda: scoring.score(name, folder, folder / "answers.jsonl"), f"{name}: {path.name}, seed {seed}")
        path.write_bytes(contents[path])


def test_journals(tmp_path: Path) -> None:
    path, header = tmp_path / "journal.jsonl", {"model": "m", "arms": [1]}
    with Journal(path, header) as journal:
        journal.write([{"arm": "a", "n": number} for number in range(4)])
    content = path.read_bytes()

    def read() -> None:
        with Journal(path, header) as journal:
            assert all(isinstance(record, dict) for record in journal.records)

    for seed in range(round(CASES * 0.05)):
        path.write_bytes(damaged(content, seed))
        survives(read, f"journal, seed {seed}")


def test_results_for_the_report(tmp_path: Path) -> None:
    shutil.copy(ROOT / "fig" / "data" / "bench.json", tmp_path / "bench.json")
    try_all(tmp_path / "bench.json", lambda: read_results([tmp_path / "bench.json"]), 0.05)
    compare = json.loads((ROOT / "fig" / "data" / "compare.json").read_text())
    compare["items"] = compare["items"][:3]
    (tmp_path / "results.json").write_text(json.dumps(compare))
    asked = {name: compare["items"][0][name] for name in ("benchmark", "question_id")}
    answers = [{"header": 1}, {"arm": compare["arms"][0]["key"], **asked, "text": "a", "correct": True, "kept": [1, 2]}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in answers))
    for name in ("results.json", "answers.jsonl"):
        try_all(tmp_path / name, lambda: read_results([tmp_path]), 0.05)


def test_configurations_and_weights_in_the_original_layout(tmp_path: Path) -> None:
    folder = llava_tiny.write_original(tmp_path / "model")
    llava_tiny.write_tokenizer(folder)
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        try_all_of(path, lambda: asking.load(folder), 0.15 / 6)
    try_all_of(folder / "config.json", lambda: open_counter(folder), 0.02)


@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl"])
def test_configurations_and_weights_of_transformers(family: str, tmp_path: Path) -> None:
    folder = checkpoints.write(tmp_path / "model", family)
    for path in sorted(one for one in folder.iterdir() if one.is_file()):
        try_all_of(path, lambda: asking.load(folder), 0.1 / 6)


def try_all_of(path: Path, read: Callable[[], Any], share: float) -> None:
    """As `try_all`; some damage to a checkpoint changes a number that is right, too."""
    content = path.read_bytes()
    for seed in range(max(2, round(CASES * share))):
        path.write_bytes(damaged(content, seed))
        survives(read, f"{path.name}, seed {seed}")
    path.write_bytes(content)


def test_json_nested_a_thousand_deep(tmp_path: Path, questions: Path) -> None:
    folder = llava_tiny.write_original(tmp_path / "model")
    for path, read in (
        (folder / "config.json", lambda: asking.load(folder)),
        (tmp_path / "results.json", lambda: read_results([tmp_path])),
        (questions, lambda: read_questions(questions)),
    ):
        path.write_text(DEEP)
        assert survives(read, path.name) == "refused"


def test_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    """A pickle among the weights, and code that a configuration names: refused, and not executed."""
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "executed",))

    folder = llava_tiny.write_original(tmp_path / "model")
    llava_tiny.write_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    assert survives(lambda: asking.load(folder), "a pickle") == "refused"
    other = checkpoints.write(tmp_path / "other", "llava")
    config = json.loads((other / "config.json").read_text())
    config |= {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"},
        "model_type": "evil",
    }
    (other / "config.json").write_text(json.dumps(config))
    (other / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    assert survives(lambda: asking.load(other), "remote code") == "refused"
    assert not (tmp_path / "executed").exists()


def test_an_upload_is_not_written_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = io.BytesIO()
    Image.new("RGB", (5, 5)).save(data, "PNG")
    assert accept(data.getvalue(), "../../evil/name.png").name == "name.png"
    assert list(tmp_path.iterdir()) == []
