"""What the operator sets for a server, by environment variables, which all of vLLM's processes share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache

POSITIONS = "VLM_PRUNER_POSITIONS"
ALLOW = "VLM_PRUNER_ALLOW"


@dataclass(frozen=True)
class Options:
    """keep_positions: whether kept tokens keep their positions. allowed: further keys of a request's
    mm_processor_kwargs that may pass.
    """

    keep_positions: bool = True
    allowed: frozenset[str] = frozenset()


@lru_cache(maxsize=1)
def options() -> Options:
    """Raises ValueError for a value that is not offered."""
    positions = os.environ.get(POSITIONS, "kept")
    if positions not in ("kept", "renumbered"):
        raise ValueError(f"{POSITIONS}={positions!r} is neither 'kept' nor 'renumbered'")
    allowed = frozenset(key.strip() for key in os.environ.get(ALLOW, "").split(",") if key.strip())
    return Options(positions == "kept", allowed)
