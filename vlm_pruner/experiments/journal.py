"""Results on disk line by line, so that a run that was killed goes on where it stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Journal:
    """An append-only file of JSON lines whose first line says what the run was.

    Opening reads what an earlier run with the same header left; `records` has it, later lines included. A file with
    another header is set aside beside the new one (nothing computed is deleted), and `set_aside` names it. A last
    line that a killed run left half-written is dropped.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]):
        self.path = Path(path)
        self.header: dict[str, Any] = json.loads(json.dumps(header))
        self.records: list[dict[str, Any]] = []
        self.set_aside: Path | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self.path)
        if lines and lines[0] != self.header:
            self.set_aside = _set_aside(self.path)
            lines = []
        self.records = lines[1:]
        text = "".join(json.dumps(line) + "\n" for line in [self.header, *self.records])
        replacement = self.path.with_name(self.path.name + ".new")
        replacement.write_text(text, encoding="utf-8")
        os.replace(replacement, self.path)
        self._file = self.path.open("a", encoding="utf-8")
        return self

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records and hand them to the operating system at once."""
        lines = [dict(record) for record in records]
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        self.records += lines

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The file's lines up to the first that is not whole; none when the file is missing."""
    lines: list[dict[str, Any]] = []
    if not path.is_file():
        return lines
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _set_aside(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(other)
    return other


def say_how_it_starts(journal: Journal) -> None:
    if journal.set_aside:
        print(f"an unfinished run with other settings was set aside as {journal.set_aside}", file=sys.stderr)
    if journal.records:
        print(f"going on after {len(journal.records)} answers of a run that was stopped", file=sys.stderr)
