"""Frames of a video: from a video file, a folder of pictures, or an animated picture (GIF, WebP, PNG).

transformers decodes video files with PyAV: `pip install 'vlm-pruner[video]'`. The others need only Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from vlm_pruner.images import ImageReadError, check_size, pixel_limit, read_image, to_rgb

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
FOLDER_FPS = 3.0  # frames per second of a folder of frames: MVBench's, which come from TVQA


class Clip(list[Image.Image]):
    """Frames of a video, RGB, in order.

    indices: their places among all `total` frames, of which a second has `fps`. Models that are told when a frame was
    shown need these.
    """

    def __init__(self, frames: Iterable[Image.Image], indices: Sequence[int], total: int, fps: float) -> None:
        super().__init__(frames)
        self.indices, self.total, self.fps = list(indices), total, fps


def read_frames(source: str | Path, count: int = 8, fps: float | None = None) -> Clip:
    """`count` frames (or all, if there are fewer), RGB, from the middles of equal parts of the video.

    fps: frames per second of video, `count` at most. Raises ValueError, with the file and the remedy, if the file is
    missing, empty or not a video, or if no installed package decodes it.
    """
    path = Path(source)
    if count < 1:
        raise ValueError(f"cannot take {count} frames of {path}; ask for at least 1")
    if fps is not None and not fps > 0:
        raise ValueError(f"cannot take {fps:g} frames per second of {path}; ask for more than 0")
    wanted = partial(_middles, count=count, fps=fps)
    if path.is_dir():
        return _from_folder(path, wanted)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a video file, a folder of frames, or an animated picture")
    return _from_picture(path, wanted) or _from_video(path, wanted)


def _middles(total: int, own_fps: float, count: int, fps: float | None) -> list[int]:
    return evenly(total, count if fps is None else min(count, max(1, round(total / own_fps * fps))))


def evenly(total: int, count: int) -> list[int]:
    """Indices of the frames in the middles of `count` equal parts of `total`."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _from_folder(folder: Path, wanted: Callable[[int, float], Sequence[int]]) -> Clip:
    files = _pictures(folder)
    indices = wanted(len(files), FOLDER_FPS)
    return Clip(_same_size(folder, [files[index] for index in indices]), indices, len(files), FOLDER_FPS)


def _pictures(folder: Path) -> list[Path]:
    """The frames in a folder, in the order of their names."""
    files = sorted((file for file in folder.iterdir() if file.suffix.lower() in PICTURES), key=_natural)
    if not files:
        raise ValueError(f"folder {folder} holds no pictures; put the frames there as PNG or JPEG, named in order")
    return files


def _same_size(folder: Path, files: Sequence[Path]) -> list[Image.Image]:
    frames = [read_image(file) for file in files]
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"the frames in {folder} are of different sizes ({sorted(sizes)}); scale them to one size")
    return frames


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts frame 10 after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _from_picture(path: Path, wanted: Callable[[int, float], Sequence[int]]) -> Clip | None:
    """Frames of an animated picture; None if the file is not one."""
    try:
        pixel_limit()
        with Image.open(path) as picture:
            check_size(picture.size, str(path))
            fps = 1000 / (picture.info.get("duration") or 100)  # browsers show a frame for 100 ms if none is given
            total = getattr(picture, "n_frames", 1)
            indices = wanted(total, fps)
            frames = enumerate(ImageSequence.Iterator(picture))
            return Clip([to_rgb(frame.copy()) for index, frame in frames if index in indices], indices, total, fps)
    except UnidentifiedImageError:
        return None
    except ImageReadError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageReadError(f"{path} is damaged ({reason}); download or export it again") from None


def read_film(path: str | Path, frames: int, fps: float | None, even: bool = False) -> tuple[np.ndarray, Any]:
    """Frames [n, height, width, 3] of a video file or a folder of frames, from the first to the last.

    Comes with transformers' metadata. fps: frames per second of video; None: `frames` in total. A shorter video gives
    all of its frames. even: an even number, with `fps` at most `frames`, as qwen-vl-utils takes them.
    """
    return read_sampled(path, partial(even_end_to_end if even else end_to_end, frames=frames, fps=fps))


def read_sampled(path: str | Path, sample: Callable[[int, float], np.ndarray]) -> tuple[np.ndarray, Any]:
    """The frames [n, height, width, 3] whose indices `sample` returns for (frames in the video, frames per second).

    Comes with transformers' metadata. path: a video file or a folder of frames. Raises ValueError as `read_frames`.
    """
    path = Path(path)
    if path.is_dir():
        files = _pictures(path)
        indices = sample(len(files), FOLDER_FPS)
        pictures = np.stack([np.asarray(frame) for frame in _same_size(path, [files[index] for index in indices])])
        return pictures, describe_clip(indices, len(files), FOLDER_FPS)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a video file or a folder of frames")
    return _decode(path, sample)


def end_to_end(total: int, own_fps: float, frames: int, fps: float | None) -> np.ndarray:
    """Indices spread from the first to the last of `total` frames, of which a second has `own_fps`."""
    wanted = frames if fps is None else max(1, round(total / own_fps * fps))
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))


def even_end_to_end(total: int, own_fps: float, frames: int, fps: float | None) -> np.ndarray:
    """As `end_to_end`, but an even number of frames; with `fps`, 4 to `frames` of them, as far as there are as many."""
    if fps is None:
        wanted = 2 * round(min(frames, total) / 2)
    else:
        wanted = int(min(max(total / own_fps * fps, 4), frames, total)) // 2 * 2
    return end_to_end(total, own_fps, max(1, wanted if wanted <= total else wanted - 2), None)


def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames [n, height, width, 3] of 8-bit colours at another (height, width)."""
    if frames.shape[1:3] == size:
        return frames
    height, width = size
    small = (Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC) for frame in frames)
    return np.stack([np.asarray(frame) for frame in small])


def describe_clip(indices: Sequence[int] | np.ndarray, total: int, fps: float) -> Any:
    """transformers' metadata of a video of which the frames `indices` are shown."""
    from transformers.video_utils import VideoMetadata

    places = [int(index) for index in indices]
    return VideoMetadata(total_num_frames=total, fps=fps, duration=total / fps, frames_indices=places)


def _from_video(path: Path, wanted: Callable[[int, float], Sequence[int]]) -> Clip:
    frames, metadata = _decode(path, lambda total, fps: np.array(wanted(total, fps)))
    places = [int(index) for index in metadata.frames_indices]
    return Clip((Image.fromarray(frame) for frame in frames), places, metadata.total_num_frames, metadata.fps)


def _decode(path: Path, sample: Callable[[int, float], np.ndarray]) -> tuple[np.ndarray, Any]:
    """The frames whose indices `sample` returns for (frames in the video, frames per second), and their metadata."""
    if find_spec("av") is None:
        raise ValueError(
            f"{path} is a video file, which needs PyAV: pip install 'vlm-pruner[video]', or give a folder of frames or "
            "an animated GIF"
        )
    import av
    from transformers.video_utils import load_video

    def indices(metadata: Any, **_: Any) -> np.ndarray:
        # Counting takes a second pass, but transformers trusts the file's header, which may be 0 or wrong.
        metadata.total_num_frames, metadata.duration = total, total / metadata.fps
        return sample(total, metadata.fps)

    try:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(container.streams.video[0]))
        if total:
            return load_video(str(path), backend="pyav", sample_indices_fn=indices)
        reason = "it has no frames"
    except (av.FFmpegError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else "no video stream"
    raise ValueError(f"{path} cannot be read as a video ({reason}); convert it to MP4, or give a folder of frames")
