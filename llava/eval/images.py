"""Pictures of a question file: found below the image folder, opened as RGB."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from llava.eval.errors import ItemError


def open_image(folder: Path, image: str | bytes) -> Image.Image:
    """The picture in RGB; anything that is wrong with it is an :class:`ItemError`."""
    name = image if isinstance(image, str) else "the encoded picture"
    source = resolve(folder, image) if isinstance(image, str) else io.BytesIO(image)
    try:
        with Image.open(source) as picture:
            return picture.convert("RGB")
    except FileNotFoundError:
        raise ItemError(f"image {name} does not exist in the image folder") from None
    # Pillow's decoders raise nearly anything on damaged files: OSError, SyntaxError, struct.error, bomb errors.
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".replace(str(folder), "the image folder")
        raise ItemError(f"image {name} cannot be read as a picture ({reason})") from None


def resolve(folder: Path, name: str) -> Path:
    """``folder/name``, refusing names that lead out of the folder.

    The check is on the name alone: links that the owner of the folder placed inside it are the owner's business.
    """
    relative = Path(name)
    if "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ItemError(f"image path {name!r} leaves the image folder; paths must be relative and without '..'")
    return folder / relative
