"""Frames of a video: from a video file, a folder of pictures, or an animated picture (GIF, WebP, PNG).

transformers decodes video files with PyAV: `pip install 'vlm-pruner[video]'`. The others need only Pillow.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from vlm_pruner.images import ImageReadError, check_size, pixel_limit, read_image, to_rgb

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_frames(source: str | Path, count: int = 8) -> list[Image.Image]:
    """`count` frames (or all, if there are fewer), RGB, from the middles of equal parts of the video.

    Raises ValueError, with the file and the remedy, if the file is missing, empty or not a video, or if no installed
    package decodes it.
    """
    path = Path(source)
    if count < 1:
        raise ValueError(f"cannot take {count} frames of {path}; ask for at least 1")
    if path.is_dir():
        return _from_folder(path, count)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a video file, a folder of frames, or an animated picture")
    return _from_picture(path, count) or _from_video(path, count)


def spread(total: int, count: int) -> list[int]:
    """Indices of the frames in the middles of `count` equal parts of `total`."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _from_folder(folder: Path, count: int) -> list[Image.Image]:
    files = _pictures(folder)
    return _same_size(folder, [files[index] for index in spread(len(files), count)])


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


def _from_picture(path: Path, count: int) -> list[Image.Image]:
    """Frames of an animated picture; empty if the file is not one."""
    try:
        pixel_limit()
        with Image.open(path) as picture:
            check_size(picture.size, str(path))
            wanted = set(spread(getattr(picture, "n_frames", 1), count))
            frames = enumerate(ImageSequence.Iterator(picture))
            return [to_rgb(frame.copy()) for index, frame in frames if index in wanted]
    except UnidentifiedImageError:
        return []
    except ImageReadError:
        raise
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageReadError(f"{path} is damaged ({reason}); download or export it again") from None


def read_film(path: str | Path, frames: int, fps: float | None) -> tuple[np.ndarray, Any]:
    """Frames [n, height, width, 3] of a video file, from the first to the last, with transformers' metadata.

    fps: frames per second of video; None: `frames` in total. A shorter video gives all of its frames.
    """
    return _decode(Path(path), partial(end_to_end, frames=frames, fps=fps))


def read_sampled(path: str | Path, sample: Callable[[int, float], np.ndarray], folder_fps: float) -> np.ndarray:
    """The frames [n, height, width, 3] whose indices `sample` returns for (frames in the video, frames per second).

    path: a video file, or a folder of pictures, of which a second has `folder_fps`. Raises ValueError as `read_frames`.
    """
    path = Path(path)
    if path.is_dir():
        files = _pictures(path)
        return np.stack(
            [np.asarray(frame) for frame in _same_size(path, [files[i] for i in sample(len(files), folder_fps)])]
        )
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a video file or a folder of frames")
    return _decode(path, sample)[0]


def end_to_end(total: int, own_fps: float, frames: int, fps: float | None) -> np.ndarray:
    """Indices spread from the first to the last of `total` frames, of which a second has `own_fps`."""
    wanted = frames if fps is None else max(1, round(total / own_fps * fps))
    return np.unique(np.linspace(0, total - 1, min(wanted, total)).round().astype(int))


def _from_video(path: Path, count: int) -> list[Image.Image]:
    frames, _ = _decode(path, lambda total, _: np.array(spread(total, count)))
    return [Image.fromarray(frame) for frame in frames]


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
