"""How large a video's frames become: pixels per frame within limits, sides in whole visual tokens.

The rules are those of qwen-vl-utils, through which the field evaluates Qwen's models, with its defaults.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlm_pruner.errors import PruningError

LEAST, MOST, CONTEXT = 128, 768, 0.9 * 128_000  # tokens: per frame, and of the whole video (two frames share a token)


@dataclass(frozen=True)
class VideoLimits:
    """Limits in pixels: of a frame, and of all frames together (`total_pixels`). None: the default of qwen-vl-utils.

    Whatever is given, a frame has at most 768 tokens, and all frames fit into `total_pixels`, except that a frame may
    always have 5 % more than `min_pixels`.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None

    def per_frame(self, frames: int, side: int) -> tuple[float, float]:
        """(least, most) pixels of each of `frames`. side: pixels of a visual token's side."""
        most, token = self.max_pixels, side**2
        least = self.min_pixels
        if least is None:
            least = LEAST * token if most is None else min(LEAST * token, most)
        total = CONTEXT * token if self.total_pixels is None else self.total_pixels
        cap = max(min(MOST * token, 2 * total / frames), int(1.05 * least))
        return least, cap if most is None else min(most, cap)

    def size(self, frames: int, height: int, width: int, side: int) -> tuple[int, int]:
        """(height, width) that each of `frames` of the given size is scaled to."""
        return within(height, width, side, *self.per_frame(frames, side))


@dataclass(frozen=True)
class PixelLimits:
    """Limits in pixels as a user gives them: of pictures, of a video's frames, and of all of its frames together.

    Those of pictures hold for frames that have none of their own. A picture's limit gives way to a frame's, and
    `total_pixels` replaces a picture's `max_pixels`, as in lmms-eval.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise PruningError(f"{name}={value} must be at least 1")
        for start in ("", "video_"):
            least, most = getattr(self, f"{start}min_pixels"), getattr(self, f"{start}max_pixels")
            if least is not None and most is not None and least > most:
                raise PruningError(f"{start}min_pixels={least} is more than {start}max_pixels={most}")

    @property
    def video(self) -> VideoLimits | None:
        """None: nothing limits frames but the checkpoint."""
        least, most = self.video_min_pixels, self.video_max_pixels
        if least is None and self.min_pixels is not None:
            least = self.min_pixels if most is None else min(self.min_pixels, most)
        if most is None and self.max_pixels is not None and self.total_pixels is None:
            most = max(self.max_pixels, least or 0)
        limits = VideoLimits(least, most, self.total_pixels)
        return None if limits == VideoLimits() else limits


NO_LIMITS = PixelLimits()


def within(height: int, width: int, side: int, least: float, most: float) -> tuple[int, int]:
    """(height, width) near the given ones, in multiples of `side`, with about `least` to at most `most` pixels.

    Raises PruningError for sides of more than 200 to 1.
    """
    if max(height, width) > 200 * min(height, width):
        raise PruningError(f"a frame of {width} x {height} pixels is more than 200 times as long as wide; crop it")
    tall, wide = (max(side, round(length / side) * side) for length in (height, width))
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        tall, wide = (max(side, math.floor(length / shrink / side) * side) for length in (height, width))
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall, wide = (math.ceil(length * grow / side) * side for length in (height, width))
    return tall, wide
