"""Records what produced a result: versions, git hash, hardware. Every result file carries this record."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]  # of the clone
PACKAGES = ("vlm-pruner", "torch", "transformers", "pillow", "numpy")


def environment() -> dict[str, Any]:
    """Describes this process's software and hardware, ready for JSON."""
    return {"versions": versions(), "git": git_hash(), "hardware": hardware()}


def versions() -> dict[str, str | None]:
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def git_hash() -> str | None:
    """Commit of the checkout this package runs from, with ``-dirty`` if tracked files differ; None outside git."""
    root = Path(__file__).resolve().parent
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else commit


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
