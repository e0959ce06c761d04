"""LLaVA-Video's input for a video: a sample of its frames, and one sentence with their times."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sample_frames(
    total: int, own_fps: float, *, fps: float = 1.0, most: int = 64, force: bool = False
) -> tuple[list[int], list[float]]:
    """Indices and times in seconds of the frames that LLaVA-Video sees, of `total` frames at `own_fps` per second.

    About `fps` frames per second from the first on; `most` frames from the first to the last if there would be more, or
    if `force` asks for that many of every video, in which case the frames of short videos come several times.

    Raises ValueError for a video without frames or with fewer than half of a frame in 1 / fps seconds.
    """
    if total < 1:
        raise ValueError("the video has no frames")
    step = round(own_fps / fps)
    if step < 1:
        raise ValueError(
            f"the video has {own_fps:g} frames per second, too few to take {fps:g}; set fps to {own_fps:g} or less"
        )
    indices = list(range(0, total, step))
    if len(indices) <= most and not force:
        return indices, [index / step for index in indices]
    indices = np.linspace(0, total - 1, most, dtype=int).tolist()
    return indices, [index / own_fps for index in indices]


def time_instruction(seconds: float, times: Sequence[float]) -> str:
    """The sentence that precedes a question about a video of `seconds` with frames at `times`."""
    listed = ",".join(f"{time:.2f}s" for time in times)
    return (
        f"The video lasts for {seconds:.2f} seconds, and {len(times)} frames are uniformly sampled from it. "
        f"These frames are located at {listed}.Please answer the following questions related to this video."
    )
