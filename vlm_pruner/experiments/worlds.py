"""Question files of the mini world and its variants, created if missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vlm_pruner.provenance import CLONE, ROOT

WORLDS = ROOT / "playground" / "data" / "worlds"


def find_world(world: str, scenes: int, per_kind: int, seed: int, folder: Path = WORLDS) -> Path:
    """The question file of `scenes` scenes of a world, made in `folder` if missing.

    The same arguments always give the same questions.

    Raises FileNotFoundError outside a clone, ValueError for an unknown world.
    """
    if not (ROOT / "playground" / "mini" / "variants.py").is_file():
        raise FileNotFoundError(
            f"no scenes can be made: {ROOT} is not a clone of the repository (playground/mini is missing); pass "
            f"--questions FILE, or {CLONE}"
        )
    module = ["-m", "playground.mini.variants", "--world", world, "--scenes", str(scenes)]
    module += ["--per-kind", str(per_kind), "--seed", str(seed), "--out", str(folder.resolve())]
    done = subprocess.run([sys.executable, *module], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise ValueError(f"{' '.join(module)} failed: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip().splitlines()[-1]) / "questions.jsonl"
