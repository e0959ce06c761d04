"""Pictures of every kind come out as upright RGB, or as a one-line error that names the file."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaNextConfig
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from llava.mm_utils import (
    divide_to_patches,
    expand2square,
    get_anyres_image_grid_shape,
    process_images,
    resize_and_pad_image,
    select_best_resolution,
)
from llava.model.image_tokens import count_tiled, tiled_view
from llava.model.llava_config import LlavaConfig
from tests import llava_tiny
from tests.odd_pictures import png_that_claims
from vlm_pruner.geometry.anyres import parse_pinpoints, unpadded_region
from vlm_pruner.images import ImageReadError, read_image

RED = (200, 30, 40)


def processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(**{k: v for k, v in llava_tiny.PREPROCESSOR.items() if k != "image_processor_type"})


def stored(path, picture, **options):
    picture.save(path, **options)
    return read_image(path)


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1", "RGBA", "LA", "YCbCr"])
def test_modes_become_rgb(tmp_path, mode):
    path = tmp_path / ("p.jpg" if mode in ("CMYK", "YCbCr") else "p.png")
    picture = stored(path, Image.new("RGB", (20, 10), (255, 255, 255)).convert(mode))
    assert picture.mode == "RGB" and picture.size == (20, 10)
    assert min(picture.getpixel((3, 3))) >= 250


def test_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.putpixel((0, 0), 0)
    opened = stored(tmp_path / "p.png", picture, transparency=0)
    assert opened.getpixel((0, 0)) == (255, 255, 255) and opened.getpixel((2, 2)) == RED


def test_transparent_pixels_are_white_unless_asked_for_the_released_pixels(tmp_path):
    Image.new("RGBA", (4, 4), (*RED, 0)).save(tmp_path / "p.png")
    assert read_image(tmp_path / "p.png").getpixel((0, 0)) == (255, 255, 255)
    assert read_image(tmp_path / "p.png", as_released=True).getpixel((0, 0)) == RED


def test_sixteen_bits_keep_their_greys(tmp_path):
    values = np.array([[0, 16384], [32768, 65535]], dtype=np.uint16)
    opened = np.asarray(stored(tmp_path / "p.png", Image.fromarray(values)))
    assert np.abs(opened[..., 0].astype(int) - values // 257).max() <= 1


def test_float_greys_keep_their_range(tmp_path):
    opened = stored(tmp_path / "p.tiff", Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)))
    assert [opened.getpixel((x, 0))[0] for x in range(3)] == pytest.approx([0, 127, 255], abs=1)


def test_exif_rotation_is_applied_unless_asked_for_the_released_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    picture = Image.new("RGB", (20, 10), (255, 255, 255))
    picture.paste(RED, (0, 0, 10, 10))  # the left half
    picture.save(tmp_path / "p.png", exif=exif)
    upright = read_image(tmp_path / "p.png")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == RED and upright.getpixel((5, 17)) == (255, 255, 255)
    assert read_image(tmp_path / "p.png", as_released=True).size == (20, 10)


def test_exif_rotation_of_sixteen_bits(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.full((4, 6), 65535, dtype=np.uint16)).save(tmp_path / "p.png", exif=exif)
    assert read_image(tmp_path / "p.png").size == (4, 6)


def test_bytes_and_animations(tmp_path):
    frames = [Image.new("RGB", (5, 5), color) for color in (RED, (0, 0, 255))]
    frames[0].save(tmp_path / "p.gif", save_all=True, append_images=frames[1:])
    assert read_image((tmp_path / "p.gif").read_bytes()).getpixel((0, 0))[0] > 150


def damaged_jpeg() -> bytes:
    buffer = io.BytesIO()
    llava_tiny.picture().save(buffer, "JPEG")
    return buffer.getvalue()[:600]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"<html>not found</html>", "not a picture"),
        (damaged_jpeg(), "is damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "damaged|not a picture"),
    ],
)
def test_unreadable_files_are_named_in_one_line(tmp_path, content, words):
    path = tmp_path / "scene.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageReadError, match=rf"scene\.png .*({words})") as error:
        read_image(path)
    assert "\n" not in str(error.value)


def test_a_folder_is_not_a_picture(tmp_path):
    with pytest.raises(ImageReadError, match="cannot be read"):
        read_image(tmp_path)


def test_too_many_pixels(tmp_path, monkeypatch):
    Image.new("L", (60, 60)).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageReadError, match=r"p\.png is too large"):
        read_image(tmp_path / "p.png")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_pixel_bomb_is_refused_before_it_is_decoded(monkeypatch):
    for side in (13_400, 60_000):  # Pillow itself refuses the second
        with pytest.raises(ImageReadError, match=r"too large.*VLM_PRUNER_MAX_PIXELS"):
            read_image(png_that_claims(side, side), name="b.png")
    monkeypatch.setenv("VLM_PRUNER_MAX_PIXELS", "99")
    with pytest.raises(ImageReadError, match="10 x 10 pixels, and the limit is 99 in all"):
        read_image(png_that_claims(10, 10))


def test_the_limit_of_pixels_can_be_raised_above_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    picture = io.BytesIO()
    Image.new("L", (60, 60)).save(picture, "PNG")
    monkeypatch.setenv("VLM_PRUNER_MAX_PIXELS", "3600")
    assert read_image(picture.getvalue()).size == (60, 60)
    monkeypatch.setenv("VLM_PRUNER_MAX_PIXELS", "many")
    with pytest.raises(ImageReadError, match="VLM_PRUNER_MAX_PIXELS='many' is not a number of pixels"):
        read_image(picture.getvalue())


def test_expand2square_centres():
    square = expand2square(Image.new("RGB", (10, 4), RED), (1, 2, 3))
    assert square.size == (10, 10)
    assert [square.getpixel((5, y)) == RED for y in range(10)] == [False] * 3 + [True] * 4 + [False] * 3
    assert expand2square(Image.new("RGB", (4, 5), RED), (1, 2, 3)).getpixel((4, 0)) == (1, 2, 3)


def test_pad_fills_with_the_mean_colour():
    config = SimpleNamespace(image_aspect_ratio="pad")
    values = process_images([Image.new("RGB", (84, 42), RED)], processor(), config)
    assert values.shape == (1, 3, 84, 84)
    assert values[0, :, 0, 0].abs().max() < 0.02, "the mean colour is zero after normalisation, up to rounding"
    assert values[0, 0, 42, 42] > 0.9


def test_without_an_aspect_ratio_the_processor_crops():
    config = SimpleNamespace(image_aspect_ratio=None)
    values = process_images([Image.new("RGB", (84, 42), RED)] * 2, processor(), config)
    assert values.shape == (2, 3, 84, 84) and values[0, 0].min() > 0.9


def test_unknown_aspect_ratio():
    with pytest.raises(ValueError, match="'stretch'"):
        process_images([], processor(), SimpleNamespace(image_aspect_ratio="stretch"))


PINPOINTS = [[84, 168], [168, 84], [168, 168], [252, 84], [84, 252]]


def test_anyres_tiles():
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=str(PINPOINTS))
    one = process_images([llava_tiny.picture(0, (300, 100))], processor(), config)
    assert one.shape == (1, 4, 3, 84, 84)
    mixed = process_images([llava_tiny.picture(0, (300, 100)), llava_tiny.picture(1, (90, 90))], processor(), config)
    assert [tensor.shape[0] for tensor in mixed] == [4, 5]


def test_anyres_geometry():
    assert select_best_resolution((300, 100), parse_pinpoints(PINPOINTS)) == (252, 84)
    assert get_anyres_image_grid_shape((100, 300), PINPOINTS, 84) == (1, 3)
    fitted = resize_and_pad_image(Image.new("RGB", (300, 100), RED), (168, 168))
    assert fitted.getpixel((0, 0)) == (0, 0, 0) and fitted.getpixel((84, 84)) == RED
    assert [tile.size for tile in divide_to_patches(fitted, 84)] == [(84, 84)] * 4
    assert unpadded_region((12, 12), (300, 100)) == (slice(4, 8), slice(0, 12))
    with pytest.raises(ValueError, match="'anything'"):
        parse_pinpoints("anything")


@pytest.mark.parametrize("size", [(300, 100), (90, 90), (100, 290), (120, 97), (900, 10), (10, 900)])
def test_anyres_packing_equals_transformers(size):
    """transformers' LLaVA-NeXT packs tiles into the same sequence; ours adds coordinates to it."""
    config = LlavaConfig(mm_patch_merge_type="spatial_unpad", image_grid_pinpoints=PINPOINTS)
    across, down = get_anyres_image_grid_shape(size, PINPOINTS, 84)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1 + across * down, 36, 8, generator=generator)
    newline = torch.randn(8, generator=generator)
    theirs = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=LlavaNextConfig(vision_config=llava_tiny.VISION, image_grid_pinpoints=PINPOINTS)),
        [features],
        [(size[1], size[0])],
        "default",
        newline,
    )[0][0]
    ours = tiled_view(features, size, 84, config, newline)
    assert torch.equal(ours.features, theirs)
    assert len(ours.layout) == len(theirs) == count_tiled(size, 6, 84, config)


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_tiles_keep_their_places(merge):
    """Features that are their own coordinates come out beside equal coordinates."""
    config = LlavaConfig(mm_patch_merge_type=merge, image_grid_pinpoints=PINPOINTS)
    places = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="xy"), dim=-1)
    tiles = [places[y : y + 6, x : x + 6].reshape(36, 2) for y in (0, 6) for x in (0, 6)]
    base = torch.zeros(36, 2)
    tokens = tiled_view(torch.stack([base, *tiles]), (168, 168), 84, config, None)
    assert torch.equal(tokens.features[36:], tokens.layout.coords[36:])
    assert len(tokens.layout) == count_tiled((168, 168), 6, 84, config)
    assert tokens.layout.coords[:36].max() == 10.5, "amid the tile tokens 10 and 11"
    assert tokens.layout.diagonal == pytest.approx(12 * 2**0.5)


def test_tiles_of_another_picture_are_refused():
    config = LlavaConfig(mm_patch_merge_type="spatial", image_grid_pinpoints=PINPOINTS)
    with pytest.raises(ValueError, match=r"3 x 1 tiles, but 4 were given"):
        tiled_view(torch.zeros(5, 36, 8), (300, 100), 84, config, None)
    with pytest.raises(ValueError, match="need image_sizes"):
        tiled_view(torch.zeros(5, 36, 8), None, 84, config, None)
