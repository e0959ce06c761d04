"""VLM-Pruner: keep a small, spatially coherent subset of a picture's tokens inside a vision-language model.

Public names are imported on first use, so `import vlm_pruner` and `vlm-pruner --help` need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_pruner import errors, methods
    from vlm_pruner.asking.processors import load_processor
    from vlm_pruner.decoder.pruning import prune
    from vlm_pruner.drawing.sheet import draw_prefill
    from vlm_pruner.geometry.layout import TokenLayout
    from vlm_pruner.methods.centrifugal import CentrifugalPruner
    from vlm_pruner.methods.random import RandomPruner

__version__ = "0.1.0"
__all__ = [
    "CentrifugalPruner",
    "RandomPruner",
    "TokenLayout",
    "__version__",
    "draw_prefill",
    "errors",
    "load_processor",
    "methods",
    "prune",
]

_HOMES = {
    "CentrifugalPruner": "vlm_pruner.methods.centrifugal",
    "RandomPruner": "vlm_pruner.methods.random",
    "TokenLayout": "vlm_pruner.geometry.layout",
    "draw_prefill": "vlm_pruner.drawing.sheet",
    "load_processor": "vlm_pruner.asking.processors",
    "prune": "vlm_pruner.decoder.pruning",
}

_MOVED = {"pruning": "vlm_pruner.decoder.pruning"}  # vlm_pruner.pruning.PruningWarning, as filters of warnings name it


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MOVED:
        value = import_module(_MOVED[name])
    elif name in __all__:
        value = import_module(f"vlm_pruner.{name}")
    else:
        raise AttributeError(f"module 'vlm_pruner' has no attribute {name!r}; it offers {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
