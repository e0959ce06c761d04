"""Locates the embedded model and its questions in a clone, with clear errors if they are missing."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from vlm_pruner.provenance import CLONE, ROOT

CHECKPOINT = ROOT / "playground" / "mini" / "checkpoint"
BENCHMARKS = ROOT / "playground" / "data" / "mini"
SCENE = (336, 336)  # pixels of every scene of its world
ONLY_ITS_OWN = (
    "the embedded model knows only the scenes of its own world (docs/mini.md), and this picture is not one: its "
    "answer means nothing; give --model for real pictures"
)


def embedded(model: str | Path) -> bool:
    """Whether the path is the embedded model's."""
    return Path(model).resolve() == CHECKPOINT


def check_checkpoint(model: Path) -> None:
    """Raises FileNotFoundError if the folder holds no checkpoint, before anything slow starts."""
    if not (model / "config.json").is_file():
        raise FileNotFoundError(
            f"no checkpoint in {model}: config.json is missing; pass --model DIR, or, for the embedded model, {CLONE}"
        )


def find_questions(data: Path | None) -> Path:
    """The question file below `data`, or the embedded world's, created on first use from a fixed seed."""
    if data is not None:
        return data / "mini" / "questions.jsonl"
    path = BENCHMARKS / "mini" / "questions.jsonl"
    if not path.is_file():
        _make_benchmarks()
    return path


def _make_benchmarks() -> None:
    if not (ROOT / "playground" / "mini" / "benchmarks.py").is_file():
        raise FileNotFoundError(
            f"no question files: {ROOT} is not a clone of the repository (playground/mini is missing); pass --data DIR "
            f"with mini/questions.jsonl and mini/images in it, or {CLONE}"
        )
    print("making the questions and pictures (once)", file=sys.stderr, flush=True)
    BENCHMARKS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCHMARKS, prefix=".unfinished-") as unfinished:
        command = [sys.executable, "-m", "playground.mini.benchmarks", "--only", "mini", "--out", unfinished]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise OSError(f"{' '.join(command[1:])} failed: {done.stderr.strip().splitlines()[-1:]}")
        _publish(Path(unfinished) / "mini", BENCHMARKS / "mini")


def _publish(made: Path, folder: Path) -> None:
    """Moves a finished folder to its name in one step. A process that made the same at the same time may be first."""
    try:
        made.rename(folder)
    except OSError:
        if not (folder / "questions.jsonl").is_file():
            raise
