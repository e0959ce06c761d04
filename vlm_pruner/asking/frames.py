"""Frames of a video, evenly spread: from a video file, a folder of pictures, or an animated picture.

Folders and animated pictures (GIF, WebP, PNG) need Pillow alone, video files PyAV: `pip install 'vlm-pruner[video]'`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence, UnidentifiedImageError

from vlm_pruner.images import read_image, to_rgb

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def read_frames(source: str | Path, count: int = 8) -> list[Image.Image]:
    """`count` frames (or all, if there are fewer), RGB, from the middle of equal parts of the video.

    Raises ValueError that names the file and the remedy: missing, empty, no video, or no decoder installed.
    """
    path = Path(source)
    if count < 1:
        raise ValueError(f"{count} frames of {path} are not a video; ask for at least 1")
    if path.is_dir():
        return _from_folder(path, count)
    if not path.is_file():
        raise ValueError(f"{path} does not exist; give a video file, a folder of frames, or an animated picture")
    return _from_picture(path, count) or _from_video(path, count)


def spread(total: int, count: int) -> list[int]:
    """Which of `total` frames to take: the middles of `count` equal parts."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _from_folder(folder: Path, count: int) -> list[Image.Image]:
    files = sorted((file for file in folder.iterdir() if file.suffix.lower() in PICTURES), key=_natural)
    if not files:
        raise ValueError(f"folder {folder} holds no pictures; put the frames there as PNG or JPEG, named in order")
    frames = [read_image(files[index]) for index in spread(len(files), count)]
    sizes = {frame.size for frame in frames}
    if len(sizes) > 1:
        raise ValueError(f"the frames in {folder} are of different sizes ({sorted(sizes)}); a video's are all alike")
    return frames


def _natural(file: Path) -> list[tuple[int, str]]:
    """Frame 10 comes after frame 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", file.name)]


def _from_picture(path: Path, count: int) -> list[Image.Image]:
    """Of an animated picture; nothing if Pillow does not know the file."""
    try:
        with Image.open(path) as picture:
            wanted = set(spread(getattr(picture, "n_frames", 1), count))
            frames = enumerate(ImageSequence.Iterator(picture))
            return [to_rgb(frame.copy()) for index, frame in frames if index in wanted]
    except UnidentifiedImageError:
        return []


def _from_video(path: Path, count: int) -> list[Image.Image]:
    if find_spec("av") is None:
        raise ValueError(
            f"{path} is a video file, and nothing here can decode it: pip install 'vlm-pruner[video]' (PyAV), or give "
            "a folder of frames or an animated GIF"
        )
    import av

    try:
        total = sum(1 for _ in _decode(path))
        wanted = set(spread(total, count)) if total else set()
        frames = [frame for index, frame in enumerate(_decode(path)) if index in wanted]
        return [frame.to_image().convert("RGB") for frame in frames] if frames else _nothing(path, "it has no frames")
    except (av.FFmpegError, IndexError) as error:
        return _nothing(path, str(error).splitlines()[0] if str(error) else "no video stream")


def _decode(path: Path) -> Iterator[Any]:
    """All frames in order of time. Counting them first costs a second pass, but the count in a file's head may lie."""
    import av

    with av.open(str(path)) as container:
        yield from container.decode(container.streams.video[0])


def _nothing(path: Path, reason: str) -> list[Image.Image]:
    raise ValueError(f"{path} cannot be read as a video ({reason}); convert it to MP4, or give a folder of frames")
