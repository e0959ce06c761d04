"""Records what produced a result: versions, git hash, hardware. Every result file carries this record."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

INSTALLED = Path(__file__).resolve().parents[1]  # the clone, or the folder that a wheel was installed into


def _clone() -> Path:
    """The clone: the one that the environment names, else the one that this package runs from, else the working folder.

    `INSTALLED` if none of these is one.
    """
    if named := os.environ.get("VLM_PRUNER_CLONE"):
        return Path(named).expanduser().resolve()
    parts = ("playground/mini/__init__.py", "vlm_pruner/provenance.py")
    try:
        here = Path.cwd()
    except FileNotFoundError:  # removed meanwhile
        here = INSTALLED
    return next((folder for folder in (INSTALLED, here) if all((folder / part).is_file() for part in parts)), INSTALLED)


ROOT = _clone()
CLONE = (
    "git clone https://github.com/Casey-bit/VLMPruner and run the command there, or set VLM_PRUNER_CLONE to its folder"
)
PACKAGES = ("vlm-pruner", "torch", "transformers", "pillow", "numpy")


def environment() -> dict[str, Any]:
    """Describes this process's software and hardware, ready for JSON."""
    return {"versions": versions(), "git": git_hash(), "hardware": hardware()}


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def git_hash() -> str | None:
    """Commit of the clone this package runs from, with ``-dirty`` if tracked files differ; None for a wheel.

    A wheel may be installed below somebody else's repository, whose commit would say nothing about this code.
    """
    commit = _git(INSTALLED, "rev-parse", "HEAD") if (INSTALLED / ".git").exists() else None
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(INSTALLED, "status", "--porcelain", "--untracked-files=no") else commit


def weights_sha256(model: Path) -> str:
    """One digest over a checkpoint folder's safetensors files, in order of name."""
    digest = hashlib.sha256()
    for file in sorted(model.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def hardware() -> dict[str, Any]:
    """CPU, usable cores, and the accelerator if torch is imported and finds one."""
    torch = sys.modules.get("torch")
    seen = torch is not None and torch.cuda.is_available()
    return {
        "machine": platform.machine(),
        "processor": processor(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads() if torch is not None else None,
        "accelerator": torch.cuda.get_device_name(0) if torch is not None and seen else None,
    }


def processor() -> str | None:
    """The processor's name. `platform` does not know it on Linux, so ask the kernel first."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or None


def _version(name: str) -> str | None:
    from importlib import metadata  # a third of the time of `vlm-pruner --help`

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
