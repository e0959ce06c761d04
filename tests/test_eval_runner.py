"""The answer generators' shared run, with a stub in place of the model: resume, kills, faults, bad flags."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from eval_stub import StubEngine, stub_engine
from PIL import Image
from tqdm import tqdm

from llava.eval import evaluate, model_vqa_loader
from llava.eval.answers import AnswerFile
from llava.eval.questions import chunk
from vlm_pruner import linefile
from vlm_pruner.linefile import LineFileError

TESTS = Path(__file__).resolve().parent


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A question file of 24 questions over 4 pictures, and a fake checkpoint folder."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(4):
        Image.new("RGB", (8 + number, 8)).save(images / f"{number}.png")
    write_questions(tmp_path, [question(number) for number in range(24)])
    return tmp_path


def question(number: int, image: str | None = None) -> str:
    # Ids repeat on purpose, as MME's do.
    record = {"question_id": number // 2, "image": image or f"{number % 4}.png", "text": f"Question {'x' * number}?"}
    return json.dumps(record)


def write_questions(world: Path, lines: list[str]) -> None:
    (world / "questions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def flags(world: Path, *more: str, answers: str = "answers.jsonl") -> list[str]:
    paths = ["--model-path", "stub", "--image-folder", str(world / "images")]
    return [*paths, "--question-file", str(world / "questions.jsonl"), "--answers-file", str(world / answers), *more]


def run(world: Path, *more: str, answers: str = "answers.jsonl") -> int:
    return evaluate.main(model_vqa_loader.TASK, flags(world, *more, answers=answers), stub_engine)


def die_after(more: int, torn: bool, world: Path, answers: str) -> None:
    """A run in a forked process that kills itself when it has written `more` lines, or within the batch after them."""
    tqdm.set_lock(threading.RLock())  # shared with forked children: one killed while it holds it would block all
    write, written = linefile._write_all, 0

    def write_and_die(handle: int, data: bytes) -> None:
        nonlocal written
        if torn and written >= more:
            os.write(handle, data[: data.index(b"\n") + 20])
            os.kill(os.getpid(), signal.SIGKILL)
        write(handle, data)
        written += data.count(b"\n")
        if not torn and written >= more:
            os.kill(os.getpid(), signal.SIGKILL)

    linefile._write_all = write_and_die
    run(world, "--batch-size", "2", answers=answers)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answer_lines_have_llavas_fields_and_order(world: Path) -> None:
    assert run(world) == 0
    lines = read(world / "answers.jsonl")
    assert [line["question_id"] for line in lines] == [number // 2 for number in range(24)]
    assert list(lines[0]) == ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]
    assert lines[3]["text"] == f"{len(lines[3]['prompt'])} é 11x8"
    assert len({line["answer_id"] for line in lines}) == 24


@pytest.mark.parametrize("batch", [5, 8])
def test_batches_write_the_same_file(world: Path, batch: int) -> None:
    assert run(world) == run(world, "--batch-size", str(batch), answers="batched.jsonl") == 0
    assert (world / "answers.jsonl").read_bytes() == (world / "batched.jsonl").read_bytes()


def test_chunks_joined_are_the_whole(world: Path) -> None:
    run(world)
    for index in range(5):
        assert run(world, "--num-chunks", "5", "--chunk-idx", str(index), answers=f"part{index}.jsonl") == 0
    joined = b"".join((world / f"part{index}.jsonl").read_bytes() for index in range(5))
    assert joined == (world / "answers.jsonl").read_bytes()


def test_more_chunks_than_questions_leaves_the_last_empty() -> None:
    assert [chunk([1, 2, 3], 4, index) for index in range(4)] == [[1], [2], [3], []]


def test_limit_can_be_raised_by_a_second_run(world: Path) -> None:
    run(world)
    assert run(world, "--limit", "7", answers="limited.jsonl") == 0
    assert len(read(world / "limited.jsonl")) == 7
    assert run(world, answers="limited.jsonl") == 0
    assert (world / "answers.jsonl").read_bytes() == (world / "limited.jsonl").read_bytes()


@pytest.mark.parametrize("cut", [1, 7, 40, 200])
def test_a_torn_last_line_is_repaired(world: Path, cut: int) -> None:
    run(world)
    whole = (world / "answers.jsonl").read_bytes()
    (world / "answers.jsonl").write_bytes(whole[:-cut])
    assert run(world) == 0
    assert (world / "answers.jsonl").read_bytes() == whole


def test_a_finished_run_asks_nothing_again(world: Path) -> None:
    run(world)

    def refuse(args: object, method: object) -> StubEngine:
        raise AssertionError("the model was loaded although nothing is missing")

    assert evaluate.main(model_vqa_loader.TASK, flags(world), refuse) == 0


@pytest.mark.parametrize("torn", [False, True], ids=["after a line", "within a line"])
def test_killed_after_the_nth_line_the_file_is_that_of_an_undisturbed_run(world: Path, torn: bool) -> None:
    """Kills come by progress, not by the clock: after so many more lines, or halfway through the next batch."""
    run(world)
    answers, lines = world / "killed.jsonl", 0
    for more in (2, 4, 2, 6):
        process = multiprocessing.get_context("fork").Process(target=die_after, args=(more, torn, world, answers.name))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        lines += more
        assert answers.read_bytes().count(b"\n") == lines + torn, "half of a batch of two is a line and a torn one"
        lines += torn
    assert run(world, answers=answers.name) == 0
    assert answers.read_bytes() == (world / "answers.jsonl").read_bytes()


def test_a_killed_program_goes_on(world: Path) -> None:
    """The same with a whole program, as a user would run it, killed in the middle however fast the machine is."""
    run(world)
    command = [sys.executable, str(TESTS / "eval_stub.py"), *flags(world, answers="killed.jsonl")]
    environment = {**os.environ, "STUB_STOP_AFTER": "3", "PYTHONPATH": f"{TESTS.parent}"}
    answers = world / "killed.jsonl"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (answers.exists() and answers.stat().st_size):
        time.sleep(0.05)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(read(answers)) < 24
    assert (
        subprocess.run(command, env={**environment, "STUB_STOP_AFTER": "0"}, stderr=subprocess.DEVNULL).returncode == 0
    )
    assert answers.read_bytes() == (world / "answers.jsonl").read_bytes()


def test_another_configuration_is_refused_and_changes_nothing(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(world)
    before = (world / "answers.jsonl").read_bytes()
    assert run(world, "--max_new_tokens", "9") == 2
    error = capsys.readouterr().err
    assert "max_new_tokens was 128, is 9" in error and "choose another --answers-file" in error
    assert run(world, "--sparse", "--keep_tokens", "64") == 2
    assert "method was null" in capsys.readouterr().err
    assert (world / "answers.jsonl").read_bytes() == before


def test_answers_of_unknown_origin_are_refused(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(world)
    (world / "answers.jsonl.meta.json").unlink()
    assert run(world) == 2
    assert "no readable answers.jsonl.meta.json" in capsys.readouterr().err
    (world / "answers.jsonl").write_text('{"question_id": 1, "text": "yes"}\n{"question_id": 2, "text": "no"}\n')
    assert run(world) == 2
    assert "is not a line of this program" in capsys.readouterr().err


def test_the_sidecar_says_what_made_the_answers(world: Path) -> None:
    run(world, "--sparse", "--reduction_ratio", "0.889", "--seed", "5")
    sidecar = json.loads((world / "answers.jsonl.meta.json").read_text())
    assert sidecar["config"]["method"]["reduction_ratio"] == 0.889
    assert sidecar["config"]["method"]["name"] == "vlm-pruner"
    assert sidecar["seed"] == 5
    assert {"git", "versions", "hardware"} <= sidecar.keys()


FAULTS = {
    "missing.png": "does not exist",
    "corrupt.png": "damaged",
    "text.png": "not a picture",
    "../outside.png": "leaves the image folder",
    "/etc/hostname": "leaves the image folder",
}


@pytest.fixture
def faulty(world: Path) -> Path:
    """Ten questions, five with a bad picture, and two lines that are no questions."""
    Image.effect_noise((64, 64), 50).save(world / "images" / "corrupt.png")
    good = (world / "images" / "corrupt.png").read_bytes()
    (world / "images" / "corrupt.png").write_bytes(good[: len(good) // 2])
    (world / "images" / "text.png").write_text("not a picture")
    Image.new("RGB", (8, 8)).save(world / "outside.png")
    bad = [question(number, image) for number, image in enumerate(FAULTS, start=10)]
    write_questions(
        world, [*(question(number) for number in range(5)), *bad, '{"question_id": 7, "tex', '{"text": "?"}']
    )
    return world


def test_bad_items_are_recorded_and_the_run_goes_on(faulty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(faulty, "--batch-size", "3") == 1
    lines = read(faulty / "answers.jsonl")
    assert ["error" in line for line in lines] == [False] * 5 + [True] * 7
    for line, expected in zip(lines[5:10], FAULTS.values(), strict=True):
        assert expected in line["error"] and line["text"] == ""
    assert "question line 11" in lines[10]["error"] and "'text'" not in lines[10]["error"]
    assert "'image' is missing" in lines[11]["error"]
    error = capsys.readouterr().err
    assert "5 of 12 questions answered" in error and "7 failed (allowed: 0)" in error


def test_allowed_errors_exit_with_zero(faulty: Path) -> None:
    assert run(faulty, "--allow-errors", "6") == 1
    assert run(faulty, "--allow-errors", "7") == 0


def test_retry_errors_asks_only_what_failed_and_keeps_the_order(faulty: Path) -> None:
    run(faulty)
    Image.new("RGB", (9, 9)).save(faulty / "images" / "missing.png")
    assert run(faulty, "--retry-errors") == 1
    lines = read(faulty / "answers.jsonl")
    assert [line["metadata"]["index"] for line in lines] == list(range(12))
    assert "9x9" in lines[5]["text"] and sum("error" in line for line in lines) == 6


def test_a_retried_answer_takes_its_questions_place(world: Path) -> None:
    write_questions(world, [question(number, "late.png" if number == 2 else None) for number in range(6)])
    assert run(world) == 1
    Image.new("RGB", (9, 9)).save(world / "images" / "late.png")
    assert run(world, "--retry-errors") == 0
    lines = read(world / "answers.jsonl")
    assert [line["metadata"]["index"] for line in lines] == list(range(6)) and "9x9" in lines[2]["text"]


def test_a_model_error_is_not_turned_into_an_answer(world: Path) -> None:
    class Broken(StubEngine):
        def generate(self, batch: object) -> list:
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        evaluate.main(model_vqa_loader.TASK, flags(world), lambda args, method: Broken(world / "images"))
    assert (world / "answers.jsonl").read_bytes() == b""


def test_an_item_that_an_engine_makes_nothing_of_is_a_failure_and_no_empty_answer(world: Path) -> None:
    class Silent(StubEngine):
        def prepare(self, question: object) -> None:  # type: ignore[override]
            return None

    assert evaluate.main(model_vqa_loader.TASK, flags(world), lambda args, method: Silent(world / "images")) == 1
    assert {line["error"] for line in read(world / "answers.jsonl")} == {"unknown error"}


def test_a_full_disk_leaves_the_file_intact(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = {"question_id": 1, "metadata": {"index": 0}}
    with AnswerFile(world / "answers.jsonl", {"config": {}}) as answers:
        answers.append([line])
        monkeypatch.setattr("vlm_pruner.linefile._write_all", _disk_full)
        with pytest.raises(LineFileError, match=r"No space left on device.*1 lines are safe"):
            answers.append([{**line, "metadata": {"index": 1}}])
    assert read(world / "answers.jsonl") == [line]


def test_after_an_error_the_file_is_left_as_it_was_written(world: Path) -> None:
    """Sorting rewrites the file, which may fail for the same reason and would hide it."""
    lines = [{"question_id": number, "metadata": {"index": number}} for number in (2, 0, 1)]
    for error in (KeyboardInterrupt, OSError):
        (world / "answers.jsonl").unlink(missing_ok=True)
        with pytest.raises(error), AnswerFile(world / "answers.jsonl", {"config": {}}) as answers:
            answers.append(lines)
            raise error
        assert read(world / "answers.jsonl") == lines
    with AnswerFile(world / "answers.jsonl", {"config": {}}):
        pass
    assert [line["question_id"] for line in read(world / "answers.jsonl")] == [0, 1, 2]


def _disk_full(handle: int, data: bytes) -> None:
    os.write(handle, data[: len(data) // 2])
    raise OSError(28, "No space left on device")


def test_two_writers_of_one_file_are_refused(world: Path) -> None:
    with (
        AnswerFile(world / "answers.jsonl", {"config": {}}),
        pytest.raises(LineFileError, match="being written by another run"),
        AnswerFile(world / "answers.jsonl", {"config": {}}),
    ):
        pass


BAD_FLAGS = [
    (["--sparse", "--reduction_ratio", "1.0"], "reduction_ratio=1.0"),
    (["--sparse", "--reduction_ratio", "-0.1"], "reduction_ratio=-0.1"),
    (["--sparse", "--reduction_ratio", "0.5", "--keep_tokens", "64"], "exactly one"),
    (["--sparse", "--keep_tokens", "0"], "keep_tokens=0"),
    (["--sparse"], "--reduction_ratio"),
    (["--sparse", "--keep_tokens", "64", "--method", "vlmpruner"], "vlm-pruner"),
    (["--sparse", "--keep_tokens", "64", "--pruned_layer", "-1"], "layer"),
    (["--sparse", "--keep_tokens", "64", "--method", "random", "--threshold", "0.8"], "--threshold means nothing"),
    (["--keep_tokens", "64"], "--sparse"),
    (["--method", "random"], "--sparse"),
    (["--conv-mode", "vicuna"], "vicuna_v1"),
    (["--batch-size", "0"], "--batch-size 0"),
    (["--temperature", "0.5", "--batch-size", "2"], "--batch-size 1"),
    (["--chunk-idx", "3"], "--chunk-idx 3"),
    (["--image-folder", "nowhere"], "nowhere is not a folder"),
    (["--question-file", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    (["--answers-file", "/dev/null/answers.jsonl"], "cannot be written"),
]


@pytest.mark.parametrize(("more", "expected"), BAD_FLAGS, ids=[" ".join(more) for more, _ in BAD_FLAGS])
def test_bad_flags_are_one_line_before_anything_is_written(
    world: Path, capsys: pytest.CaptureFixture[str], more: list[str], expected: str
) -> None:
    assert run(world, *more) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (world / "answers.jsonl").exists()


def test_without_sparse_the_released_flags_warn_and_run_dense(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(world, "--reduction_ratio", "0.889", "--threshold", "0.8") == 0
    assert "no --sparse, so the model runs dense" in capsys.readouterr().err
    assert json.loads((world / "answers.jsonl.meta.json").read_text())["config"]["method"] is None


def test_argparse_errors_are_one_line(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(world, "--batch-size", "two")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
