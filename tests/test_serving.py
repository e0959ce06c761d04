"""A request's wish, its budgets, and the arithmetic of kept positions; no engine needed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch

import vlm_pruner as vp
from tests.every_method import of_pictures
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.tiles import unpadded_layout
from vlm_pruner.methods.words import SHORTHANDS
from vlm_pruner.serving.placement import LIMIT, Item, batches, place, split_offsets, with_offsets
from vlm_pruner.serving.wish import AT_INPUT, FROM_CLIP, SETTABLE, fitting, parse, parse_text

NEEDS_NOTHING = [name for name in of_pictures() if vp.methods.get(name).needs <= {"embeddings"}]


def wish(asked):
    found = parse(asked)
    assert found is not None
    return found


@pytest.mark.parametrize("asked", [None, "off"])
def test_nothing_is_asked(asked):
    assert parse(asked) is None
    assert parse_text("") is None


def test_a_wish_is_a_method_at_the_input():
    assert wish({"keep_tokens": 64}).method == vp.CentrifugalPruner(keep_tokens=64, layer=0)
    asked = {"method": "divprune", "reduction_ratio": 0.5}
    assert wish(asked).method == vp.methods.get("divprune")(reduction_ratio=0.5)
    asked = {"method": "vlm-pruner-16", "keep_tokens": 64, "layer": 0, "self_weight": 0.5}
    assert wish(asked).method == vp.CentrifugalPruner(keep_tokens=64, layer=0, token_batch=16, self_weight=0.5)


@pytest.mark.parametrize("name", NEEDS_NOTHING)
def test_every_method_that_needs_embeddings_alone_is_offered_and_survives_its_text(name):
    assert name in fitting()
    for budget in ({"keep_tokens": 5}, {"reduction_ratio": 0.25}):
        made = wish({"method": name, **budget})
        again = parse_text(made.text)
        assert again is not None and again.method == made.method and again.text == made.text
        assert made.method.layer == 0


EQUAL = [
    ({"keep_tokens": 64}, {"keep_tokens": "64"}),
    ({"keep_tokens": 64}, {"keep_tokens": 64.0, "reduction_ratio": None}),
    ({"keep_tokens": 64}, {"method": "vlm-pruner", "keep_tokens": 64, "layer": 0, "threshold": 0.8}),
    ({"reduction_ratio": 0.5}, {"reduction_ratio": ".50"}),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_wishes_have_one_text(one, other):
    assert wish(one).text == wish(other).text


def test_different_wishes_have_different_texts():
    asked = [{"method": name, "keep_tokens": n} for name in fitting() for n in (5, 6)]
    asked += [{"keep_tokens": 5, "threshold": 0.7}, {"reduction_ratio": 0.5}, {"keep_tokens": 5, "self_weight": 0.1}]
    assert len({wish(one).text for one in asked}) == len(asked)


BAD = [
    (64, '64 is neither an object such as .* nor "off"'),
    ("on", "'on' is neither"),
    ([64], r"\[64\] is neither"),
    ({}, "give exactly one of reduction_ratio and keep_tokens"),
    ({"keep_tokens": 64, "reduction_ratio": 0.5}, "give exactly one"),
    ({"keep_tokens": 0}, "keep_tokens=0 must be a whole number of at least 1"),
    ({"keep_tokens": 3}, "keep_tokens=3 is less than pivots=4"),
    ({"keep_tokens": -3}, "keep_tokens=-3 must be"),
    ({"keep_tokens": "x"}, "keep_tokens='x' is not a whole number"),
    ({"keep_tokens": True}, "keep_tokens=True is not a whole number"),
    ({"keep_tokens": 1.5}, "keep_tokens=1.5 is not a whole number"),
    ({"keep_tokens": float("nan")}, "keep_tokens=nan is not a whole number"),
    ({"reduction_ratio": 1}, "reduction_ratio=1.0 must be at least 0 and below 1"),
    ({"method": "fastv", "keep_tokens": 64}, "method 'fastv' needs attend, .*; methods that work here: divprune"),
    ({"method": "evs", "keep_tokens": 64}, "method 'evs' prunes videos only"),
    ({"method": "magic", "keep_tokens": 64}, "method 'magic' is not a method"),
    ({"method": ["x"], "keep_tokens": 64}, r"method \['x'\] is not a method"),
    ({"method": "vlm-pruner:pivots=999", "keep_tokens": 64}, "method 'vlm-pruner:pivots=999' is not a method"),
    ({"keep_tokens": 64, "layer": 2}, "layer=2: an engine prunes before the decoder"),
    ({"keep_tokens": 64, "layer": False}, "layer=False"),
    ({"keep_tokens": 64, "channels": 10**9}, "channels cannot be set by a request; it may set method"),
    ({"keep_tokens": 64, "threshold": "high"}, "threshold='high' is not a number"),
    ({"keep_tokens": 64, "seed": 3}, "seed=3: seed means nothing to method 'vlm-pruner'"),
]


@pytest.mark.parametrize(("asked", "message"), BAD)
def test_what_no_method_understands_is_refused_with_the_reason(asked, message):
    with pytest.raises(PruningError, match=message):
        parse(asked)


def test_settable_fields_exist_and_none_costs_compute_or_changes_counts():
    known = {field for name in fitting() for field in vp.methods.get(name).__dataclass_fields__}
    assert set(SETTABLE) <= known
    assert not set(SETTABLE) & {"channels", "pivots", "token_batch", "threshold_step", "newlines", "per_frame", "layer"}


@pytest.mark.parametrize("name", NEEDS_NOTHING)
def test_budgets_are_those_of_pruning_in_transformers(name):
    for tokens in (1, 4, 5, 25, 576):
        for ratio in (0.0, 0.5, 0.889, 0.999):
            made = wish({"method": name, "reduction_ratio": ratio})
            assert made.budget(tokens) == made.method.budget(tokens)


@pytest.mark.parametrize("name", NEEDS_NOTHING)
@pytest.mark.parametrize("layout", [vp.TokenLayout.grid(6, 7), unpadded_layout(4, 5, 3)], ids=["grid", "tiles"])
def test_a_method_keeps_exactly_its_budget(name, layout):
    """The engine has counted placeholders by it, before the method sees the picture."""
    tokens = torch.randn(len(layout), 16, generator=torch.Generator().manual_seed(0))
    for asked in ({"keep_tokens": 5}, {"reduction_ratio": 0.5}, {"reduction_ratio": 0.9}):
        made = wish({"method": name, **asked})
        kept = made.budget(len(layout))
        view = vp.methods.View(tokens, tokens, layout, kept, embeddings=tokens)
        selection = made.method.choose(view)
        assert made.method.merge(tokens, selection).shape == (kept, 16)


def test_an_engine_that_taps_clips_tower_offers_more():
    more = AT_INPUT | FROM_CLIP
    assert {"fastervlm", "vispruner"} <= set(fitting(more)) - set(fitting())
    made = parse({"method": "vispruner", "keep_tokens": 9}, more)
    assert made is not None and parse_text(made.text) == made
    with pytest.raises(PruningError, match="'vispruner' needs cls_attention, patch_features, which this engine"):
        parse({"method": "vispruner", "keep_tokens": 9})


def test_the_page_lists_the_methods():
    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `method` |")]
    everywhere, with_clip = row.split("; ")
    assert sorted(re.findall(r"`([a-z0-9-]+)`", everywhere)[1:]) == sorted([*fitting(), *SHORTHANDS])
    of_clip = set(fitting(AT_INPUT | FROM_CLIP)) - set(fitting())
    assert sorted(re.findall(r"`([a-z0-9-]+)`", with_clip)) == sorted(of_clip)


def test_more_than_a_picture_has():
    made = wish({"keep_tokens": 64})
    assert made.budget(36) == 36
    assert made.budget(576, fixed_size=True) == 64
    with pytest.raises(
        PruningError, match="keep_tokens=64, but the image has only 36 visual tokens; use keep_tokens=36"
    ):
        made.budget(36, fixed_size=True)


def test_the_text_is_small_json():
    text = wish({"keep_tokens": 64}).text
    assert (
        json.loads(text).items() >= {"method": "vlm-pruner", "keep_tokens": 64, "layer": 0}.items() and len(text) < 99
    )


# Positions


def by_hand(items, length):
    """Token by token."""
    index, starts, there, here = [], [], 0, 0
    by_start = {item.start: item for item in items}
    while here < length:
        item = by_start.get(here)
        if item is None:
            index.append(there)
            here, there = here + 1, there + 1
            continue
        starts.append(there)
        index += [there + i if item.kept == item.whole else there for i in range(item.kept)]
        here, there = here + item.kept, there + item.whole
    return index, starts, there


def test_places_in_the_unpruned_prompt():
    draw = random.Random(0)
    for _ in range(200):
        items, here = [], 0
        for _ in range(draw.randrange(4)):
            here += draw.randrange(4)
            whole = draw.randrange(1, 9)
            items.append(Item(here, draw.choice([whole, draw.randint(1, whole)]), whole))
            here += items[-1].kept
        length = here + draw.randrange(4)
        found = place(items, length)
        assert (found.index, found.starts, found.length) == by_hand(items, length)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_offsets_travel_exactly_beside_embeddings(dtype):
    offsets = torch.tensor([0, 1, 127, 128, 129, 255, 256, 257, 4095, LIMIT - 1])
    offsets = torch.stack([offsets, offsets.flip(0), offsets.roll(3)], dim=1)
    rows = torch.randn(len(offsets), 7).to(dtype)
    embeddings, found = split_offsets(with_offsets(rows, offsets), 7)
    assert torch.equal(embeddings, rows) and torch.equal(found, offsets.T)


def test_rows_without_offsets_have_none():
    rows = torch.randn(4, 7)
    embeddings, offsets = split_offsets(rows, 7)
    assert torch.equal(embeddings, rows) and not offsets.any() and offsets.shape == (3, 4)


def test_batches_stay_within_the_limit():
    assert batches([], 10) == []
    assert batches([4, 6, 1, 12, 3, 3], 10) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 6)]
    draw = random.Random(1)
    for _ in range(100):
        sizes = [draw.randrange(1, 20) for _ in range(draw.randrange(1, 12))]
        runs = batches(sizes, 16)
        assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(sizes)))
        assert all(sum(sizes[run]) <= 16 or run.stop - run.start == 1 for run in runs)
