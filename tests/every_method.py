"""All methods of the registry, for tests that each has to pass. A new method's file is in these lists by itself."""

from __future__ import annotations

from typing import Any

import vlm_pruner as vp
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.view import FROM_TOWER

KEEP = 9


def make(name: str, **settings: Any) -> Pruner:
    return vp.methods.get(name)(**{"keep_tokens": KEEP, **settings})


def of_pictures() -> list[str]:
    """Names of the methods that prune pictures; the others prune videos only."""
    return vp.methods.names()


def of_videos() -> list[str]:
    """Names of the methods that prune videos only."""
    return [name for name in vp.methods.names(every=True) if vp.methods.get(name).videos_only]


def of_tower() -> list[Pruner]:
    """Methods that need a tower with a class token."""
    return [method for method in map(make, of_pictures()) if FROM_TOWER & method.needs]


def of_decoder() -> list[Pruner]:
    """All others that prune pictures, and those that can do without the tower."""
    others = [method for method in map(make, of_pictures()) if not FROM_TOWER & method.needs]
    return [*others, make("mmtok", features="embeddings")]


def label(method: Pruner) -> str:
    return f"{method.name}-{method.layer}"
