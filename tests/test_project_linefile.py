"""The file of JSON lines under answers, journals and receipts: every property with either way to describe the run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vlm_pruner import linefile
from vlm_pruner.linefile import LineFile, LineFileError, sidecar_of

RUN = {"config": {"seed": 0}}
LINES = [{"n": 1, "text": "é"}, {"n": 2, "text": "half \ud83d an emoji"}, {"n": 3, "text": ""}]
Make = Callable[..., LineFile]


@pytest.fixture(params=["first line", "beside"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def make(seed: int = 0, other_run: Any = "refuse") -> LineFile:
        run = {"config": {"seed": seed}}
        return LineFile(tmp_path / "lines.jsonl", run, beside=request.param == "beside", other_run=other_run)

    return make


def test_lines_come_back_and_are_valid_utf8(make: Make) -> None:
    with make() as file:
        file.append(LINES[:1])
        file.append(LINES[1:])
    file.path.read_bytes().decode("utf-8")
    with make() as again:
        assert again.lines == LINES


@pytest.mark.parametrize("cut", [1, 2, 9])
def test_a_torn_last_line_is_dropped(make: Make, cut: int) -> None:
    with make() as file:
        file.append(LINES)
    file.path.write_bytes(file.path.read_bytes()[:-cut])
    with make() as again:
        assert again.lines == LINES[:2]
        again.append(LINES[2:])
    with make() as whole:
        assert whole.lines == LINES


def test_a_full_disk_leaves_the_file_as_it_was(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(handle: int, data: bytes) -> None:
        os.write(handle, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    with make() as file:
        file.append(LINES[:1])
        before = file.path.read_bytes()
        with monkeypatch.context() as patch, pytest.raises(LineFileError, match="1 lines are safe"):
            patch.setattr(linefile, "_write_all", disk_full)
            file.append(LINES[1:])
        assert file.path.read_bytes() == before and file.lines == LINES[:1]
        file.append(LINES[1:])
    with make() as again:
        assert again.lines == LINES


def test_another_run_is_refused_and_changes_nothing(make: Make) -> None:
    with make() as file:
        file.append(LINES)
    before = {path.name: path.read_bytes() for path in file.path.parent.iterdir()}
    with pytest.raises(LineFileError, match="another configuration"), make(seed=1):
        pass
    assert {path.name: path.read_bytes() for path in file.path.parent.iterdir()} == before


def test_another_run_is_set_aside_whole(make: Make) -> None:
    with make() as file:
        file.append(LINES)
    with make(1, "set aside") as other:
        assert other.lines == [] and other.set_aside == file.path.with_name("lines.1.jsonl")
        other.append(LINES[:1])
    other.set_aside.rename(file.path)
    if sidecar_of(other.set_aside).exists():
        sidecar_of(other.set_aside).rename(sidecar_of(file.path))
    with make() as back:
        assert back.lines == LINES


@pytest.mark.parametrize("content", [b"a note without a newline", b'{"n": 1}\n', b"[1]\n", b"[" * 9999 + b"\n"])
@pytest.mark.parametrize("other_run", ["refuse", "set aside"])
def test_a_file_of_another_program_is_never_cut(make: Make, content: bytes, other_run: Any) -> None:
    path = make().path
    path.write_bytes(content)
    if other_run == "refuse":
        with pytest.raises(LineFileError, match="choose another"), make():
            pass
        assert path.read_bytes() == content
    else:
        with make(0, other_run) as file:
            assert file.set_aside is not None and file.set_aside.read_bytes() == content


def test_a_second_writer_is_refused_even_after_the_file_was_replaced(make: Make) -> None:
    with make() as file:
        file.append(LINES)
        file.replace(LINES[1:])
        with pytest.raises(LineFileError, match="being written by another run"), make():
            pass
        file.append(LINES[:1])
    with make() as again:
        assert again.lines == [*LINES[1:], LINES[0]]


def test_a_writer_that_lost_its_file_to_a_replacement_opens_the_new_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening and locking, the run that held the file replaces it: the lock is on a file that has no name."""
    with make() as file:
        file.append(LINES)
    opened, open_file = [], os.open

    def open_and_lose(path: Any, *arguments: Any) -> int:
        handle = open_file(path, *arguments)
        if not opened:
            os.replace(copy, path)
        opened.append(handle)
        return handle

    copy = file.path.with_name("copy")
    copy.write_bytes(file.path.read_bytes())
    monkeypatch.setattr(os, "open", open_and_lose)
    with make() as again:
        again.append(LINES[:1])
    monkeypatch.undo()
    assert len(opened) == 2 and file.path.read_bytes().count(b"\n") >= 4


def test_a_description_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    with LineFile(path, RUN, beside=True) as file:
        file.append(LINES)
    for content in ("", "[]", json.dumps({"config": 3})):
        sidecar_of(path).write_text(content)
        with (
            pytest.raises(LineFileError, match=r"no readable lines\.jsonl\.meta\.json"),
            LineFile(path, RUN, beside=True),
        ):
            pass
