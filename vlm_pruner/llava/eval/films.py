"""Videos of an evaluation: files, or folders of frames, as LLaVA-Video and LLaVA-OneVision are shown them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.video_prompt import sample_frames, time_instruction

FOLDER_FPS = 3.0  # frames per second of a folder of frames: MVBench's, which come from TVQA


@dataclass(frozen=True)
class VideoSettings:
    """Which frames of a video are shown, and whether the prompt says when they are.

    most: frames at most. fps: frames per second of it, as long as there are no more than `most`. force: always `most`,
    spread from the first to the last.
    """

    most: int = 64
    fps: float = 1.0
    force: bool = False
    instruct: bool = False

    def __post_init__(self) -> None:
        if self.most < 1:
            raise UsageError(f"--max-frames-num {self.most} must be at least 1")
        if not self.fps > 0:
            raise UsageError(f"--video-fps {self.fps} must be above 0")

    @classmethod
    def of(cls, args: argparse.Namespace) -> VideoSettings:
        """From a command line; its defaults where it has no such flags."""
        given = {field: getattr(args, flag) for flag, field in _FLAGS.items() if getattr(args, flag, None) is not None}
        return cls(**given)


_FLAGS = {
    "max_frames_num": "most",
    "video_fps": "fps",
    "force_sample": "force",
    "add_time_instruction": "instruct",
}


@dataclass(frozen=True)
class Film:
    """frames: uint8 [F, height, width, 3]. times: of each, in seconds. seconds: the whole video's length."""

    frames: np.ndarray
    times: list[float]
    seconds: float

    @property
    def instruction(self) -> str:
        return time_instruction(self.seconds, self.times)


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("video")
    group.add_argument("--max-frames-num", type=int, default=64, help="frames of a video at most (default: 64)")
    group.add_argument("--video-fps", type=float, default=1.0, help="frames per second of video (default: 1)")
    group.add_argument("--force-sample", action="store_true", help="always take --max-frames-num frames")
    group.add_argument("--add-time-instruction", action="store_true", help="say in the prompt when the frames are")
    group.add_argument(
        "--mm-spatial-pool-mode", default=None, choices=["bilinear", "average", "max"],
        help="how frames are pooled (default: as the checkpoint says)",
    )  # fmt: skip
    group.add_argument(
        "--mm-newline-position", default=None, choices=["grid", "frame", "one_token", "no_token"],
        help="where newline tokens stand in a video (default: as the checkpoint says)",
    )  # fmt: skip


def read_film(path: Path, settings: VideoSettings) -> Film:
    """The frames of a video file, or of a folder of pictures (3 per second) in the order of their names."""
    chosen: list[tuple[list[int], list[float], float]] = []

    def sample(total: int, own_fps: float) -> np.ndarray:
        indices, times = sample_frames(total, own_fps, fps=settings.fps, most=settings.most, force=settings.force)
        chosen.append((indices, times, total / own_fps))
        return np.unique(indices)

    from vlm_pruner.frames import read_sampled

    try:
        distinct = read_sampled(path, sample, FOLDER_FPS)
    except ValueError as error:
        raise ItemError(str(error)) from None
    indices, times, seconds = chosen[-1]
    return Film(distinct[np.searchsorted(np.unique(indices), indices)], times, seconds)
