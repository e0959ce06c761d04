"""Every token of an any-resolution picture lies where its pixels are, through either door."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil
from transformers.image_processing_utils import select_best_resolution as theirs_best
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_next.modeling_llava_next import unpad_image

from llava.mm_utils import process_images
from llava.model.image_tokens import ImageTokens, tiled_view
from llava.model.llava_config import LlavaConfig
from tests import llava_tiny
from tests.tiny_llava_next import CANVASES, SIDE, SIZES, TILE
from vlm_pruner.geometry.anyres import get_anyres_image_grid_shape, select_best_resolution, unpadded_region
from vlm_pruner.geometry.tiles import released_layout, unpadded_layout

PATCH = TILE // SIDE
CONFIG = LlavaConfig(
    mm_patch_merge_type="spatial_unpad",
    image_aspect_ratio="anyres",
    image_grid_pinpoints=[[width, height] for height, width in CANVASES],
)
NEWLINE = torch.tensor([-1e6, -1e6])


def cell_centres(columns: int, rows: int) -> torch.Tensor:
    """[rows, columns, 2]: (x, y) of a grid's cells, counted in cells."""
    return torch.stack(torch.meshgrid(torch.arange(columns) + 0.5, torch.arange(rows) + 0.5, indexing="xy"), dim=-1)


def as_pixels(size: tuple[int, int], merge: str = "spatial_unpad") -> ImageTokens:
    """A picture whose features are the (x, y), in its own pixels, of the centre of what each token shows."""
    width, height = size
    across, down = get_anyres_image_grid_shape(size, CONFIG.image_grid_pinpoints, TILE)
    canvas = torch.tensor([across * TILE, down * TILE])
    scale = min(canvas[0] / width, canvas[1] / height)
    corner = (canvas - torch.tensor(size) * scale) / 2
    grid = (cell_centres(across * SIDE, down * SIDE) * PATCH - corner) / scale
    parts = grid.reshape(down, SIDE, across, SIDE, 2).transpose(1, 2).reshape(across * down, SIDE**2, 2)
    base = (cell_centres(SIDE, SIDE) / SIDE * torch.tensor([width, height])).reshape(1, SIDE**2, 2)
    config = LlavaConfig(**{**CONFIG.to_dict(), "mm_patch_merge_type": merge})
    return tiled_view(torch.cat([base, parts]), size, TILE, config, NEWLINE if merge == "spatial_unpad" else None)


@pytest.mark.parametrize("size", SIZES)
def test_coordinates_are_the_pictures(size):
    tokens = as_pixels(size)
    newline = (tokens.features == NEWLINE).all(dim=1)
    ends = newline.nonzero()[:, 0].tolist()
    rows, columns = len(ends), ends[0] - SIDE**2
    assert ends == [SIDE**2 + row * (columns + 1) + columns for row in range(rows)]
    pixels = (tokens.layout.coords + 0.5) / torch.tensor([columns, rows]) * torch.tensor(size)
    one_token = torch.tensor([size[0] / columns, size[1] / rows])
    assert torch.allclose(pixels[: SIDE**2], tokens.features[: SIDE**2], atol=1e-3), "base tokens"
    off = ((pixels - tokens.features) / one_token)[~newline]
    assert off.abs().max() <= 1, "tile tokens, up to the bars' cut"
    assert tokens.layout.coords[newline].tolist() == [[columns, row] for row in range(rows)]
    assert tokens.layout.diagonal == pytest.approx((rows**2 + columns**2) ** 0.5)
    assert len(tokens.released_layout) == len(tokens.layout) == len(tokens.features)


@pytest.mark.parametrize("merge", ["flat", "spatial"])
def test_with_the_bars_left_in_the_base_lies_over_the_picture(merge):
    tokens = as_pixels((120, 97), merge)
    tile_of_base = torch.cdist(tokens.features[: SIDE**2], tokens.features[SIDE**2 :]).argmin(dim=1)
    near = tokens.layout.coords[SIDE**2 :][tile_of_base]
    assert (near - tokens.layout.coords[: SIDE**2]).abs().max() <= 1


def test_base_and_tiles_of_one_place_are_near():
    layout = unpadded_layout(6, 12, 12)
    assert layout.coords[0].tolist() == [0.5, 0.5], "amid the first 2 x 2 tile tokens"
    assert layout.coords[35].tolist() == [10.5, 10.5]
    assert layout.coords[36:].tolist()[:2] == [[0, 0], [1, 0]] and len(layout) == 36 + 12 * 13


def test_the_released_grid():
    layout = released_layout(50)
    assert layout.coords[49].tolist() == [1, 2] and layout.diagonal == pytest.approx(24 * 2**0.5)


def test_bars_and_canvases_equal_transformers_for_every_size():
    canvases = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    grids = {canvas: torch.zeros(1, canvas[1] // 14, canvas[0] // 14) for canvas in map(tuple, canvases)}
    for width in range(20, 1000, 23):
        for height in range(20, 1000, 17):
            best = select_best_resolution((width, height), [(w, h) for h, w in canvases])
            assert best == theirs_best((height, width), canvases)[::-1]
            grid = grids[best]
            kept = grid[0][unpadded_region(grid.shape[1:], (width, height), rounds=True)].shape
            assert kept == unpad_image(grid, (height, width)).shape[1:], (width, height)


@pytest.mark.parametrize("picture", [(50, 50), (90, 40), (300, 20)])
def test_a_picture_smaller_than_every_canvas_gets_the_smallest_that_holds_it(picture):
    """All keep every pixel; the order of the canvases must not decide."""
    canvases = [(1008, 1008), (336, 336), (672, 336), (672, 672)]
    for order in itertools.permutations(canvases):
        assert select_best_resolution(picture, order) == (336, 336)
        assert theirs_best(picture[::-1], [(height, width) for width, height in order]) == (336, 336)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_transformers(size):
    settings = {key: value for key, value in llava_tiny.PREPROCESSOR.items() if key != "image_processor_type"}
    picture = llava_tiny.picture(0, size)
    ours = process_images([picture], CLIPImageProcessorPil(**settings), CONFIG)[0]
    processor = LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=CANVASES)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_pictures_are_scaled_onto_black_canvases():
    tensor = process_images(
        [Image.new("RGB", (300, 100), (255, 255, 255))],
        CLIPImageProcessorPil(**{k: v for k, v in llava_tiny.PREPROCESSOR.items() if k != "image_processor_type"}),
        CONFIG,
    )
    assert tensor.shape == (1, 4, 3, 84, 84) and tensor.min() > 1
