"""Videos of an evaluation: files or folders of frames, sampled as LLaVA-Video and LLaVA-OneVision expect them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np

from vlm_pruner.frames import read_sampled
from vlm_pruner.geometry.videos import NEWLINE_POSITIONS, POOL_MODES
from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.video_prompt import sample_frames, time_instruction


@dataclass(frozen=True)
class VideoSettings:
    """Which frames of a video are shown, and whether the prompt gives their times.

    video_fps: frames per second of video, `max_frames_num` at most. force_sample: always `max_frames_num` frames,
    spread from the first to the last.
    """

    max_frames_num: int = 64
    video_fps: float = 1.0
    force_sample: bool = False
    add_time_instruction: bool = False

    def __post_init__(self) -> None:
        if self.max_frames_num < 1:
            raise UsageError(f"--max-frames-num {self.max_frames_num} must be at least 1")
        if not self.video_fps > 0:
            raise UsageError(f"--video-fps {self.video_fps} must be above 0")

    @classmethod
    def of(cls, args: argparse.Namespace) -> VideoSettings:
        """From a command line; the defaults if it has no such flags."""
        return cls(**{field.name: getattr(args, field.name, getattr(cls, field.name)) for field in fields(cls)})


CONFIG_FLAGS = ("mm_spatial_pool_mode", "mm_newline_position")  # they replace the checkpoint's own settings
VIDEO_FLAGS = (*(field.name for field in fields(VideoSettings)), *CONFIG_FLAGS)


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
    group.add_argument(
        "--max-frames-num", type=int, default=VideoSettings.max_frames_num,
        help="frames of a video at most (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--video-fps", type=float, default=VideoSettings.video_fps, help="frames per second (default: %(default)g)"
    )
    group.add_argument("--force-sample", action="store_true", help="always take --max-frames-num frames")
    group.add_argument("--add-time-instruction", action="store_true", help="give the frames' times in the prompt")
    group.add_argument(
        "--mm-spatial-pool-mode", choices=POOL_MODES, help="how frames are pooled (default: as the checkpoint says)"
    )
    group.add_argument(
        "--mm-newline-position", choices=NEWLINE_POSITIONS,
        help="where newline tokens stand in a video (default: as the checkpoint says)",
    )  # fmt: skip


def read_film(path: Path, settings: VideoSettings) -> Film:
    """The frames of a video file, or of a folder of pictures (3 per second) in the order of their names."""
    sample = partial(sample_frames, fps=settings.video_fps, most=settings.max_frames_num, force=settings.force_sample)
    try:
        distinct, clip = read_sampled(path, lambda total, own_fps: np.unique(sample(total, own_fps)[0]))
    except ValueError as error:
        raise ItemError(str(error)) from None
    indices, times = sample(clip.total_num_frames, clip.fps)
    return Film(distinct[np.searchsorted(np.unique(indices), indices)], times, clip.duration)
