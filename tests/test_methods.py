"""Methods as configuration: validation, budgets, names, layouts."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch

import vlm_pruner as vp
from vlm_pruner.decoder.views import PrefillView
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.view import FIELDS, View


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"reduction_ratio": 0.5, "keep_tokens": 64}, "exactly one"),
        ({"reduction_ratio": 1.0}, r"reduction_ratio=1.0 .* below 1"),
        ({"reduction_ratio": -0.1}, r"reduction_ratio=-0.1"),
        ({"reduction_ratio": math.nan}, "reduction_ratio=nan"),
        ({"keep_tokens": 3}, r"keep_tokens=3 is less than pivots=4"),
        ({"keep_tokens": 0, "pivots": 1}, "keep_tokens=0"),
        ({"keep_tokens": 64.0}, "keep_tokens=64.0"),
        ({"keep_tokens": 64, "layer": 0, "compat": "released"}, "layer=0"),
        ({"keep_tokens": 64, "layer": -1}, "layer=-1"),
        ({"keep_tokens": 64, "pivots": 0}, "pivots=0"),
        ({"keep_tokens": 64, "token_batch": 0}, "token_batch=0"),
        ({"keep_tokens": 64, "channels": 0}, "channels=0"),
        ({"keep_tokens": 64, "threshold": math.nan}, "threshold=nan"),
        ({"keep_tokens": 64, "threshold_step": 0.0}, "threshold_step=0.0"),
        ({"keep_tokens": 64, "spatial_weight": -1.0}, "spatial_weight=-1.0"),
        ({"keep_tokens": 64, "self_weight": 1.5}, "self_weight=1.5"),
        ({"keep_tokens": 64, "compat": "paper"}, "compat='paper'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(PruningError, match=message) as error:
        vp.CentrifugalPruner(**settings)
    assert "\n" not in str(error.value)


def test_methods_are_frozen_and_serialise():
    method = vp.CentrifugalPruner(reduction_ratio=0.889)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.layer = 3
    assert vp.CentrifugalPruner(**json.loads(json.dumps(method.config()))) == method


def test_token_batch_follows_compat_unless_given():
    assert vp.CentrifugalPruner(keep_tokens=64).token_batch == 1
    assert vp.CentrifugalPruner(keep_tokens=64, compat="released").token_batch == 16
    assert vp.CentrifugalPruner(keep_tokens=64, compat="released", token_batch=2).token_batch == 2


@pytest.mark.parametrize(("ratio", "budget"), [(0.0, 576), (0.667, 192), (0.778, 128), (0.889, 64), (0.9999, 4)])
def test_budget_from_a_ratio(ratio, budget):
    assert vp.CentrifugalPruner(reduction_ratio=ratio).budget(576) == budget


def test_only_the_released_code_rounds_down_where_its_model_does():
    released = vp.CentrifugalPruner(reduction_ratio=0.778, compat="released")
    assert (released.budget(464, "floor"), released.budget(464, "round")) == (103, 103)
    assert (released.budget(467, "floor"), released.budget(467, "round")) == (103, 104)
    assert vp.CentrifugalPruner(reduction_ratio=0.778).budget(467, "floor") == 104


def test_keep_tokens_is_exact_and_never_more_than_there_are():
    assert vp.CentrifugalPruner(keep_tokens=64).budget(576) == 64
    with pytest.raises(PruningError, match=r"keep_tokens=64.*only 36.*keep_tokens=36"):
        vp.CentrifugalPruner(keep_tokens=64).budget(36)


def test_an_image_smaller_than_the_pivots_is_kept_whole():
    assert vp.CentrifugalPruner(reduction_ratio=0.5).budget(3) == 3


def test_methods_are_found_by_name():
    assert vp.methods.get("vlm-pruner") is vp.CentrifugalPruner
    assert vp.methods.get("random") is vp.RandomPruner
    with pytest.raises(PruningError, match=r"unknown method 'vlmpruner'; known methods: .*random.*vlm-pruner"):
        vp.methods.get("vlmpruner")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="two methods"):
        vp.methods.register("random")(vp.CentrifugalPruner)
    assert vp.CentrifugalPruner.name == "vlm-pruner"


def test_random_depends_on_seed_and_size_alone():
    layout = vp.TokenLayout.grid(6, 6)
    first = vp.RandomPruner(keep_tokens=9).select(torch.zeros(36, 4), torch.zeros(36, 4), layout, 9)
    again = vp.RandomPruner(keep_tokens=9).select(torch.ones(36, 8), torch.ones(36, 2), layout, 9)
    other = vp.RandomPruner(keep_tokens=9, seed=1).select(torch.zeros(36, 4), torch.zeros(36, 4), layout, 9)
    assert first.order.tolist() == again.order.tolist() != other.order.tolist()
    assert first.indices.tolist() == sorted(set(first.order.tolist())) and len(first.indices) == 9


def test_random_merges_nothing():
    method, hidden = vp.RandomPruner(keep_tokens=9), torch.randn(36, 4)
    selection = method.select(hidden, hidden, vp.TokenLayout.grid(6, 6), 9)
    assert torch.equal(method.merge(hidden, selection), hidden[selection.indices])


def test_grid_is_row_major():
    layout = vp.TokenLayout.grid(2, 3)
    assert layout.coords.tolist() == [[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]
    assert layout.diagonal == math.sqrt(13)
    assert len(layout) == 6


@pytest.mark.parametrize(
    "build",
    [
        lambda: vp.TokenLayout.grid(0, 3),
        lambda: vp.TokenLayout(torch.zeros(3), 1.0),
        lambda: vp.TokenLayout(torch.zeros(3, 2, dtype=torch.long), 1.0),
        lambda: vp.TokenLayout(torch.zeros(3, 2), 0.0),
        lambda: VisualSpan(0, 5, vp.TokenLayout.grid(2, 3)),
        lambda: VisualSpan(-1, 6, vp.TokenLayout.grid(2, 3)),
    ],
)
def test_impossible_layouts_are_refused(build):
    with pytest.raises(ValueError):
        build()


def test_importing_the_library_does_not_import_transformers():
    """Starting transformers takes seconds; who only wants a selection should not wait."""
    check = "import sys, vlm_pruner; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def view(**more):
    return View(hidden=torch.zeros(6, 4), keys=torch.zeros(6, 2), layout=vp.TokenLayout.grid(2, 3), budget=3, **more)


def test_a_view_has_what_it_is_given_and_names_what_it_is_not():
    text = torch.ones(2, 4)
    assert view(text_hidden=text).text_hidden is text and view().start == 0
    for name in sorted(FIELDS):
        assert getattr(view(**{name: text}), name) is text
        with pytest.raises(PruningError, match=rf"no {name}: pass View\(\.\.\., {name}=\.\.\.\), or list '{name}'"):
            getattr(view(), name)
    with pytest.raises(TypeError, match="no depth_map; it may have attend, attend_next"):
        view(depth_map=text)


def test_a_running_decoder_supplies_every_field_of_a_view():
    assert set(vars(PrefillView)) >= FIELDS
