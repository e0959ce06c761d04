"""The answer file: one JSON object per question, in order. A run can be killed at any moment and resumed.

An item's identity is its place in the question file (``metadata.index``), so a resumed run knows what is missing even
where question ids repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from vlm_pruner.linefile import Line, LineFile, read_lines


class AnswerFile(LineFile):
    """Context manager: opens for appending after repair, closes in question order.

    ``done`` holds the indices that need no more work, ``errors`` those of them that were recorded as failures.
    """

    def __init__(self, path: str | Path, run: Mapping[str, Any], retry_errors: bool = False) -> None:
        super().__init__(path, run, beside=True, flag="--answers-file", is_line=_is_answer)
        self.done: set[int] = set()
        self.errors: dict[int, str] = {}
        self._retry_errors = retry_errors

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ordered = sorted(self.lines, key=index_of)
        if kind is None and ordered != self.lines:
            self.replace(ordered)
        super().__exit__(kind, error, trace)

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        before = len(self.lines)
        super().append(lines)
        self._note(self.lines[before:])

    def _continue(self) -> None:
        super()._continue()
        if self._retry_errors and any("error" in line for line in self.lines):
            self.replace([line for line in self.lines if "error" not in line])
        self._note(self.lines)

    def _note(self, lines: Iterable[Line]) -> None:
        self.done.update(index_of(line) for line in lines)
        self.errors.update((index_of(line), line["error"]) for line in lines if "error" in line)


def finished(path: str | Path) -> set[int]:
    """Indices of the items that an answer file holds, read without opening it for writing."""
    return {index_of(line) for line in read_lines(path, _is_answer)}


def index_of(line: Mapping[str, Any]) -> int:
    return int(line["metadata"]["index"])


def _is_answer(line: Line) -> bool:
    metadata = line.get("metadata")
    return isinstance(metadata, dict) and isinstance(metadata.get("index"), int)
