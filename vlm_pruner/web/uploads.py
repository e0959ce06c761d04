"""Uploads: read as upright RGB pictures, or refused with a sentence that says what to do."""

from __future__ import annotations

import io
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from PIL import ExifTags, Image

from vlm_pruner.images import ImageReadError, read_image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # Pillow reads more, some with the help of other programs
MAX_MEGAPIXELS = 40


@dataclass(frozen=True)
class Upload:
    """A readable picture. data: the file's bytes. notes: how it was changed for display.

    path: of the same picture, for lines that repeat an answer; None for a visitor's own file.
    """

    name: str
    data: bytes
    notes: tuple[str, ...] = ()
    path: str | None = None

    def picture(self) -> Image.Image:
        """RGB, upright, without transparency; the first frame of an animation."""
        return read_image(self.data, name=self.name)


def accept(data: bytes, name: str, path: str | None = None) -> Upload:
    """Check a file's bytes. Raises `ImageReadError` if they are no picture, damaged, or more than MAX_MEGAPIXELS."""
    name = clean_name(name)
    header = _open(data, name)
    megapixels = header.width * header.height / 1e6
    if megapixels > MAX_MEGAPIXELS:
        raise ImageReadError(
            f"{name} is {header.width} x {header.height} pixels; scale it down to {MAX_MEGAPIXELS} megapixels or less"
        )
    upload = Upload(name, data, path=path)
    upload.picture()  # reports damage now, not at the first question
    return replace(upload, notes=tuple(_notes(header)))


class Inbox:
    """Uploaded files, read and removed, so that no visitor's picture stays on the server's disk.

    The web framework names a file after its content: two visitors who upload one picture share it, and the first to
    read it removes it. So the last few contents stay in memory for the second.
    """

    def __init__(self, kept: int = 8) -> None:
        self._kept = kept
        self._recent: OrderedDict[Path, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, path: Path) -> bytes:
        """The file's bytes; it is gone afterwards. Raises `ImageReadError` if it already was."""
        with self._lock:
            try:
                data = path.read_bytes()
                path.unlink()
            except FileNotFoundError:
                if path not in self._recent:
                    raise ImageReadError(f"{clean_name(path.name)} was lost on the way: upload it again") from None
                data = self._recent[path]
            self._recent[path] = data
            self._recent.move_to_end(path)
            while len(self._recent) > self._kept:
                self._recent.popitem(last=False)
            return data


def clean_name(name: str) -> str:
    """The file's own name without folders or control characters, at most 80 characters long."""
    bare = PurePath(name.replace("\\", "/")).name
    printable = "".join(character for character in bare if character.isprintable())
    return printable[-80:] or "picture"


def _open(data: bytes, name: str) -> Image.Image:
    """The file's header; decodes no pixels."""
    if not data:
        raise ImageReadError(f"{name} is empty (0 bytes); export it again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ImageReadError(f"{name} is far too large; scale it down to {MAX_MEGAPIXELS} megapixels or less") from None
    except Exception:  # decoders raise anything on hostile bytes
        raise ImageReadError(
            f"{name} is not a picture that can be read here; use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        ) from None


def _notes(header: Image.Image) -> list[str]:
    notes = []
    frames = _frames(header)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    if header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        notes.append("turned upright as its EXIF data say")
    if header.has_transparency_data:
        notes.append("transparent parts laid over white")
    return notes


def _frames(header: Image.Image) -> int:
    try:
        return int(getattr(header, "n_frames", 1))
    except (OSError, EOFError, SyntaxError, ValueError):  # the first frame is whole, a later one is damaged
        return 1
