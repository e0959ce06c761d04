"""Qwen's video processing without torchvision, through the checkpoint's image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.video_utils import make_batched_metadata, make_batched_videos

from vlm_pruner.frames import resized
from vlm_pruner.geometry.frame_sizes import VideoLimits, within


class FrameProcessor:
    """Stands in for transformers' video processors of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, which need torchvision.

    images: the checkpoint's image processor, which cuts frames into patches. size: (least, most) pixels as the
    checkpoint has them for videos. of_video: whether they hold for all frames together (Qwen3-VL) or for each. colours:
    "image_mean" and "image_std", if videos have their own. Pillow scales the frames, and torchvision those of
    transformers: 8-bit colours differ by up to 2.
    """

    def __init__(
        self, images: Any, size: tuple[int, int], of_video: bool, colours: dict[str, Any] | None = None
    ) -> None:
        self.images, self.size, self.of_video, self.colours = images, size, of_video, colours or {}
        self.patch_size, self.merge_size = int(images.patch_size), int(images.merge_size)
        self.temporal_patch_size = int(images.temporal_patch_size)

    def __call__(
        self, videos: Any, video_metadata: Any = None, do_sample_frames: bool = True, do_resize: bool = True,
        return_tensors: str | None = "pt", **_: Any,
    ) -> BatchFeature:  # fmt: skip
        """videos: for each its frames [n, height, width, 3], 8-bit. Raises ValueError if it should choose frames."""
        if do_sample_frames:
            raise ValueError("without torchvision, choose a video's frames beforehand and pass do_sample_frames=False")
        films = [np.asarray(film) for film in make_batched_videos(videos)]
        metadata = make_batched_metadata(films, video_metadata=video_metadata)
        if do_resize:
            films = [resized(film, self._size(*film.shape[:3])) for film in films]
        patches, grids = zip(*map(self._patches, films), strict=True)
        data = {"pixel_values_videos": np.concatenate(patches), "video_grid_thw": np.array(grids, dtype=np.int64)}
        made = BatchFeature(data, tensor_type=return_tensors)
        made["video_metadata"] = metadata
        return made

    def _size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        least, most = self.size
        count = frames if self.of_video else 1
        return within(height, width, self.patch_size * self.merge_size, least / count, most / count)

    def _patches(self, film: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """([time * height * width, channels * frames per patch * patch * patch], [time, height, width]).

        The image processor repeats a picture to fill a patch in time; here each place takes its own frame, and the last
        frame fills up the last patch.
        """
        deep, side = self.temporal_patch_size, self.patch_size
        film = np.concatenate([film, film[-1:].repeat(-len(film) % deep, axis=0)])
        made = self.images(
            images=list(film), do_resize=False, input_data_format="channels_last", return_tensors="np", **self.colours
        )
        height, width = (int(length) for length in made["image_grid_thw"][0][1:])
        steps = len(film) // deep
        own = made["pixel_values"].reshape(steps, deep, height * width, -1, deep, side * side)[..., 0, :]
        stacked = own.transpose(0, 2, 3, 1, 4)  # time, place, channel, frame of the patch, pixel
        return stacked.reshape(steps * height * width, -1), [steps, height, width]


def scaled(frames: np.ndarray, limits: VideoLimits, images: Any) -> np.ndarray:
    """Frames [n, height, width, 3] within the limits. images: the image processor, which knows the size of a token."""
    count, height, width = frames.shape[:3]
    return resized(frames, limits.size(count, height, width, int(images.patch_size) * int(images.merge_size)))
