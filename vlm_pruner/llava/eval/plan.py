"""The commands of a benchmark script: listing them, and running them in this process.

A script calls its interpreter through $VENV_PYTHON. With a stub that only records its arguments, the script lists what
it would run. The mini benchmarks are made right away, because the script then reads their files.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TextIO

from vlm_pruner.console import one_line

_RECORDER = """#!/bin/sh
case "$2" in playground.*) exec "$REAL_PYTHON" "$@" ;; esac
printf '%s\\0' "$#" "$@" >> "$0.plan"
"""


# Modules whose `main(arguments) -> exit code` can share this process; accelerate's launcher cannot.
_OURS = ("llava.", "vlm_pruner.")
_READABLE = 300  # characters of a message


@dataclass(frozen=True)
class Plan:
    """commands: the arguments of each interpreter call, in order. problem: why the script stopped, if it did."""

    commands: tuple[tuple[str, ...], ...]
    problem: str = ""


def plan_of(script: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """What `bash SCRIPT...` would run."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Path(folder, "python")
        recorder.write_text(_RECORDER, encoding="utf-8")
        recorder.chmod(0o755)
        variables = {**environment, "VENV_PYTHON": str(recorder), "REAL_PYTHON": sys.executable}
        done = subprocess.run(["bash", *script], env=variables, capture_output=True, text=True)
        recorded = Path(f"{recorder}.plan")
        words = recorded.read_bytes().decode("utf-8", "surrogateescape") if recorded.exists() else ""
    said = " ".join(done.stderr.split()) or f"{script[0]} stopped with exit code {done.returncode}"
    return Plan(tuple(_commands(words)), said if done.returncode else "")


def finished(plan: Plan) -> Path | None:
    """The result file of the plan's scorer, if it exists and is complete."""
    named = [after for command in plan.commands for word, after in pairwise(command) if word == "--json"]
    for path in map(Path, named[-1:]):
        with contextlib.suppress(OSError, ValueError):
            if "headline" in json.loads(path.read_text(encoding="utf-8")):
                return path
    return None


def execute(command: Sequence[str]) -> str:
    """Runs `python COMMAND...`; returns the error as one line, or "".

    The stdout of our own commands, such as a scorer's table, is dropped: its numbers are in the result file.
    """
    if command[0] != "-m" or not command[1].startswith(_OURS):
        code = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL).returncode
        return f"exit code {code} of {' '.join(command[:2])}" if code else ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(_Both(sys.stderr, said)):
        try:
            code = int(import_module(command[1]).main(list(command[2:])) or 0)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except Exception as error:  # a defect in one benchmark must not cost the others
            traceback.print_exc()
            return f"{type(error).__name__}: {one_line(error)}"
    return _essence(said.getvalue()) or f"exit code {code} of {command[1]}" if code else ""


def _essence(said: str) -> str:
    """The last lines of an output that fit one readable line; progress bars are dropped."""
    lines = [line.split("\r")[-1].strip() for line in said.strip().split("\n")]
    chosen: list[str] = []
    for line in reversed(lines):
        if chosen and len(" ".join([line, *chosen])) > _READABLE:
            break
        chosen.insert(0, line)
    return " ".join(chosen).strip()


class _Both(io.TextIOBase):
    """Writes to two streams."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self.streams = (first, second)

    def write(self, text: str) -> int:
        for stream in self.streams:
            stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in self.streams:
            stream.flush()


def _commands(words: str) -> Iterator[tuple[str, ...]]:
    """Each command is its number of arguments followed by the arguments, all ended by NUL."""
    pieces = iter(words.split("\0")[:-1])
    for count in pieces:
        yield tuple(next(pieces) for _ in range(int(count)))
