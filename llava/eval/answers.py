"""The answer file: one JSON object per line, appended in order, safe to kill at any moment and to resume.

An item's identity is its place in the question file (``metadata.index``), so a resumed run knows what is missing even
where question ids repeat. What the answers were made with lies beside the file in ``<answers>.meta.json``; a run with
another configuration is refused before anything is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from llava.eval.errors import UsageError

Line = dict[str, Any]


class AnswerFile:
    """Context manager: opens for appending after repair, closes in question order.

    ``done`` holds the indices that need no more work, ``errors`` those of them that were recorded as failures.
    """

    def __init__(self, path: str | Path, run: dict[str, Any], retry_errors: bool = False) -> None:
        self.path = Path(path)
        self.sidecar = Path(f"{path}.meta.json")
        self.done: set[int] = set()
        self.errors: dict[int, str] = {}
        self._run = run
        self._retry_errors = retry_errors
        self._handle: int | None = None
        self._size = 0
        self._last = -1
        self._in_order = True

    def __enter__(self) -> AnswerFile:
        try:
            self._open()
        except OSError as error:
            raise UsageError(f"--answers-file {self.path} cannot be written: {error.strerror}") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        if kind is None and not self._in_order:
            _replace(self.path, sorted(_read_lines(self.path)[0], key=_index))

    def append(self, lines: Iterable[Line]) -> None:
        """Write the lines at once; when the disk refuses, the file is left as it was before this call."""
        lines = list(lines)
        data = b"".join(_encode(line) for line in lines)
        try:
            _write_all(self._handle, data)
        except OSError as error:
            os.ftruncate(self._handle, self._size)  # type: ignore[arg-type]
            raise UsageError(
                f"--answers-file {self.path}: writing failed ({error.strerror}); {len(self.done)} answers are safe,"
                " make room and run the same command again to continue"
            ) from None
        self._size += len(data)
        for line in lines:
            self._note(line)

    def lines(self) -> list[Line]:
        """All lines, in the order of the file."""
        return _read_lines(self.path)[0]

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines, size = _read_lines(self.path)
        if lines:
            self._check_same_run()
        if self._retry_errors and any("error" in line for line in lines):
            lines = [line for line in lines if "error" not in line]
            size = _replace(self.path, lines)
        self._write_sidecar(fresh=not lines)
        self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        _lock(self._handle, self.path)
        os.ftruncate(self._handle, size)  # drops a torn last line
        self._size = size
        for line in lines:
            self._note(line)

    def _note(self, line: Line) -> None:
        index = _index(line)
        self.done.add(index)
        if "error" in line:
            self.errors[index] = line["error"]
        self._in_order = self._in_order and index > self._last
        self._last = index

    def _check_same_run(self) -> None:
        remedy = "choose another --answers-file, or delete this one to start afresh"
        try:
            before = json.loads(self.sidecar.read_text(encoding="utf-8"))["config"]
        except (OSError, ValueError, KeyError, TypeError):
            missing = f"{self.path} has answers, but no readable {self.sidecar.name} that says what made them"
            raise UsageError(f"{missing}; {remedy}") from None
        now = json.loads(json.dumps(self._run["config"]))
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            shown = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed)
            raise UsageError(f"{self.path} was made with another configuration ({shown}); {remedy}")

    def _write_sidecar(self, fresh: bool) -> None:
        """A resumed run keeps the first run's description."""
        if fresh or not self.sidecar.is_file():
            temporary = Path(f"{self.sidecar}.tmp")
            temporary.write_text(json.dumps(self._run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(temporary, self.sidecar)


def finished(path: str | Path) -> set[int]:
    """Indices of the items that an answer file holds, read without opening it for writing."""
    return {_index(line) for line in _read_lines(Path(path))[0]}


def _read_lines(path: Path) -> tuple[list[Line], int]:
    """Complete lines and their size in bytes; what follows the last complete line was torn by a kill."""
    if not path.exists():
        return [], 0
    lines, size = [], 0
    raw_lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is empty or torn
    for number, raw in enumerate(raw_lines, start=1):
        line = _decode(raw)
        if line is None:
            if number == len(raw_lines):
                break
            raise UsageError(f"{path}, line {number} is not an answer of this program; choose another --answers-file")
        lines.append(line)
        size += len(raw) + 1
    return lines, size


def _decode(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
        return line if isinstance(line["metadata"]["index"], int) else None
    except (ValueError, KeyError, TypeError):
        return None


def _encode(line: Line) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n"


def _index(line: Line) -> int:
    return int(line["metadata"]["index"])


def _replace(path: Path, lines: list[Line]) -> int:
    """Rewrite the file in one step: a kill leaves either the old or the new one."""
    temporary = Path(f"{path}.tmp")
    data = b"".join(_encode(line) for line in lines)
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return len(data)


def _write_all(handle: int | None, data: bytes) -> None:
    assert handle is not None, "append() outside the with block"
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _lock(handle: int, path: Path) -> None:
    """Refuse a second writer. Without fcntl (Windows) there is no lock."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(f"--answers-file {path} is being written by another run") from None


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
