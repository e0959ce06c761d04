"""Opens pictures: any readable file becomes an upright RGB picture, any other an error that names the file."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

WHITE = (255, 255, 255)
MAX_PIXELS = 178_956_970  # where Pillow too refuses a picture; decoded, it takes half a gigabyte
LIMIT = "VLM_PRUNER_MAX_PIXELS"  # the environment variable that sets another limit

Source = str | Path | bytes


class ImageReadError(ValueError):
    """A picture cannot be read. The message is one line and names the file and the remedy."""


def read_image(source: Source, *, as_released: bool = False, name: str | None = None) -> Image.Image:
    """Reads a picture as RGB.

    Rotates it as its EXIF data say, composites transparent parts over white, and scales 16-bit grey to 8 bits.

    source:      a path or the file's bytes. name: the file's name in error messages.
    as_released: ignore EXIF and transparency, as LLaVA's evaluation scripts do (the colours under transparent pixels
                 show through), to reproduce the exact pixels behind published numbers.

    Raises `ImageReadError` for a missing, empty, truncated or otherwise unreadable file, and, before it is decoded, for
    one of more than MAX_PIXELS pixels; VLM_PRUNER_MAX_PIXELS sets another limit.
    """
    name = name or (str(source) if isinstance(source, str | Path) else "the picture's bytes")
    data = _read_bytes(source, name)
    try:
        pixel_limit()  # before Pillow applies its own
        picture = Image.open(io.BytesIO(data))
        check_size(picture.size, name)
        picture.load()
        return to_rgb(picture, as_released=as_released)
    except ImageReadError:
        raise
    except UnidentifiedImageError:
        raise ImageReadError(f"{name} is not a picture in a known format; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError as error:
        raise ImageReadError(f"{name} is too large ({_first_line(error)}); {_smaller()}") from None
    except Exception as error:  # Pillow's decoders raise anything on damaged files
        message = f"{name} is damaged ({_first_line(error)}); download or export it again"
        raise ImageReadError(message) from None


def pixel_limit() -> int:
    """The largest number of pixels that is decoded. Pillow has a limit of its own, which a higher one moves up."""
    text = os.environ.get(LIMIT)
    if text is None:
        return MAX_PIXELS
    if not text.isdecimal() or int(text) < 1:
        raise ImageReadError(f"{LIMIT}={text!r} is not a number of pixels such as {MAX_PIXELS}")
    limit = int(text)
    if Image.MAX_IMAGE_PIXELS is not None and limit > 2 * Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit // 2 + 1  # Pillow warns from here on, and refuses twice as many
    return limit


def check_size(size: tuple[int, int], name: str) -> None:
    """Raises ImageReadError for a picture with more pixels than `pixel_limit()`."""
    limit = pixel_limit()
    if size[0] * size[1] > limit:
        raise ImageReadError(
            f"{name} is too large: {size[0]} x {size[1]} pixels, and the limit is {limit:,} in all; {_smaller()}"
        )


def _smaller() -> str:
    return f"scale it down first, or set {LIMIT}"


def to_rgb(picture: Image.Image, *, as_released: bool = False) -> Image.Image:
    """Converts `picture` to RGB as `read_image` does."""
    if as_released:
        return _to_eight_bits(picture).convert("RGB")
    picture = _to_eight_bits(ImageOps.exif_transpose(picture))
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    return picture.convert("RGB")


def _read_bytes(source: Source, name: str) -> bytes:
    if isinstance(source, bytes):
        data = source
    else:
        try:
            data = Path(source).read_bytes()
        except FileNotFoundError:
            raise ImageReadError(f"{name} does not exist; check the image folder and the file name") from None
        except OSError as error:
            raise ImageReadError(
                f"{name} cannot be read ({error.strerror}); check the path and its permissions"
            ) from None
    if not data:
        raise ImageReadError(f"{name} is empty (0 bytes); download or export it again")
    return data


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Scales 16- and 32-bit grey to 8 bits; Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = picture.convert("F")
    _, highest = values.getextrema()
    scale = 255.0 / _full_scale(picture.mode, float(highest))  # type: ignore[arg-type]  # one band, one number
    return values.point(lambda value: value * scale + 0.0).convert("L")


def _full_scale(mode: str, highest: float) -> float:
    """The value of white. Files do not record it, so take the smallest common value that no pixel exceeds."""
    if mode.startswith("I;16"):
        return 65535.0
    usual = (255.0, 65535.0) if mode == "I" else (1.0, 255.0, 65535.0)
    return next((white for white in usual if highest <= white), highest)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
