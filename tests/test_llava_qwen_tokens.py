"""LLaVA on Qwen2: what pictures and videos become in the sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from llava.model.image_tokens import count_tiled, tiled_view
from llava.model.layouts import config_from_original, config_from_transformers
from llava.model.llava_arch import encode_images
from llava.model.llava_config import LlavaConfig
from llava.model.video_tokens import pool_frames
from tests import llava_tiny
from tests import tiny_llava_qwen as tiny
from tests.tiny_llava_next import original_config
from vlm_pruner.geometry.anyres import limited_grid, parse_pinpoints, select_best_resolution, unpadded_region
from vlm_pruner.geometry.videos import video_layout

SIDE = tiny.SIDE
PICTURE = (100, 60)  # two tiles across, one down


def tiles(count: int, seed: int = 1) -> torch.Tensor:
    return tiny.film(count, seed)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny.model()


@pytest.mark.parametrize("side", [5, 6, 27])
def test_pooling_is_the_mean_of_the_nearest_weighted_by_distance(side):
    """Against NumPy's arithmetic: source = (i + 0.5) * side / s - 0.5, clamped to the grid."""
    frames = torch.randn(2, side * side, 3, generator=torch.Generator().manual_seed(0))
    pooled = pool_frames(frames, "bilinear").numpy()
    s = -(-side // 2)
    places = ((np.arange(s) + 0.5) * side / s - 0.5).clip(0)
    low = places.astype(int)
    high, share = np.minimum(low + 1, side - 1), (places - low)[:, None]
    grid = frames.reshape(2, side, side, 3).numpy()
    rows = grid[:, low] * (1 - share[..., None]) + grid[:, high] * share[..., None]
    expected = rows[:, :, low] * (1 - share) + rows[:, :, high] * share
    assert np.allclose(pooled, expected, atol=1e-5)


@pytest.mark.parametrize("mode", ["average", "max"])
def test_the_other_poolings_drop_an_odd_row_and_column(mode):
    frames = torch.randn(1, 25, 2, generator=torch.Generator().manual_seed(0))
    blocks = frames.reshape(5, 5, 2)[:4, :4].reshape(2, 2, 2, 2, 2)
    expected = blocks.mean(dim=(1, 3)) if mode == "average" else blocks.amax(dim=(1, 3))
    assert torch.allclose(pool_frames(frames, mode)[0], expected)


@pytest.mark.parametrize(
    ("position", "tokens", "newlines"),
    [
        ("grid", 24, [(t, 3, y) for t in range(2) for y in range(3)]),
        ("frame", 20, [(0, 3, 2), (1, 3, 2)]),
        ("one_token", 19, [(1, 3, 2)]),
        ("no_token", 18, []),
    ],
)
def test_newlines_stand_where_their_places_say(position, tokens, newlines):
    model = tiny.model(mm_newline_position=position)
    video = encode_images(model.model, [tiny.film(2)], modalities=["video"])[0]
    assert video.features.shape == (tokens, 48)
    assert torch.equal(video.layout.coords, video_layout(2, 3, position).coords)
    found = (video.features == model.model.image_newline).all(dim=1)
    assert [tuple(place) for place in video.layout.coords[found].tolist()] == newlines
    assert video.layout.diagonal == pytest.approx(3 * 2**0.5)
    others = video.layout.coords[~found]
    assert torch.equal(others, video_layout(2, 3, "no_token").coords), "row by row, frame after frame"


def test_a_video_may_be_one_frame_and_lie_among_pictures(model):
    picture, video = tiles(3), tiny.film(1)
    together = encode_images(
        model.model, [picture, video, picture], [PICTURE, None, PICTURE], ["image", "video", "image"]
    )
    alone = encode_images(model.model, [video], modalities="video")[0]
    assert torch.allclose(together[1].features, alone.features, atol=1e-6)
    assert torch.equal(together[0].features, together[2].features)
    same = encode_images(model.model, [picture, video, picture], [PICTURE, PICTURE], ["image", "video", "image"])
    assert torch.equal(same[2].features, together[2].features), "sizes of the pictures alone"


def test_one_word_is_for_all_and_one_image_in_a_list_as_lmms_eval_writes_it(model):
    films = [tiny.film(2, 0), tiny.film(3, 1)]
    both = encode_images(model.model, films, modalities="video")
    assert [len(item.layout) for item in both] == [24, 36]
    pictures = encode_images(model.model, [tiles(3), tiles(3, 2)], [PICTURE] * 2, ["image"])
    assert len(pictures) == 2


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        (["video"], r"2 pictures and videos, but 1 modalities \(\['video'\]\)"),
        (["video", "text"], "modalities hold 'text'; known: 'image', 'video'"),
    ],
)
def test_unclear_modalities_are_refused(model, modalities, message):
    with pytest.raises(ValueError, match=message):
        encode_images(model.model, [tiny.film(2), tiny.film(2)], modalities=modalities)


def test_videos_need_a_model_that_takes_them():
    with pytest.raises(ValueError, match="'llava_llama' takes pictures only"):
        encode_images(llava_tiny.model().model, [llava_tiny.pixels(0, 1)], modalities=["video"])


def test_newlines_need_their_embedding():
    with pytest.raises(ValueError, match="has no image_newline embedding; use 'no_token'"):
        encode_images(tiny.model(mm_patch_merge_type="spatial").model, [tiny.film(2)], modalities=["video"])
    model = tiny.model(mm_patch_merge_type="flat", mm_newline_position="one_token")
    assert len(encode_images(model.model, [tiny.film(2)], modalities=["video"])[0].layout) == 18


def test_a_picture_of_one_view_ends_with_one_newline(model):
    view = tiles(1)
    listed = encode_images(model.model, [view[0]])[0]
    assert len(listed.layout) == SIDE**2 + 1
    assert torch.equal(listed.features[-1], model.model.image_newline)
    assert listed.layout.coords[-1].tolist() == [SIDE, SIDE - 1]
    assert len(encode_images(model.model, view)[0].layout) == SIDE**2, "one tensor of squares has none, as in LLaVA"


def test_large_grids_are_shrunk(model):
    """3 x 3 tiles are more than 1.1^2 times two: 18 x 18 tokens become 8 x 8, bilinearly."""
    pixels = tiles(10)
    size = (255, 255)
    found = encode_images(model.model, [pixels], [size])[0]
    assert limited_grid(18, 18, SIDE, "anyres_max_2") == (8, 8)
    grid = model.model.mm_projector(model.model.vision_tower(pixels))[1:].reshape(3, 3, SIDE, SIDE, -1)
    grid = grid.transpose(1, 2).reshape(18, 18, -1).permute(2, 0, 1)[None]
    expected = functional.interpolate(grid, size=(8, 8), mode="bilinear")[0].permute(1, 2, 0)
    tokens = found.features[SIDE**2 :].reshape(8, 9, -1)
    assert torch.allclose(tokens[:, :-1], expected, atol=1e-5)
    assert torch.equal(tokens[:, -1], model.model.image_newline.expand(8, -1))


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "expected"),
    [
        (90, 135, "anyres_max_9", (66, 99)),
        (54, 38, "anyres_max_9", (54, 38)),
        (89, 89, "anyres_max_9", (89, 89)),  # 7921 tokens: within 1.21 * 6561
        (90, 89, "anyres_max_9", (81, 80)),
        (90, 135, "anyres", (90, 135)),
        (54, 54, "anyres_max_4", (54, 54)),
        (81, 54, "anyres_max_4", (66, 44)),
    ],
)
def test_limits(rows, columns, ratio, expected):
    assert limited_grid(rows, columns, 27, ratio) == expected


def test_pinpoints_may_be_a_range_of_tiles():
    pairs = [(384 * across, 384 * down) for across in range(1, 7) for down in range(1, 7)]
    assert parse_pinpoints("(1x1),...,(6x6)", 384) == pairs == parse_pinpoints([list(pair) for pair in pairs], 384)
    assert parse_pinpoints("[[336, 672], [672, 336]]", 336) == [(336, 672), (672, 336)]


NEXT_CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.mark.parametrize(
    ("size", "side", "tile", "truncated", "rounded"),
    [
        ((820, 369), 27, 384, (27, 59), (27, 61)),
        ((1375, 1125), 27, 384, (81, 98), (81, 100)),
        ((205, 656), 24, 336, (48, 14), (48, 16)),
        ((352, 110), 24, 336, (14, 48), (16, 48)),
        ((799, 376), 24, 336, (24, 50), (24, 52)),
    ],
)
def test_the_original_truncates_without_rounding(size, side, tile, truncated, rounded):
    """All five of 88,530 sizes for which it matters. LLaVA-1.6 has the last three."""
    canvases = NEXT_CANVASES if side == 24 else parse_pinpoints("(1x1),...,(6x6)", tile)
    canvas = select_best_resolution(size, canvases)
    grid = (canvas[1] // tile * side, canvas[0] // tile * side)

    def held(rounds: bool) -> tuple[int, ...]:
        return tuple(axis.stop - axis.start for axis in unpadded_region(grid, size, rounds=rounds))

    assert (held(False), held(True)) == (truncated, rounded)


@pytest.mark.parametrize(("rounds", "tokens"), [(False, 576 + 48 * 15), (True, 576 + 48 * 17)])
def test_llava_next_truncates_in_the_original_layout_and_rounds_in_transformers(rounds, tokens):
    config = LlavaConfig(
        mm_patch_merge_type="spatial_unpad",
        image_aspect_ratio="anyres",
        image_grid_pinpoints=[list(canvas) for canvas in NEXT_CANVASES],
        unpad_rounds=rounds,
    )
    views = torch.zeros(3, 576, 4)
    assert count_tiled((205, 656), 24, 336, config) == tokens
    assert len(tiled_view(views, (205, 656), 336, config, torch.ones(4)).layout) == tokens
    folder = Path("checkpoint")
    layout = transformers_config() if rounds else original_config()
    read = config_from_transformers if rounds else config_from_original
    assert read(layout, folder).unpad_rounds == rounds


def transformers_config() -> dict[str, Any]:
    return {**llava_tiny.transformers_config(), "model_type": "llava_next"}


def test_a_batch_equals_its_rows_one_by_one(model):
    """Which the original code does not manage: text rows use up pictures there."""
    ids = [tiny.ids(1, 0), tiny.ids(0, 1), tiny.ids(2, 2)]
    items = [tiny.film(2, 0), tiles(3), tiny.film(3, 2)]
    kinds, sizes = ["video", "image", "video"], [None, PICTURE, None]
    longest = max(row.shape[1] for row in ids)
    batch = torch.cat([functional.pad(row, (longest - row.shape[1], 0)) for row in ids])
    mask = torch.cat([functional.pad(torch.ones_like(row), (longest - row.shape[1], 0), value=0) for row in ids])
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    together = model.generate(batch, attention_mask=mask, images=items, image_sizes=sizes, modalities=kinds, **settings)
    alone = [
        model.generate(ids[0], images=items[:1], modalities=kinds[:1], **settings),
        model.generate(ids[1], **settings),
        model.generate(ids[2], images=items[1:], image_sizes=sizes[1:], modalities=kinds[1:], **settings),
    ]
    assert torch.equal(together, torch.cat(alone))


def test_the_repetition_penalty_sees_new_tokens_only(model):
    """A strong penalty changes nothing of the first token, although the prompt holds it."""
    about = {"images": [tiny.film(2)], "modalities": ["video"], "do_sample": False, "eos_token_id": None}
    ids = tiny.ids()
    first = model.generate(ids, **about, max_new_tokens=1)[0, 0]
    ids = torch.cat([ids, first[None, None]], dim=1)
    plain = model.generate(ids, **about, max_new_tokens=1)
    ids = torch.cat([ids, plain], dim=1)
    again = model.generate(ids, **about, max_new_tokens=1)
    ids = torch.cat([ids, again], dim=1)
    expected = model.generate(ids, **about, max_new_tokens=1)
    for_prompt = model.generate(ids, **about, max_new_tokens=1, repetition_penalty=50.0)
    assert torch.equal(expected, for_prompt)


# Of the seeded model above, in float32: to be changed only with what a video or picture becomes.
GOLDEN = {
    "grid": [0, 0, 19, 0, 4, 19, 0, 4],
    "frame": [15, 0, 4, 0, 4, 19, 0, 4],
    "one_token": [15, 0, 19, 0, 4, 19, 0, 4],
    "no_token": [15, 0, 19, 0, 4, 19, 0, 8],
}


@pytest.mark.parametrize("position", list(GOLDEN))
def test_answers_stay(position):
    model = tiny.model(mm_newline_position=position)
    answer = model.generate(
        tiny.ids(2),
        images=[tiny.film(4), tiles(3)],
        image_sizes=[None, PICTURE],
        modalities=["video", "image"],
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
    )
    assert answer[0].tolist() == GOLDEN[position]
