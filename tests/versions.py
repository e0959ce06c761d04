"""Marks what this transformers cannot do itself, dense or pruned. `scripts/test_oldest.sh` runs the oldest one."""

from __future__ import annotations

import pytest
from packaging.version import Version
from transformers import __version__


def at_least(version: str) -> bool:
    return Version(__version__) >= Version(version)


def skip_before(version: str, reason: str) -> None:
    if not at_least(version):
        pytest.skip(f"transformers {__version__}, before {version}: {reason}")
