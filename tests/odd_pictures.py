"""Picture files that plain conversion to RGB gets wrong (16 bits, transparency, EXIF orientation), and a pixel bomb."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (6, 8)


def _noise(channels: int, most: int = 256) -> np.ndarray:
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    return np.random.default_rng(0).integers(0, most, shape)


def _sixteen_bits(folder: Path) -> Path:
    Image.fromarray(_noise(1, 65536).astype(np.uint16)).save(folder / "16.png")
    return folder / "16.png"


def _alpha(folder: Path) -> Path:
    Image.fromarray(_noise(4).astype(np.uint8), "RGBA").save(folder / "alpha.png")
    return folder / "alpha.png"


def _grey_alpha(folder: Path) -> Path:
    Image.fromarray(_noise(2).astype(np.uint8), "LA").save(folder / "la.png")
    return folder / "la.png"


def _palette(folder: Path) -> Path:
    picture = Image.fromarray(_noise(1, 8).astype(np.uint8), "P")
    picture.putpalette(list(_noise(3).ravel()[:24]))
    picture.save(folder / "palette.png", transparency=3)
    return folder / "palette.png"


def _turned(folder: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(_noise(3).astype(np.uint8)).save(folder / "turned.jpg", exif=exif)
    return folder / "turned.jpg"


PICTURES: dict[str, Callable[[Path], Path]] = {
    "16 bits": _sixteen_bits, "alpha": _alpha, "grey and alpha": _grey_alpha, "palette": _palette, "EXIF": _turned,
}  # fmt: skip


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes of PNG whose header promises width x height pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
