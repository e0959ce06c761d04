"""The work of `vlm_pruner.selection` in fused GPU kernels, in Triton: several images at once, the same results.

Triton is optional and is imported only when a kernel is wanted. `VLM_PRUNER_KERNELS` in the environment decides:
off (default): never; auto: for CUDA tensors, if Triton is installed; on: always (on a CPU under TRITON_INTERPRET=1).
The default is off because the kernels have run in Triton's interpreter only, and on no GPU yet.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

from torch import Tensor

from vlm_pruner.errors import PruningError

VARIABLE = "VLM_PRUNER_KERNELS"
WINDOW = 64  # candidates judged at once: the largest token batch and number of pivots


def wanted(tensor: Tensor) -> bool:
    """Whether the kernels are to work on `tensor`. Raises PruningError if what the environment asks for is missing."""
    choice = os.environ.get(VARIABLE, "off")
    if choice == "off" or (choice == "auto" and not tensor.is_cuda):
        return False
    if choice not in ("auto", "on"):
        raise PruningError(f"{VARIABLE}={choice!r} must be auto, on or off")
    installed = importlib.util.find_spec("triton") is not None  # asks the file system: too slow to ask for nothing
    if choice == "on" and not installed:
        raise PruningError(f"{VARIABLE}=on, but Triton is not installed: pip install triton, or set it to auto")
    return installed


def load() -> ModuleType:
    """The module with the kernels' functions; imports Triton."""
    return importlib.import_module("vlm_pruner.kernels.fused")
