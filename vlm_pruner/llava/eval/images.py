"""Pictures of a question file, found in the image folder and opened; a failure concerns that item alone."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vlm_pruner.images import ImageReadError, read_image, to_rgb
from vlm_pruner.llava.eval.errors import ItemError


def open_image(folder: Path, image: str | bytes | Image.Image, as_released: bool = False) -> Image.Image:
    """The picture in RGB, from a path below ``folder``, from encoded bytes, or opened already."""
    if isinstance(image, Image.Image):
        return to_rgb(image, as_released=as_released)
    name = image if isinstance(image, str) else "the encoded picture"
    source = resolve(folder, image) if isinstance(image, str) else image
    try:
        return read_image(source, as_released=as_released, name=f"image {name}")
    except ImageReadError as error:
        raise ItemError(str(error)) from None


def resolve(folder: Path, name: str) -> Path:
    """``folder/name``; refuses names that lead out of the folder.

    Only the name is checked: links inside the folder are up to its owner.
    """
    relative = Path(name)
    if "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise ItemError(f"image path {name!r} leaves the image folder; paths must be relative and without '..'")
    return folder / relative
