"""Pruning methods, one per file. `get(name)` finds one, `names()` lists them."""

from vlm_pruner.methods.base import Pruner, Selection, get, names, register
from vlm_pruner.methods.centrifugal import CentrifugalPruner
from vlm_pruner.methods.random import RandomPruner

__all__ = ["CentrifugalPruner", "Pruner", "RandomPruner", "Selection", "get", "names", "register"]
