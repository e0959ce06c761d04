"""Several processes answer one question file: shares, part files, merging, and two real processes under accelerate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from eval_stub import StubEngine, stub_engine
from PIL import Image
from test_eval_engine import checkpoint, data  # noqa: F401  (fixtures)

from llava.eval import divided, evaluate, model_vqa_loader, parts
from llava.eval.answers import AnswerFile
from llava.eval.evaluate import build_parser
from llava.eval.processes import Team, this_process
from llava.eval.runner import Reply
from vlm_pruner.linefile import read_lines

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Eleven questions over one picture; the sixth picture is missing."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    lines = [{"question_id": n, "image": "a.png" if n != 5 else "none.png", "text": "?" * n} for n in range(11)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def flags_of(world: Path, *more: str, answers: str = "answers.jsonl") -> list[str]:
    paths = ["--model-path", "stub", "--image-folder", str(world / "images"), "--answers-file", str(world / answers)]
    return [*paths, "--question-file", str(world / "questions.jsonl"), *more]


def run(world: Path, *more: str, answers: str = "answers.jsonl") -> int:
    return evaluate.main(model_vqa_loader.TASK, flags_of(world, *more, answers=answers), stub_engine)


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that does not wait for the others, because there are none."""
    monkeypatch.setattr(Team, "__enter__", lambda team: team)
    monkeypatch.setattr(Team, "__exit__", lambda team, *exception: None)
    monkeypatch.setattr(Team, "wait", lambda team: None)
    return monkeypatch


def be(monkeypatch: pytest.MonkeyPatch, rank: int, size: int) -> None:
    for name, value in (("RANK", rank), ("WORLD_SIZE", size), ("LOCAL_RANK", rank)):
        monkeypatch.setenv(name, str(value))


def test_shares_are_disjoint_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    assert this_process() == Team()
    items = list(range(11))
    shares = [Team(rank, 3).share(items) for rank in range(3)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    be(monkeypatch, 1, 3)
    assert this_process() == Team(1, 3, 1)


@pytest.mark.parametrize("size", [2, 4, 13])
def test_the_merged_file_is_that_of_one_process(world: Path, apart: pytest.MonkeyPatch, size: int) -> None:
    """Threads play the processes, and do wait for each other; there may be more of them than questions."""
    assert run(world, "--allow-errors", "1") == 0
    barrier = threading.Barrier(size)
    apart.setattr(Team, "wait", lambda team: barrier.wait(60))
    me = threading.local()
    apart.setattr(evaluate, "this_process", lambda: me.team)

    def play(rank: int) -> int:
        me.team = Team(rank, size)
        return run(world, answers="shared.jsonl")

    with ThreadPoolExecutor(size) as pool:
        codes = list(pool.map(play, range(size)))
    assert codes == [1] + [0] * (size - 1), "the first process counts the failed item"
    assert (world / "shared.jsonl").read_bytes() == (world / "answers.jsonl").read_bytes()
    assert not parts.left_behind(world / "shared.jsonl")


@pytest.mark.parametrize("size", [2, 3, 13])
def test_processes_that_share_a_model_call_it_equally_often(world: Path, apart: pytest.MonkeyPatch, size: int) -> None:
    """Under ZeRO-3. One picture is missing and shares differ, yet no process waits for a call that never comes."""
    assert run(world, "--allow-errors", "1") == 0
    barrier = threading.Barrier(size)
    apart.setattr(Team, "wait", lambda team: barrier.wait(60))
    apart.setattr(divided, "check", lambda team: None)
    apart.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    me, calls = threading.local(), [0] * size
    apart.setattr(evaluate, "this_process", lambda: me.team)
    generate = StubEngine.generate

    def counted(engine: StubEngine, batch: Any) -> list[Reply]:
        calls[me.team.rank] += 1
        return generate(engine, batch)

    apart.setattr(StubEngine, "generate", counted)

    def play(rank: int) -> int:
        me.team = Team(rank, size)
        return run(world, "--batch-size", "2", answers="shared.jsonl")

    with ThreadPoolExecutor(size) as pool:
        assert list(pool.map(play, range(size))) == [1] + [0] * (size - 1)
    share = -(-11 // size)
    assert calls == [-(-share // 2)] * size
    assert (world / "shared.jsonl").read_bytes() == (world / "answers.jsonl").read_bytes()


def test_nothing_to_ask_is_no_call(world: Path, apart: pytest.MonkeyPatch) -> None:
    """Every picture is missing, so no process has anything that could stand in for a question."""
    (world / "images" / "a.png").unlink()
    items = model_vqa_loader.TASK.read(build_parser(model_vqa_loader.TASK).parse_args(flags_of(world)))
    assert divided.steps(StubEngine(world / "images"), items, Team(0, 2), 1) is None


def test_a_lost_share_is_not_taken_for_done(
    world: Path, apart: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be(apart, 0, 2)
    assert run(world, "--allow-errors", "9") == 1
    assert "5 are left; the same command continues" in capsys.readouterr().err


def test_parts_of_a_killed_run_are_taken_over_by_another_number_of_processes(
    world: Path, apart: pytest.MonkeyPatch
) -> None:
    run(world)
    (world / "shared.jsonl").touch()
    be(apart, 1, 2)
    run(world, answers="shared.jsonl")
    (part,) = parts.left_behind(world / "shared.jsonl")
    whole = part.read_bytes()
    part.write_bytes(whole[:-9])  # killed while writing its last line
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        apart.delenv(name)
    assert run(world, answers="shared.jsonl") == 1
    assert (world / "shared.jsonl").read_bytes() == (world / "answers.jsonl").read_bytes()
    assert not parts.left_behind(world / "shared.jsonl")


def test_merging_twice_writes_nothing_twice(world: Path) -> None:
    run(world)
    sidecar = json.loads((world / "answers.jsonl.meta.json").read_text())
    before = (world / "answers.jsonl").read_bytes()
    part = parts.part_of(world / "answers.jsonl", Team(0, 2))
    with AnswerFile(part, sidecar) as piece:
        piece.append(read_lines(world / "answers.jsonl")[::2])
    merged = parts.merge(world / "answers.jsonl", sidecar)
    assert merged.done == set(range(11)) and (world / "answers.jsonl").read_bytes() == before
    assert not part.exists() and not Path(f"{part}.meta.json").exists()


def test_parts_of_another_configuration_are_refused(
    world: Path, apart: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "answers.jsonl").touch()
    be(apart, 1, 2)
    run(world)
    be(apart, 0, 1)
    assert run(world, "--max_new_tokens", "9") == 2
    assert "max_new_tokens was 128, is 9" in capsys.readouterr().err
    assert len(parts.left_behind(world / "answers.jsonl")) == 1


def test_errors_of_a_process_say_which(
    world: Path, apart: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    be(apart, 1, 2)
    assert run(world, "--batch-size", "0") == 2
    assert "(process 1 of 2)" in capsys.readouterr().err


def test_two_processes_under_accelerate(checkpoint: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    """Real processes and the real engine, pruned; one process' file for comparison is made in this one."""
    pytest.importorskip("accelerate")
    flags = ["--model-path", str(checkpoint), "--image-folder", str(data), "--max_new_tokens", "3", "--device", "cpu"]
    flags += ["--question-file", str(data / "questions.jsonl"), "--sparse", "--keep_tokens", "64"]
    assert model_vqa_loader.main([*flags, "--answers-file", str(tmp_path / "one.jsonl")]) == 0
    stated = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    flags += ["--answers-file", str(tmp_path / "two.jsonl")]
    command = [*launch, *stated, "-m", "llava.eval.model_vqa_loader", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("6 of 6 questions answered") == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert not parts.left_behind(tmp_path / "two.jsonl")
