"""Pruning methods, one per file. `get(name)` returns one, `names()` lists them.

Every method in this folder is found automatically; no list names them. Methods from elsewhere come from an installed
package (entry points in the group `vlm_pruner.methods`) or from a file (`maker("my_file.py:MyPruner")`).
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from vlm_pruner.methods import base as _base
from vlm_pruner.methods.base import Pruner, Selection, get, names, register
from vlm_pruner.methods.view import View
from vlm_pruner.methods.words import from_words, maker

__all__ = ["Pruner", "Selection", "View", "from_words", "get", "maker", "names", "register"]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> Any:
    """A method's class by its own name, such as `methods.FastVPruner`."""
    for method in _base._METHODS.values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
