"""All methods of the registry, for tests that each has to pass. A new method's file is in these lists by itself."""

from __future__ import annotations

from typing import Any

import vlm_pruner as vp
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.view import FROM_TOWER

KEEP = 9


def make(name: str, **settings: Any) -> Pruner:
    return vp.methods.get(name)(**{"keep_tokens": KEEP, **settings})


def of_tower() -> list[Pruner]:
    """Methods that need a tower with a class token."""
    return [method for method in map(make, vp.methods.names()) if FROM_TOWER & method.needs]


def of_decoder() -> list[Pruner]:
    """All others, and those that can do without the tower."""
    others = [method for method in map(make, vp.methods.names()) if not FROM_TOWER & method.needs]
    return [*others, make("mmtok", features="embeddings")]


def label(method: Pruner) -> str:
    return f"{method.name}-{method.layer}"
