"""Finds the golden inputs and outputs of the released code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "conformance"


def conformance(part: str) -> Path:
    """The kit's folder `part`; skips the calling test where the kit is absent."""
    folder = Path(os.environ.get("VLM_PRUNER_CONFORMANCE", _BESIDE)) / part
    if not folder.is_dir():
        pytest.skip(f"no conformance kit at {folder}; set VLM_PRUNER_CONFORMANCE to its folder")
    return folder
