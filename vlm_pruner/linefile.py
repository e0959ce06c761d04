"""A file of JSON lines that one process appends to and a later run continues.

It survives kills, a torn last line, a full disk and a second writer. A description of the run comes with the lines, in
the first line or beside the file in `<file>.meta.json`. A file from a different run is refused or set aside.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

Line = dict[str, Any]
F = TypeVar("F", bound="LineFile")


class LineFileError(ValueError):
    """The file cannot be continued or written; the message names it and the remedy."""


class LineFile:
    """Context manager: opens, locks and repairs the file, reads its lines, and appends.

    run: what makes the lines. beside: describe it in `<file>.meta.json`, where two runs are the same if their "config"
    is; in the first line, all of it counts. flag: what errors call the file.
    is_line: which objects belong into this file; a file with others was made by another program.

    lines: the lines of earlier runs and those appended since, without the description. set_aside: the new name of a
    file that another run made.
    """

    def __init__(
        self, path: str | Path, run: Mapping[str, Any], *, beside: bool = False,
        other_run: Literal["refuse", "set aside"] = "refuse", flag: str = "file",
        is_line: Callable[[Line], bool] = lambda line: True,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self.run: Line = json.loads(json.dumps(run))
        self.lines: list[Line] = []
        self.set_aside: Path | None = None
        self._sidecar = sidecar_of(path) if beside else None
        self._refuses = other_run == "refuse"
        self._flag = flag
        self._is_line = is_line
        self._handle: int | None = None
        self._size = 0

    def __enter__(self: F) -> F:
        try:
            self._open()
        except OSError as error:
            self._close()
            raise LineFileError(f"{self._flag} {self.path} cannot be written: {error.strerror}") from None
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Hands the lines to the operating system at once. If writing fails, the file is restored."""
        new = [dict(line) for line in lines]
        data = b"".join(map(encode, new))
        handle = self._open_handle()
        try:
            _write_all(handle, data)
        except OSError as error:
            os.ftruncate(handle, self._size)
            raise LineFileError(
                f"{self._flag} {self.path}: writing failed ({error.strerror}); {len(self.lines)} lines are safe, make"
                " room and run the same command again to continue"
            ) from None
        self._size += len(data)
        self.lines += new

    def replace(self, lines: Iterable[Line]) -> None:
        """Rewrites the file atomically: a kill leaves either the old or the new one."""
        new = list(lines)
        data = b"".join(map(encode, [*self._header(), *new]))
        _write_in_one_step(self.path, data)
        self._close()  # of the file that was replaced
        self._handle = self._lock()
        self._size, self.lines = len(data), new

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self._lock()
        try:
            self._continue()
        except LineFileError:
            if self._refuses:
                raise
            self._close()
            self.set_aside = self._rename()
            self._handle = self._lock()
            self._continue()

    def _continue(self) -> None:
        """Reads the lines of the same run, drops a torn last one, and describes the run if it is not described yet."""
        handle = self._open_handle()
        lines, self._size = _read(self.path, self._is_line, self._sidecar is None)
        if lines or os.fstat(handle).st_size:
            self._check_same_run(lines)
        os.ftruncate(handle, self._size)
        self.lines = lines if self._sidecar is not None else lines[1:]
        if self._sidecar is None:
            if not lines:
                header = encode(self.run)
                _write_all(handle, header)
                self._size = len(header)
        elif not self.lines or not self._sidecar.is_file():
            _write_in_one_step(self._sidecar, json.dumps(self.run, indent=1, ensure_ascii=False).encode() + b"\n")

    def _check_same_run(self, lines: list[Line]) -> None:
        remedy = f"choose another {self._flag}, or delete this one to start afresh"
        before = self._deciding(self._stored(lines))
        if before is None:
            missing = "first line" if self._sidecar is None else self._sidecar.name
            raise LineFileError(f"{self.path} has lines, but no readable {missing} that says what made them; {remedy}")
        now = self._deciding(self.run)
        assert now is not None, "a run that is described beside its file has a config"
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if changed:
            shown = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed)
            raise LineFileError(f"{self.path} was made with another configuration ({shown}); {remedy}")

    def _stored(self, lines: list[Line]) -> Any:
        """The description of the run that made the file; None if there is none."""
        if self._sidecar is None:
            return lines[0] if lines else None
        try:
            return json.loads(self._sidecar.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _deciding(self, run: Any) -> Line | None:
        """The part of a description in which two runs must agree."""
        if self._sidecar is not None and isinstance(run, dict):
            run = run.get("config")
        return run if isinstance(run, dict) else None

    def _header(self) -> list[Line]:
        return [self.run] if self._sidecar is None else []

    def _rename(self) -> Path:
        """Moves the file and its description to the first free name."""
        number = 1
        while (other := self.path.with_name(f"{self.path.stem}.{number}{self.path.suffix}")).exists():
            number += 1
        self.path.rename(other)
        if self._sidecar is not None and self._sidecar.exists():
            self._sidecar.rename(sidecar_of(other))
        return other

    def _lock(self) -> int:
        """Opens the file for appending with an exclusive lock. Without fcntl (Windows) there is no lock."""
        while True:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            with contextlib.suppress(ImportError):
                import fcntl

                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os.close(handle)
                    raise LineFileError(f"{self._flag} {self.path} is being written by another run") from None
            if self.path.exists() and os.path.samestat(os.fstat(handle), self.path.stat()):
                return handle
            os.close(handle)  # another run replaced or moved the file between opening and locking

    def _open_handle(self) -> int:
        assert self._handle is not None, "the file is written inside its with block only"
        return self._handle

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def read_lines(path: str | Path, is_line: Callable[[Line], bool] = lambda line: True) -> list[Line]:
    """The complete lines of a file whose run is described beside it; empty if the file is missing."""
    return _read(Path(path), is_line, header=False)[0]


def sidecar_of(path: str | Path) -> Path:
    """The path of a file's separate run description."""
    return Path(f"{path}.meta.json")


def encode(line: Mapping[str, Any]) -> bytes:
    """Encodes one line. Half a surrogate pair, which UTF-8 cannot encode, becomes a JSON escape."""
    try:
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(line).encode() + b"\n"


def _read(path: Path, is_line: Callable[[Line], bool], header: bool) -> tuple[list[Line], int]:
    """Complete lines and their size in bytes; anything after the last newline was torn by a kill."""
    if not path.exists():
        return [], 0
    *whole, torn = path.read_bytes().split(b"\n")
    lines = []
    for number, raw in enumerate(whole, start=1):
        line = _decode(raw)
        if line is None or not ((header and number == 1) or is_line(line)):
            raise LineFileError(f"{path}, line {number} is not a line of this program; choose another file")
        lines.append(line)
    return lines, path.stat().st_size - len(torn)


def _decode(raw: bytes) -> Line | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _write_in_one_step(path: Path, data: bytes) -> None:
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
