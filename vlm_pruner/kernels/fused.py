"""`vlm_pruner.selection` on the GPU, for several images of equal size at once (the first dimension).

Import it only if Triton is installed. Triton launches on the current device, whatever its arguments are on, so each
function makes its tensors' device the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from vlm_pruner.kernels import aggregation, expansion, pivots, screening

__all__ = ["choose_pivots", "expand", "fold", "screen_channels"]

R = TypeVar("R")


def _on_its_device(function: Callable[..., R]) -> Callable[..., R]:
    @wraps(function)
    def run(tensor: Tensor, *args: Any, **kwargs: Any) -> R:
        with torch.cuda.device_of(tensor):
            return function(tensor, *args, **kwargs)

    return run


choose_pivots = _on_its_device(pivots.choose_pivots)
expand = _on_its_device(expansion.expand)
fold = _on_its_device(aggregation.fold)
screen_channels = _on_its_device(screening.screen_channels)
