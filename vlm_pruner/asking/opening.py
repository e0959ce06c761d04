"""Chooses the loader that a checkpoint needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vlm_pruner.asking.chat import Chat
from vlm_pruner.geometry.frame_sizes import NO_LIMITS, PixelLimits
from vlm_pruner.llava.model.checkpoint import find_folder, read_config

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    checkpoint: str | Path, *, device: str = "cpu", dtype: torch.dtype | str | None = None,
    pixels: PixelLimits = NO_LIMITS,
) -> Chat:  # fmt: skip
    """Opens a checkpoint folder or Hub name, in LLaVA's original layout or in transformers'.

    dtype: float16 on a GPU and float32 on a CPU unless given. pixels: of pictures and videos, for families that scale
    both by their number of pixels (Qwen's); others refuse limits.
    Raises ValueError for a device that torch does not have, a folder without a checkpoint (llava's CheckpointError),
    and a model that no adapter supports (UnsupportedModelError).
    """
    check_device(device)
    folder = find_folder(checkpoint, "checkpoint", "check the path, or download the checkpoint first")
    options: dict[str, Any] = {"device": device, "dtype": _dtype(dtype, device)}
    with in_words(checkpoint):
        if is_original(read_config(folder, "checkpoint")):
            from vlm_pruner.asking.original import OriginalChat

            if pixels != NO_LIMITS:
                raise ValueError(
                    f"{checkpoint} is a LLaVA, which scales pictures to fixed sizes; leave limits on pixels out"
                )
            return OriginalChat.open(folder, str(checkpoint), **options)
        from vlm_pruner.asking.processed import ProcessedChat

        return ProcessedChat.open(folder, str(checkpoint), **options, pixels=pixels)


@contextmanager
def in_words(checkpoint: str | Path) -> Iterator[None]:
    """Turns any error that the libraries raise for damaged files into a ValueError that names the checkpoint."""
    try:
        yield
    except (ValueError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"checkpoint {checkpoint} cannot be opened ({type(error).__name__}: {reason}); its files are damaged or do "
            "not belong together: download it again"
        ) from error


def is_original(config: dict[str, Any]) -> bool:
    """Whether a config.json is of LLaVA's original layout."""
    return any(key.startswith("mm_") for key in config)


def check_device(device: str) -> None:
    """Raises ValueError if torch does not know the device or cannot use it here."""
    try:
        torch.empty(1, device=torch.device(device))
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); --device cpu always works") from None


def _dtype(dtype: torch.dtype | str | None, device: str) -> torch.dtype:
    if dtype is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.float16
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; use one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
