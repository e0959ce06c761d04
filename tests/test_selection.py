"""Selection against the released code's golden outputs, against the slow reference, and as properties."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.conformance import conformance
from tests.reference import reference_pivots, reference_prune
from vlm_pruner import CentrifugalPruner, TokenLayout
from vlm_pruner.errors import PruningError
from vlm_pruner.selection import choose_pivots, expand, fold, screen_channels
from vlm_pruner.selection.screening import largest_channels

GRIDS = [(1, 7), (5, 3), (7, 9), (13, 11)]


def picture(
    height: int, width: int, channels: int = 48, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, TokenLayout]:
    """Hidden states and keys of a made-up picture: patches of like tokens, a common direction, noise."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(height * width // 6 + 1, channels, generator=generator)
    patch = torch.randint(len(patches), (height * width,), generator=generator).sort().values
    hidden = patches[patch] + 0.5 * torch.randn(height * width, channels, generator=generator) + 0.7
    return hidden, torch.randn(height * width, 24, generator=generator), TokenLayout.grid(height, width)


def both(method: CentrifugalPruner, hidden, keys, layout, budget):
    slow = reference_prune(
        hidden,
        keys,
        layout.coords,
        layout.diagonal,
        budget,
        pivots=method.pivots,
        threshold=method.threshold,
        threshold_step=method.threshold_step,
        token_batch=method.token_batch,
        spatial_weight=method.spatial_weight,
        channels=method.channels,
        self_weight=method.self_weight,
        released=method.compat == "released",
    )
    return method.select(hidden, keys, layout, budget), slow


# The released code


def golden_configurations() -> list[tuple[dict, dict]]:
    kit = conformance("selection")
    cases = json.loads((kit / "selection.json").read_text())["cases"]
    return [(case, config) for case in cases for config in case["configs"]]


@pytest.fixture(scope="module")
def golden_tensors() -> dict[str, torch.Tensor]:
    return {
        name: tensor.float() for name, tensor in load_file(conformance("selection") / "selection.safetensors").items()
    }


def golden_method(config: dict, **overrides) -> CentrifugalPruner:
    fields = ("reduction_ratio", "threshold", "token_batch", "pivots")
    return CentrifugalPruner(**{name: config[name] for name in fields}, **overrides)


def test_released_code_is_reproduced_in_every_configuration(golden_tensors):
    configurations = golden_configurations()
    assert len(configurations) >= 20
    for case, config in configurations:
        hidden, keys = golden_tensors[f"case{case['case']}.hidden"], golden_tensors[f"case{case['case']}.keys"]
        method = golden_method(config, compat="released")
        budget = method.budget(len(hidden), case["budget_rounding"])
        assert budget == config["budget"]
        selection = method.select(hidden, keys, TokenLayout.grid(*case["grid"]), budget)
        assert selection.indices.tolist() == config["retained"], config["fused_key"]
        assert (len(selection.indices) < budget) == config["underfilled"]
        torch.testing.assert_close(
            method.merge(hidden, selection), golden_tensors[config["fused_key"]], rtol=1e-4, atol=1e-4
        )


def test_default_keeps_exactly_the_budget_where_the_released_code_falls_short(golden_tensors):
    for case, config in golden_configurations():
        hidden, keys = golden_tensors[f"case{case['case']}.hidden"], golden_tensors[f"case{case['case']}.keys"]
        selection = golden_method(config).select(hidden, keys, TokenLayout.grid(*case["grid"]), config["budget"])
        assert len(selection.indices.unique()) == config["budget"]
        if not config["underfilled"]:
            assert selection.indices.tolist() == config["retained"]


# The slow reference


@pytest.mark.parametrize("compat", [None, "released"])
@pytest.mark.parametrize("token_batch", [1, 4, 16])
@pytest.mark.parametrize("grid", GRIDS)
def test_fast_selection_equals_the_slow_reference(grid, token_batch, compat):
    n = grid[0] * grid[1]
    for seed, share in [(0, 0.2), (1, 0.5), (2, 0.9)]:
        hidden, keys, layout = picture(*grid, seed=seed)
        budget = max(2, round(n * share))
        method = CentrifugalPruner(
            keep_tokens=budget, pivots=2, token_batch=token_batch, channels=31, threshold=0.5, compat=compat
        )
        selection, slow = both(method, hidden, keys, layout, budget)
        assert selection.pivots.tolist() == slow.pivots
        assert selection.order.tolist() == slow.order
        assert selection.indices[selection.nearest].tolist() == slow.nearest
        torch.testing.assert_close(method.merge(hidden, selection), slow.merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("token_batch", [1, 16])
@pytest.mark.parametrize("size", [(3, 4, 5), (7, 2, 3), (1, 5, 4)])
def test_videos_equal_the_slow_reference(size, token_batch):
    """Distances are within a frame; a frame of which nothing is kept has none."""
    hidden, keys, _ = picture(size[0] * size[1], size[2], seed=4)
    layout = TokenLayout.video(*size)
    for budget in (5, 15):
        method = CentrifugalPruner(keep_tokens=budget, token_batch=token_batch, threshold=0.5, spatial_weight=1.0)
        selection, slow = both(method, hidden, keys, layout, budget)
        assert selection.order.tolist() == slow.order
        torch.testing.assert_close(method.merge(hidden, selection), slow.merged, rtol=1e-5, atol=1e-5)


def test_a_video_of_one_frame_is_an_image():
    hidden, keys, layout = picture(6, 7)
    method = CentrifugalPruner(keep_tokens=12)
    as_video = method.select(hidden, keys, TokenLayout.video(1, 6, 7), 12)
    assert as_video.order.tolist() == method.select(hidden, keys, layout, 12).order.tolist()


def test_frames_are_grids_one_after_the_other():
    layout = TokenLayout.video(2, 2, 3)
    assert layout.diagonal == TokenLayout.grid(2, 3).diagonal
    assert layout.coords[:, 0].tolist() == [0] * 6 + [1] * 6
    assert torch.equal(layout.coords[6:, 1:], TokenLayout.grid(2, 3).coords)
    with pytest.raises(ValueError, match="at least one frame, not 0"):
        TokenLayout.video(0, 2, 3)


@pytest.mark.parametrize("centred", [False, True])  # about half of a centred picture's similarities are negative
@pytest.mark.parametrize(
    "settings",
    [
        {"spatial_weight": 0.0},
        {"spatial_weight": 2.0},
        {"threshold_step": 0.013},
        {"threshold": 0.05},
        {"threshold": -0.5},
        {"threshold": -0.1, "spatial_weight": 3.0, "pivots": 1},
    ],
)
def test_settings_mean_what_they_mean_in_the_reference(settings, centred):
    hidden, keys, layout = picture(9, 8, seed=3)
    hidden = hidden - hidden.mean(dim=0) if centred else hidden
    method = CentrifugalPruner(keep_tokens=30, **settings)
    selection, slow = both(method, hidden, keys, layout, 30)
    assert selection.order.tolist() == slow.order


# Properties


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_selection_is_well_formed_in_every_dtype(dtype):
    hidden, keys, layout = picture(6, 10)
    method = CentrifugalPruner(keep_tokens=17)
    selection = method.select(hidden.to(dtype), keys.to(dtype), layout, 17)
    assert selection.indices.tolist() == sorted(set(selection.order.tolist()))
    assert len(selection.indices) == 17
    assert selection.order[:4].tolist() == selection.pivots.tolist()
    assert selection.nearest[selection.indices].tolist() == list(range(17))
    merged = method.merge(hidden.to(dtype), selection)
    assert merged.dtype == dtype and merged.shape == (17, 48)


def test_similar_tokens_still_fill_the_budget():
    """With one strong common direction every similarity is near 1 and the first rounds add nothing."""
    hidden = 10 + 0.01 * torch.randn(144, 32, generator=torch.Generator().manual_seed(0))
    keys, layout = torch.randn(144, 8, generator=torch.Generator().manual_seed(1)), TokenLayout.grid(12, 12)
    exact = CentrifugalPruner(keep_tokens=40).select(hidden, keys, layout, 40)
    released = CentrifugalPruner(keep_tokens=40, compat="released").select(hidden, keys, layout, 40)
    assert len(exact.indices) == 40
    assert len(released.indices) == 4


def test_a_tiny_threshold_step_costs_no_rounds_that_add_nothing():
    hidden, keys, layout = picture(6, 6)
    method = CentrifugalPruner(keep_tokens=20, threshold=-5.0, threshold_step=1e-7)
    assert len(method.select(hidden, keys, layout, 20).indices) == 20


def test_identical_tokens_are_kept_in_order_of_index():
    layout = TokenLayout.grid(3, 4)
    selection = CentrifugalPruner(keep_tokens=6).select(torch.ones(12, 8), torch.ones(12, 8), layout, 6)
    assert selection.pivots.tolist() == [0, 1, 2, 3]
    assert len(selection.indices.unique()) == 6
    assert selection.nearest[selection.indices].tolist() == list(range(6)), "a kept token is its own nearest"


def test_the_whole_picture_can_be_selected():
    hidden, keys, layout = picture(4, 4)
    selection = CentrifugalPruner(keep_tokens=16).select(hidden, keys, layout, 16)
    assert selection.indices.tolist() == list(range(16))
    assert torch.equal(CentrifugalPruner(keep_tokens=16).merge(hidden, selection), hidden)


def test_moving_all_keys_alike_moves_no_pivot_but_the_first():
    """Distances ignore a common part, even one that is large beside the differences."""
    keys = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)).double()
    assert choose_pivots(keys, 6).tolist() == reference_pivots(keys, 6)
    shifted = (keys + 300).float()
    assert choose_pivots(shifted, 6).tolist() == reference_pivots(shifted.double(), 6)


def test_screening_takes_the_channels_that_vary():
    hidden = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    hidden[:, [2, 7]] *= 10
    features = screen_channels(hidden, 2)
    wanted = torch.nn.functional.normalize(hidden[:, [2, 7]], dim=1)
    torch.testing.assert_close(features @ features.T, wanted @ wanted.T)


@pytest.mark.parametrize(
    ("spread", "channels", "chosen"),
    [
        ([1.0, 3.0, 2.0, 3.0], 2, [1, 3]),
        ([3.0, 3.0, 3.0, 1.0], 2, [0, 1]),  # of equal ones the lowest
        ([2.0, torch.nan, 1.0, 3.0], 2, [1, 3]),  # a broken channel stays in sight
        ([torch.nan, torch.inf, torch.nan, 3.0], 2, [0, 1]),
        ([1.0, 2.0], 5, [0, 1]),
    ],
)
def test_which_channels_are_the_largest(spread, channels, chosen):
    assert largest_channels(torch.tensor(spread), channels).tolist() == chosen


def test_negative_similarity_weighs_nothing_by_default():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, 3.0]])
    indices, nearest = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1])
    similarity = torch.tensor([1.0, 1.0, -0.9, 0.8])
    merged = fold(hidden, indices, nearest, similarity, 0.3)
    torch.testing.assert_close(merged, torch.tensor([[1.0, 0.0], [0.0, 0.3 * 1 + 0.7 * 3]]))


def test_folding_changes_nothing_it_was_given():
    hidden, keys, layout = picture(6, 6)
    before = hidden.clone()
    method = CentrifugalPruner(keep_tokens=9)
    method.merge(hidden, method.select(hidden, keys, layout, 9))
    assert torch.equal(hidden, before)


def test_nan_is_reported_and_does_not_loop():
    hidden, keys, layout = picture(6, 6)
    hidden[5] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        CentrifugalPruner(keep_tokens=36).select(hidden, keys, layout, 36)


@pytest.mark.parametrize(
    ("tokens", "budget", "message"), [(36, 3, "4 to 36"), (36, 37, "4 to 36"), (35, 9, "same visual tokens")]
)
def test_sizes_that_do_not_fit_are_named(tokens, budget, message):
    hidden, keys, layout = picture(6, 6)
    with pytest.raises(PruningError, match=message):
        CentrifugalPruner(keep_tokens=9).select(hidden[:tokens], keys, layout, budget)


def test_a_token_unlike_all_is_not_passed_over_below_a_negative_threshold():
    """Distance lowers a score below 0: token 2 is under the threshold of -0.5, though its similarity of -0.4 is not."""
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [-0.9, 0.44], [-0.4, 0.92], [1.0, 0.1]]), dim=1)
    places = torch.tensor([[0.0, 0.0], [0.0, 0.1], [1.0, 0.0], [0.1, 0.0]])
    grown = expand(
        features, places, torch.tensor([0]), 2,
        threshold=-0.5, threshold_step=0.1, token_batch=1, spatial_weight=5.0,
    )  # fmt: skip
    assert grown.order.tolist() == [0, 2]


def test_without_a_spatial_weight_frames_do_not_matter(recwarn):
    hidden, keys, layout = picture(4, 6, seed=3)
    method = CentrifugalPruner(keep_tokens=9, spatial_weight=0.0, threshold=0.5)
    flat, film = (method.select(hidden, keys, where, 9) for where in (layout, TokenLayout.video(2, 2, 6)))
    assert flat.order.tolist() == film.order.tolist() and not recwarn.list


def test_of_equally_similar_kept_tokens_the_first_selected_counts():
    """Tokens 0, 1 and 4 are the same; 0 is a pivot, 1 is kept much later, and 4 goes."""
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [1.0, 0.0]])
    criterion = {"threshold": 0.1, "threshold_step": 0.1, "token_batch": 1, "spatial_weight": 0.0}
    grown = expand(features, torch.zeros(5, 2), torch.tensor([0]), 4, **criterion)
    assert grown.order.tolist() == [0, 2, 3, 1]
    assert grown.indices[grown.nearest[4]] == 0


def test_released_weights_are_divided_by_a_sum_of_at_least_1e_8():
    hidden = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    parts = hidden, torch.tensor([0]), torch.tensor([0, 0]), torch.tensor([1.0, 1e-9])
    assert torch.allclose(fold(*parts, 0.3, negative_weights=True), torch.tensor([[0.3, 0.07]]))
    assert torch.allclose(fold(*parts, 0.3), torch.tensor([[0.3, 0.7]]))
