"""The environment is created if missing, left alone if current, and recreated after an interrupted set-up.

A stand-in for the interpreter writes down what it is asked to install, so nothing is downloaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

FAKE_PYTHON = """#!/bin/sh
# -m venv makes an environment with this same stand-in in it; -m pip writes its arguments down, or fails on demand.
if [ "$1 $2" = "-m venv" ]; then
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >> "{log}"
elif [ "$1 $2" = "-m pip" ]; then
    if [ "$3" = install ]; then
        echo "$@" >> "{log}"
        [ ! -e "{log}.fail" ]
    fi
elif [ -n "$OLD_PYTHON" ]; then
    echo 3.9
    exit 1
else
    exec "{python}" "$@"
fi
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("the scripts need bash, which is not installed")
    folder = tmp_path / "clone with a space"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup_env.sh", folder / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    fake = folder / "python-stand-in"
    fake.write_text(FAKE_PYTHON.format(log=tmp_path / "log", python=sys.executable))
    fake.chmod(0o755)
    return folder


def set_up(clone: Path, **environment: str) -> tuple[int, str, list[str]]:
    """Exit code, error output, and what was done, one line each."""
    log = clone.parent / "log"
    log.write_text("")
    done = subprocess.run(
        ["bash", "scripts/setup_env.sh"],
        cwd=clone,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(clone / "python-stand-in"), **environment},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stderr, log.read_text().splitlines()


def test_the_first_run_makes_the_environment_and_the_second_does_nothing(clone: Path) -> None:
    code, _, done = set_up(clone)
    assert code == 0 and done[0] == "venv" and len(done) == 2
    assert "-c constraints.txt" in done[1] and ".[dev]" in done[1]
    assert set_up(clone) == (0, "", [])


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_other_requirements_bring_it_up_to_date(clone: Path, name: str) -> None:
    set_up(clone)
    with (clone / name).open("a") as file:
        file.write("# changed\n")
    code, _, done = set_up(clone)
    assert code == 0 and len(done) == 1 and "install" in done[0]
    assert set_up(clone)[2] == []


def test_an_interrupted_set_up_is_done_again(clone: Path) -> None:
    fail = clone.parent / "log.fail"
    fail.touch()
    code, _, done = set_up(clone)
    assert code != 0 and len(done) == 2
    fail.unlink()
    code, _, done = set_up(clone)
    assert code == 0 and len(done) == 1 and "install" in done[0]
    assert set_up(clone)[2] == []


def test_a_half_made_environment_is_made_anew(clone: Path) -> None:
    (clone / ".venv" / "bin").mkdir(parents=True)
    (clone / ".venv" / "bin" / "python").symlink_to("/nowhere/python3")
    code, _, done = set_up(clone)
    assert code == 0 and done[0] == "venv" and len(done) == 2


def test_an_environment_that_was_moved_is_made_up_to_date(clone: Path) -> None:
    set_up(clone)
    moved = clone.rename(clone.with_name("elsewhere"))
    assert len(set_up(moved)[2]) >= 1


def test_an_interpreter_that_is_missing_or_too_old_is_named(clone: Path) -> None:
    code, error, done = set_up(clone, PYTHON="python-of-nobody")
    assert code == 1 and "no interpreter named 'python-of-nobody'" in error and done == []
    code, error, done = set_up(clone, OLD_PYTHON="1")
    assert code == 1 and "is Python 3.9; 3.10 or newer is needed" in error and done == []
    assert len(error.splitlines()) == 1
