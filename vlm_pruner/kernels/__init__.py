"""`vlm_pruner.selection` as fused Triton kernels for GPUs, with the same results. `backend` chooses between them.

Triton is optional and imported only if a kernel is wanted. The environment variable `VLM_PRUNER_KERNELS` decides:
auto (default): for CUDA tensors, if Triton is installed; off: never; on: always (on a CPU under TRITON_INTERPRET=1).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.selection import batched
from vlm_pruner.selection.expansion import Expansion

VARIABLE = "VLM_PRUNER_KERNELS"
WINDOW = 64  # candidates judged at once, which limits the token batch and the number of pivots


class Backend(Protocol):
    """The four steps for I images of one size; `selection.batched` documents each."""

    def screen_channels(self, hidden: Tensor, channels: int) -> Tensor: ...
    def choose_pivots(self, keys: Tensor, count: int) -> Tensor: ...
    def expand(self, features: Tensor, coords: Tensor, pivots: Tensor, budget: int, **settings: Any) -> Expansion: ...
    def fold(
        self, hidden: Tensor, indices: Tensor, nearest: Tensor, similarity: Tensor, self_weight: float, **settings: Any
    ) -> Tensor: ...


def backend(tensor: Tensor, *, torch_only: bool = False) -> Backend:
    """The backend for `tensor`: the kernels if wanted and possible, plain torch otherwise.

    torch_only: the caller needs something that the kernels do not offer. They also have no gradients and no float64.
    Raises PruningError if the environment requests kernels and Triton is missing.
    """
    needs_gradient = torch.is_grad_enabled() and tensor.requires_grad
    if torch_only or needs_gradient or tensor.dtype == torch.float64 or not wanted(tensor):
        return cast(Backend, batched)
    return load()


def wanted(tensor: Tensor) -> bool:
    """Whether the environment requests kernels for `tensor`. Raises PruningError if it does and Triton is missing."""
    choice = os.environ.get(VARIABLE, "auto")
    if choice == "off" or (choice == "auto" and not tensor.is_cuda):
        return False
    if choice not in ("auto", "on"):
        raise PruningError(f"{VARIABLE}={choice!r} must be auto, on or off")
    installed = importlib.util.find_spec("triton") is not None  # accesses the file system, so do it only if needed
    if choice == "on" and not installed:
        raise PruningError(f"{VARIABLE}=on, but Triton is not installed: pip install triton, or set it to auto")
    return installed


def load() -> Backend:
    """Imports the module with the kernels' functions, and with it Triton."""
    return cast(Backend, importlib.import_module("vlm_pruner.kernels.fused"))


def loaded(backend: Backend) -> bool:
    """Whether `backend` is the kernels."""
    return backend is not cast(Backend, batched)
