"""Pictures that visitors upload: which are read, and the messages for the rest."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.odd_pictures import png_that_claims
from vlm_pruner.images import ImageReadError
from vlm_pruner.web.uploads import MAX_MEGAPIXELS, Inbox, accept, clean_name

RED, BLUE = (214, 40, 40), (45, 80, 220)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def two_colours(mode: str = "RGB") -> Image.Image:
    """Red left half, blue right half, 40 x 20."""
    picture = Image.new(mode, (40, 20), RED)
    picture.paste(BLUE, (20, 0, 40, 20))
    return picture


def test_a_plain_picture_is_taken_unchanged():
    upload = accept(encoded(two_colours(), "PNG"), "a.png")
    assert upload.notes == ()
    assert np.array_equal(np.asarray(upload.picture()), np.asarray(two_colours()))


def test_a_rotated_photograph_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upload = accept(encoded(two_colours(), "PNG", exif=exif), "a.png")
    assert upload.picture().size == (20, 40)
    assert upload.picture().getpixel((10, 5)) == RED
    assert "upright" in upload.notes[0]


def test_transparency_is_laid_over_white():
    picture = two_colours("RGBA")
    picture.putalpha(0)
    upload = accept(encoded(picture, "PNG"), "a.png")
    assert upload.picture().getpixel((0, 0)) == (255, 255, 255)
    assert "white" in upload.notes[0]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, RED)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
    upload = accept(data, "a.gif")
    assert upload.picture().getpixel((8, 8)) == RED
    assert "first of 3 frames" in upload.notes


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_picture_is_refused_by_name(data):
    with pytest.raises(ImageReadError, match=r"holiday\.png is (not a picture|empty)"):
        accept(data, "holiday.png")


def test_a_truncated_picture_is_refused():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, "PNG")
    with pytest.raises(ImageReadError, match="damaged"):
        accept(data[: len(data) // 2], "a.png")


@pytest.mark.parametrize("side", [7_000, 30_000])
def test_a_huge_picture_is_refused_before_it_is_unpacked(side):
    with pytest.raises(ImageReadError, match=f"{MAX_MEGAPIXELS} megapixels"):
        accept(png_that_claims(side, side), "a.png")


def test_names_lose_folders_and_control_characters():
    assert clean_name("../../etc/passwd") == "passwd"
    assert clean_name("C:\\pictures\\a\x00\x1b[31m.png") == "a[31m.png"
    assert clean_name("/") == "picture"
    assert len(clean_name("x" * 500 + ".png")) == 80


def test_two_visitors_may_upload_the_same_picture(tmp_path):
    """The framework gives both the same path; the second finds the file gone."""
    inbox, path = Inbox(kept=2), tmp_path / "a.png"
    path.write_bytes(b"same")
    assert inbox.take(path) == b"same" and not path.exists()
    assert inbox.take(path) == b"same", "the second visitor's picture"
    for name in ("b.png", "c.png"):
        (tmp_path / name).write_bytes(b"other")
        assert inbox.take(tmp_path / name) == b"other"
    with pytest.raises(ImageReadError, match=r"a\.png was lost on the way: upload it again"):
        inbox.take(path)
    path.write_bytes(b"new")
    assert inbox.take(path) == b"new" and list(tmp_path.iterdir()) == []
