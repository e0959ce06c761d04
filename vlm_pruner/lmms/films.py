"""Frames of a video, read with PyAV: lmms-eval brings it, and not what transformers prefers."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from transformers.video_utils import load_video


def read_film(path: str, frames: int, fps: float | None) -> tuple[Any, Any]:
    """Frames [n, height, width, 3] and where in the video they are: `fps` per second of it, or `frames` in all."""
    film, metadata = load_video(path, backend="pyav", sample_indices_fn=partial(choose, frames=frames, fps=fps))
    return film, metadata


def choose(metadata: Any, frames: int, fps: float | None, **_: Any) -> np.ndarray:
    """Evenly spread from the first to the last frame, each once; all of a video that has fewer."""
    total = metadata.total_num_frames
    wanted = frames if fps is None else max(1, round(total / metadata.fps * fps))
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))
