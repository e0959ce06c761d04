"""Tokens mapped back to the picture: each fit against the processors' own treatment of marked pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    PixtralImageProcessorPil,
    Qwen2VLImageProcessorPil,
)
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from tests.families import FAMILIES, Family
from vlm_pruner import CentrifugalPruner, prune
from vlm_pruner.geometry.fit import Box, Fit, GridView
from vlm_pruner.receipts import ImageReceipt

SIZES = [(640, 427), (427, 640), (301, 300), (336, 336), (97, 412)]
CANVASES = ((112, 56), (56, 112), (112, 112), (168, 56), (56, 168))  # (width, height)


def gradient(size: tuple[int, int]) -> Image.Image:
    """Red tells the column and green the row, in shares of the picture; blue is 255 in the whole picture."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.stack([255 * x, 255 * y, np.full_like(x, 255)], axis=-1).round().astype(np.uint8))


def centres(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[rows, columns, 3]: mean colours of the patches of pixels [3, height, width], that is of what a token sees."""
    height, width = pixels.shape[1:]
    return pixels.reshape(3, rows, height // rows, columns, width // columns).mean(axis=(2, 4)).transpose(1, 2, 0)


def check(view: GridView, seen: np.ndarray, size: tuple[int, int], tolerance: float = 0.012) -> None:
    """The centre of every token's box is where its colour says, for tokens that show nothing but picture."""
    compared = 0
    for token, (left, top, right, bottom) in view.boxes():
        row, column = divmod(token - view.first, view.stride or view.columns)
        red, green, blue = seen[row, column] / 255
        inside = left >= 0 and top >= 0 and right <= size[0] and bottom <= size[1]
        if inside and blue > 0.999:
            assert abs((left + right) / 2 / size[0] - red) < tolerance, (token, left, right, red)
            assert abs((top + bottom) / 2 / size[1] - green) < tolerance, (token, top, bottom, green)
            compared += 1
        if right <= 0 or bottom <= 0 or left >= size[0] or top >= size[1]:
            assert blue < 0.9, f"token {token} is said to lie outside of the picture, and shows it"
    assert compared > view.rows * view.columns / 8


OFF = {"do_rescale": False, "do_normalize": False, "do_convert_rgb": True, "return_tensors": "np"}


@pytest.mark.parametrize("size", SIZES)
def test_a_cropped_picture(size: tuple[int, int]) -> None:
    for short in (56, 64):
        processor = CLIPImageProcessorPil(size={"shortest_edge": short}, crop_size={"height": 56, "width": 56})
        pixels = processor(gradient(size), **OFF)["pixel_values"][0]
        fit = Fit("crop", 8, 8, pixels=56, resized=short)
        check(fit.views(size)[0], centres(pixels, 8, 8), size)


@pytest.mark.parametrize("size", SIZES)
def test_a_padded_picture(size: tuple[int, int]) -> None:
    processor = LlavaImageProcessorPil(
        do_pad=True, image_mean=[0.0, 0.0, 0.0], size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
    )
    pixels = processor(gradient(size), **OFF)["pixel_values"][0]
    check(Fit("pad", 32, 32).views(size)[0], centres(pixels, 32, 32), size)


def test_padding_is_of_whole_pixels_as_pictures_are_pasted() -> None:
    assert Fit("pad", 2, 2).views((10, 7))[0].region == (0, -1, 10, 9)
    assert Fit("pad", 2, 2).views((4, 9))[0].region == (-2, 0, 7, 9)


@pytest.mark.parametrize("size", SIZES)
def test_qwens_smart_resize_and_merged_blocks(size: tuple[int, int]) -> None:
    processor = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, size={"shortest_edge": 3136, "longest_edge": 10**6}
    )
    out = processor(gradient(size), **OFF)
    _, rows, columns = out["image_grid_thw"][0] // np.array([1, 2, 2])
    # Patches come block by block, four to a token: [rows * columns * 4, 3 * 2 frames * 14 * 14].
    tokens = out["pixel_values"].reshape(rows, columns, 4, 3, -1).mean(axis=(2, 4))
    check(Fit("stretch", int(rows), int(columns)).views(size)[0], tokens, size)


@pytest.mark.parametrize("size", SIZES)
def test_mistral(size: tuple[int, int]) -> None:
    processor = PixtralImageProcessorPil(patch_size={"height": 28, "width": 28}, size={"longest_edge": 280})
    out = processor(gradient(size), **OFF)
    height, width = out["image_sizes"][0]
    pixels = out["pixel_values"][0][:, :height, :width]
    check(Fit("stretch", height // 28, width // 28).views(size)[0], centres(pixels, height // 28, width // 28), size)


@pytest.mark.parametrize("size", [*SIZES, (1100, 600), (900, 200)])
@pytest.mark.parametrize("make", [LlavaNextImageProcessorPil, LlavaOnevisionImageProcessorPil])
def test_any_resolution(size: tuple[int, int], make: Callable[..., object]) -> None:
    side, tile = 4, 56
    square = {"height": tile, "width": tile}
    pinpoints = [[high, wide] for wide, high in CANVASES]
    processor = make(
        size=square if make is LlavaOnevisionImageProcessorPil else {"shortest_edge": tile},
        crop_size=square,
        image_grid_pinpoints=pinpoints,
    )
    tiles = processor(gradient(size), **OFF)["pixel_values"][0]  # type: ignore[operator]
    down, across = (canvas // tile for canvas in select_best_resolution((size[1], size[0]), pinpoints))
    whole = tiles[1:].reshape(down, across, 3, tile, tile).transpose(2, 0, 3, 1, 4).reshape(3, down * tile, -1)
    seen = centres(whole, down * side, across * side).transpose(2, 0, 1)
    held = unpad_image(torch.from_numpy(seen), (size[1], size[0])).numpy().transpose(1, 2, 0)
    fit = Fit("anyres", held.shape[0], held.shape[1], base=side, pixels=tile, canvases=CANVASES)
    overview, grid = fit.views(size)
    check(overview, centres(tiles[0], side, side), size)
    check(grid, held, size, tolerance=0.02)
    assert (grid.first, grid.stride) == (side**2, held.shape[1] + 1)


def test_a_picture_too_flat_for_tiles_has_the_overview_alone() -> None:
    views = Fit("anyres", 0, 0, base=4, pixels=56, canvases=CANVASES).views((2000, 20))
    assert [view.plane for view in views] == ["overview"]


def test_another_picture_than_the_receipts_is_refused() -> None:
    fit = Fit("anyres", 5, 8, base=4, pixels=56, canvases=CANVASES)
    with pytest.raises(ValueError, match="100 x 100 pixels has 8 x 8 tile tokens, but the receipt has 5 x 8"):
        fit.views((100, 100))


@pytest.mark.parametrize("size", [*SIZES, (900, 300)])
def test_internvls_tiles(size: tuple[int, int]) -> None:
    processor = GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=6)
    tiles = processor(gradient(size), **OFF)["pixel_values"]
    views = Fit("tiles", 4, 4, tiles=len(tiles)).views(size)
    assert len(views) == len(tiles)
    assert views[-1].plane == ("overview" if len(tiles) > 1 else "picture")
    for view, pixels in zip(views, tiles, strict=True):
        check(view, centres(pixels, 4, 4), size)


def test_a_fit_survives_json() -> None:
    fit = Fit("anyres", 5, 8, base=4, pixels=56, canvases=CANVASES)
    assert Fit.from_dict(json.loads(json.dumps(asdict(fit)))) == fit


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'stretched'; known: stretch, pad, crop, anyres, tiles"):
        Fit("stretched", 4, 4)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_says_where_its_tokens_are(family: Family) -> None:
    """A receipt's fit has a box for every token but newlines, and boxes follow each other as the coordinates do."""
    for name, prompt in family.prompts.items():
        inputs = family.inputs(prompt)
        with prune(family.model, CentrifugalPruner(reduction_ratio=0, channels=8)) as pruning, torch.no_grad():
            family.model(**inputs)
        for number, image in enumerate(pruning.receipts[-1].images):
            assert image.fit is not None, name
            views = image.fit.views(_size(image, inputs, number))
            boxes = {token: box for view in views for token, box in view.boxes()}
            newlines = image.n_before - len(boxes)
            rows = image.fit.rows * image.fit.frames
            assert 0 <= newlines <= (rows if image.fit.kind == "anyres" or image.fit.newlines == "grid" else 1)
            assert set(boxes) <= set(range(image.n_before))
            _check_order(boxes, image)


def test_with_released_coordinates_the_boxes_are_still_the_true_ones() -> None:
    family = next(family for family in FAMILIES if family.name == "qwen2_vl")
    fits = []
    for compat in (None, "released"):
        method = CentrifugalPruner(keep_tokens=4, channels=8, compat=compat)
        with prune(family.model, method) as pruning, torch.no_grad():
            family.model(**family.inputs(family.prompts["one"]))
        fits.append(pruning.receipts[-1].images[0].fit)
    assert fits[0] == fits[1] == Fit("stretch", 2, 5)


def _size(image: ImageReceipt, inputs: dict[str, torch.Tensor], number: int) -> tuple[int, int]:
    """Of the picture, which only any-resolution tiles depend on."""
    assert image.fit is not None
    if image.fit.kind != "anyres":
        return 240, 130
    height, width = inputs["image_sizes"][min(number, len(inputs["image_sizes"]) - 1)].tolist()
    return width, height


def _check_order(boxes: dict[int, Box], image: ImageReceipt) -> None:
    """The next token lies to the right or further down where its coordinates do; each view starts anew."""
    coords = np.array(image.coords)[:, -2:]
    assert image.fit is not None
    views = [range(token, token + image.fit.rows * image.fit.columns - 1) for token in (0, (image.fit.base) ** 2)]
    compared = 0
    for token in {token for view in views for token in view} & {token for token in boxes if token + 1 in boxes}:
        if token + 1 == image.fit.base**2 or (token + 1) % (image.fit.rows * image.fit.columns) == 0:
            continue
        moved = np.sign(coords[token + 1] - coords[token]).astype(int).tolist()
        here, there = boxes[token], boxes[token + 1]
        assert [int(np.sign(there[0] - here[0])), int(np.sign(there[1] - here[1]))] == moved, token
        compared += 1
    assert compared
