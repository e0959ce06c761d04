"""torch.autocast: choosing and merging run outside it; the model's own code runs as the caller set it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def outside_autocast(like: Tensor) -> AbstractContextManager[Any]:
    """Context without autocast on `like`'s device."""
    return _autocast(like.device.type, False, None)


class Autocast:
    """The current autocast setting on `like`'s device, to enter again later."""

    def __init__(self, like: Tensor) -> None:
        self._device = like.device.type
        known = torch.amp.is_autocast_available(self._device)
        self._enabled = known and torch.is_autocast_enabled(self._device)
        self._dtype = torch.get_autocast_dtype(self._device) if self._enabled else None
        self.dtype: torch.dtype = self._dtype or like.dtype  # of matrix products

    def __call__(self) -> AbstractContextManager[Any]:
        return _autocast(self._device, self._enabled, self._dtype)


def _autocast(device: str, enabled: bool, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(device):
        return nullcontext()
    context: AbstractContextManager[Any] = torch.autocast(device, dtype, enabled=enabled)
    return context
