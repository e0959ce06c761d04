"""Several processes: they give the answers of one, and end with the program that started them."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vlm_pruner.cli import main


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    records = []
    for processes in ("1", "2"):
        out = tmp_path / processes
        usual = ["--methods", "dense,random,visionzip,vlm-pruner", "--budget", "32", "--questions", "6"]
        usual += ["--batch-size", "3", "--resamples", "50"]
        assert main(["compare", *usual, "--processes", processes, "--out", str(out)]) == 0
        header, *lines = map(json.loads, (out / "answers.jsonl").read_text().splitlines())
        assert len(lines) == 4 * 6 and len(header["arms"]) == 4
        records.append(sorted(map(str, lines)))
    assert records[0] == records[1]


WORKERS = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from vlm_pruner.experiments.workers import end_with_parent
if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, multiprocessing.get_context(sys.argv[1]), end_with_parent)
    pool.submit(abs, 1).result()
    busy = [pool.submit(time.sleep, 600) for _ in range(2)]
    print("ready", flush=True)
    time.sleep(600)
"""


def killed(program: subprocess.Popen[str]) -> None:
    """Kills the program. Its output ends when nobody is left who could write to it: when its workers have ended."""
    program.kill()
    program.communicate(timeout=60)


@pytest.mark.parametrize("start", [way for way in ("spawn", "fork") if way in multiprocessing.get_all_start_methods()])
def test_workers_end_when_their_program_is_killed(start: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(WORKERS)
    program = subprocess.Popen([sys.executable, str(script), start], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None and program.stdout.readline() == "ready\n"
    killed(program)


def test_a_comparison_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    words = ["compare", "--methods", "dense", "--questions", "400", "--processes", "2", "--out", str(tmp_path)]
    words += ["--batch-size", "4"]
    program = subprocess.Popen([sys.executable, "-m", "vlm_pruner", *words], stdout=subprocess.PIPE, text=True)
    answers, ends = tmp_path / "answers.unfinished.jsonl", time.monotonic() + 120
    while not (answers.exists() and answers.read_text().count("\n") > 4) and time.monotonic() < ends:
        assert program.poll() is None
        time.sleep(0.2)
    killed(program)
    assert 4 < answers.read_text().count("\n") < 400, "it was killed between its first answers and its last"
