"""No network at run time unless a hub's name is given, and no telemetry: commands run with sockets forbidden."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import checkpoints, llava_tiny

ROOT = Path(__file__).resolve().parents[1]
FORBID = """
import socket, sys
def refuse(*_, **__):
    print("SOCKET", file=sys.stderr, flush=True)
    raise OSError("no network in this test")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = refuse
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse
"""


def run(tmp_path: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`vlm-pruner COMMAND` in an interpreter without sockets, and without the variables that keep a hub away."""
    (tmp_path / "sitecustomize.py").write_text(FORBID)
    left_out = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hub")}
    return subprocess.run(
        [sys.executable, "-m", "vlm_pruner", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


@pytest.fixture
def photo(tmp_path: Path) -> str:
    path = tmp_path / "photo.png"
    llava_tiny.picture(3).resize((140, 100)).save(path)
    return str(path)


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_a_question_about_a_picture(layout: str, photo: str, tmp_path: Path) -> None:
    if layout == "original":
        model = llava_tiny.write_original(tmp_path / "model")
        llava_tiny.write_tokenizer(model)
    else:
        model = checkpoints.write(tmp_path / "model", "internvl")
    command = ["ask", photo, "--question", "What is there", "--model", str(model), "--keep", "5", "--layer", "1"]
    done = run(tmp_path, *command, "--max-new-tokens", "2")
    assert done.returncode == 0 and "SOCKET" not in done.stderr, done.stderr[-2000:]


def test_a_folder_that_does_not_exist_is_not_looked_for_on_a_hub(photo: str, tmp_path: Path) -> None:
    """A path is a path: only a name of the form owner/model may go to a hub."""
    done = run(tmp_path, "ask", photo, "--question", "x", "--model", str(tmp_path / "nowhere"))
    assert done.returncode == 2 and "SOCKET" not in done.stderr, done.stderr[-2000:]


def test_the_test_notices_sockets(tmp_path: Path) -> None:
    """Of a hub's name, the hub is asked."""
    (tmp_path / "a.png").write_bytes(b"")
    llava_tiny.picture(3).save(tmp_path / "a.png")
    done = run(tmp_path, "ask", str(tmp_path / "a.png"), "--question", "x", "--model", "nobody/no-such-model")
    assert done.returncode == 2 and "SOCKET" in done.stderr
