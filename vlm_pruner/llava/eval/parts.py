"""Part files: each process's answers until they are merged into the answer file.

Parts survive a kill. Any later run of the same configuration takes them over first, with any number of processes.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from vlm_pruner.linefile import sidecar_of
from vlm_pruner.llava.eval.answers import AnswerFile, index_of
from vlm_pruner.llava.eval.processes import Team


def part_of(answers: str | Path, team: Team) -> Path:
    """The file that this process appends to."""
    return Path(f"{answers}.part{team.rank}of{team.size}")


def left_behind(answers: str | Path) -> list[Path]:
    return [Path(name) for name in sorted(glob.glob(f"{glob.escape(str(answers))}.part*of*[0-9]"))]


def merge(answers: str | Path, run: dict[str, Any], retry_errors: bool = False) -> AnswerFile:
    """Moves all parts into the answer file, in question order, and returns it closed.

    If it is killed midway, calling it again loses no line and repeats none.
    """
    parts = left_behind(answers)
    with AnswerFile(answers, run, retry_errors) as whole:
        for part in parts:
            with AnswerFile(part, run, retry_errors) as piece:
                whole.append([line for line in piece.lines if index_of(line) not in whole.done])
    for part in parts:
        part.unlink()
        sidecar_of(part).unlink(missing_ok=True)
    return whole
