"""The GPU kernels, in Triton's interpreter where there is no GPU: the same tokens as the torch path, at small sizes.

The interpreter runs programs one after the other; `interleaved.py` makes them take turns, as far as that goes. Whether
writes become visible in time is not tested here but by benchmarks/gpu_check.py.

Kernels and torch path add the same products in different orders, so scores that differ by less than float32's rounding
may be ordered differently: hidden states of 10 + 0.01 x noise, whose cosines differ by 1e-6, are such a case. Inputs
here are free of that; what is tied exactly comes by the lowest index on both paths, which has a test of its own.
"""

from __future__ import annotations

import json

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not installed")

from safetensors.torch import load_file  # noqa: E402

from tests.conformance import conformance  # noqa: E402
from tests.interleaved import side_by_side  # noqa: E402
from tests.test_selection import golden_configurations, golden_method, picture  # noqa: E402
from vlm_pruner import CentrifugalPruner, TokenLayout, kernels, selection  # noqa: E402
from vlm_pruner.errors import PruningError  # noqa: E402
from vlm_pruner.experiments.ablations import LargestKeyPivots  # noqa: E402
from vlm_pruner.methods.view import View  # noqa: E402
from vlm_pruner.selection import batched  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu" and isinstance(triton.language.sum, triton.JITFunction):  # the variable was read at the import
    pytest.skip("Triton was imported without its interpreter: set TRITON_INTERPRET=1", allow_module_level=True)


def both(monkeypatch, method, hidden, keys, layout, budget):
    """Selections and merged rows of the kernels and of the torch path."""
    made = []
    for choice in ("on", "off"):
        monkeypatch.setenv(kernels.VARIABLE, choice)
        chosen = method.select(hidden.to(DEVICE), keys.to(DEVICE), layout, budget)
        made.append((chosen, method.merge(hidden.to(DEVICE), chosen)))
    return made


def check(monkeypatch, method, hidden, keys, layout, budget, tolerance=1e-5):
    (fused, rows), (plain, wanted) = both(monkeypatch, method, hidden, keys, layout, budget)
    assert fused.order.tolist() == plain.order.tolist()
    assert fused.nearest.tolist() == plain.nearest.tolist()
    torch.testing.assert_close(fused.similarity, plain.similarity, rtol=1e-5, atol=1e-5)
    assert rows.dtype == wanted.dtype
    torch.testing.assert_close(rows, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("token_batch", [1, 5, 16])
@pytest.mark.parametrize("grid", [(5, 3), (9, 8)])
def test_pictures(monkeypatch, grid, token_batch):
    hidden, keys, layout = picture(*grid, seed=2)
    for budget in (6, len(hidden) // 2):
        method = CentrifugalPruner(keep_tokens=budget, token_batch=token_batch, channels=31, threshold=0.5)
        check(monkeypatch, method, hidden, keys, layout, budget)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_sixteen_bits(monkeypatch, dtype, tolerance):
    hidden, keys, layout = picture(6, 7)
    check(monkeypatch, CentrifugalPruner(keep_tokens=12), hidden.to(dtype), keys.to(dtype), layout, 12, tolerance)


def test_videos(monkeypatch):
    hidden, keys, _ = picture(12, 5, seed=4)
    method = CentrifugalPruner(keep_tokens=15, threshold=0.5, spatial_weight=1.0)
    check(monkeypatch, method, hidden, keys, TokenLayout.video(3, 4, 5), 15)


def test_a_threshold_that_has_to_rise(monkeypatch):
    """Cosines around 0.997: above the threshold, yet far enough apart for float32 to order them (see below)."""
    hidden = 10 + 0.5 * torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    keys = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
    check(monkeypatch, CentrifugalPruner(keep_tokens=9, threshold_step=0.013), hidden, keys, TokenLayout.grid(5, 8), 9)


def test_equal_tokens_come_by_index(monkeypatch):
    method = CentrifugalPruner(keep_tokens=6)
    (fused, _), _ = both(monkeypatch, method, torch.ones(12, 8), torch.ones(12, 8), TokenLayout.grid(3, 4), 6)
    assert fused.order.tolist() == list(range(6))


@pytest.mark.parametrize("channels", [1, 3, 5, 32])
def test_channels_that_vary_alike_come_by_index(channels):
    """Twice the same sixteen channels, and some that do not vary: what is screened must be the lowest of the alike."""
    hidden = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    hidden[:, 5:9] = 1.0
    hidden = torch.cat([hidden, hidden], dim=1)
    rows = kernels.load().screen_channels(hidden[None].to(DEVICE), channels)[0]
    torch.testing.assert_close(rows.cpu(), selection.screen_channels(hidden, channels))


def test_no_number_at_all_ends_and_keeps_the_budget(monkeypatch):
    hidden, keys, layout = picture(4, 5)
    monkeypatch.setenv(kernels.VARIABLE, "on")
    chosen = CentrifugalPruner(keep_tokens=9).select(
        torch.full_like(hidden, torch.nan).to(DEVICE), torch.full_like(keys, torch.nan).to(DEVICE), layout, 9
    )
    assert len(set(chosen.indices.tolist())) == 9
    assert chosen.nearest.min() >= 0 and chosen.nearest.max() < 9


def test_nan_ends_and_keeps_the_budget(monkeypatch):
    hidden, keys, layout = picture(4, 5)
    hidden[7] = float("nan")
    monkeypatch.setenv(kernels.VARIABLE, "on")
    chosen = CentrifugalPruner(keep_tokens=9).select(hidden.to(DEVICE), keys.to(DEVICE), layout, 9)
    assert len(set(chosen.indices.tolist())) == 9 and chosen.indices.min() >= 0 and chosen.indices.max() < 20
    assert chosen.nearest.min() >= 0 and chosen.nearest.max() < 9


SETTINGS = {"threshold": 0.5, "threshold_step": 0.1, "token_batch": 1, "spatial_weight": 0.5}


def whole_way(maths, pictures, budget, **settings):
    """All four steps for several images of one size: an Expansion, pivots and merged rows, [I, ...] each."""
    hidden, keys = (torch.stack(parts).to(DEVICE) for parts in list(zip(*pictures, strict=True))[:2])
    features = maths.screen_channels(hidden, 16)
    pivots = maths.choose_pivots(keys, 3)
    coords = torch.stack([layout.normalised(features) for _, _, layout in pictures])
    grown = maths.expand(features, coords, pivots, budget, **{**SETTINGS, **settings})
    return *grown, pivots, maths.fold(hidden, grown.indices, grown.nearest, grown.similarity, 0.3)


@pytest.mark.parametrize("video", [False, True])
def test_several_images_in_one_launch_are_what_each_is_alone(video):
    pictures = [picture(5, 6, seed=seed) for seed in (0, 1, 2)]
    if video:
        pictures = [(hidden, keys, TokenLayout.video(2, 3, 5)) for hidden, keys, _ in pictures]
    together, loop = whole_way(kernels.load(), pictures, 11), whole_way(batched, pictures, 11)
    alone = [whole_way(kernels.load(), [one], 11) for one in pictures]
    indices, order, nearest, similarity, pivots, rows = together
    for part, wanted in zip((indices, order, nearest, pivots), (*loop[:3], loop[4]), strict=True):
        assert part.tolist() == wanted.tolist()
    torch.testing.assert_close(similarity, loop[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows, loop[5], rtol=1e-5, atol=1e-5)
    for part, each in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(part, torch.cat(each))


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU programs do run side by side")
@pytest.mark.parametrize(("token_batch", "seed"), [(1, 0), (1, 1), (16, 2)])
def test_programs_that_share_an_image_choose_what_one_would(monkeypatch, token_batch, seed):
    """Three or more programs for each of two images, with their accesses to memory in an order drawn by lot."""
    pictures = [picture(14, 13, seed=seed + image) for image in (0, 10)]
    alone = whole_way(kernels.load(), pictures, 18, token_batch=token_batch)
    from vlm_pruner.kernels import expansion, pivots

    for module in (expansion, pivots):
        monkeypatch.setattr(module, "programs", lambda like, images, blocks: min(blocks, 4))
    with side_by_side(monkeypatch, seed) as turns:
        together = whole_way(kernels.load(), pictures, 18, token_batch=token_batch)
    assert turns.taken > 1000
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)


def test_an_ablation_that_starts_elsewhere_does_so_with_the_kernels(monkeypatch):
    hidden, keys, layout = picture(4, 5)
    method, chosen = LargestKeyPivots(keep_tokens=7), {}
    for choice in ("on", "off"):
        monkeypatch.setenv(kernels.VARIABLE, choice)
        chosen[choice] = method.select(hidden.to(DEVICE), keys.to(DEVICE), layout, 7).order.tolist()
    assert chosen["on"] == chosen["off"]
    default = CentrifugalPruner(keep_tokens=7).select(hidden, keys, layout, 7)
    assert chosen["on"] != default.order.tolist()


@pytest.mark.parametrize(
    ("method", "tensor"),
    [
        (CentrifugalPruner(keep_tokens=7, compat="released"), torch.zeros(1)),
        (CentrifugalPruner(keep_tokens=99, pivots=kernels.WINDOW + 1), torch.zeros(1)),
        (CentrifugalPruner(keep_tokens=7, token_batch=kernels.WINDOW + 1), torch.zeros(1)),
        (CentrifugalPruner(keep_tokens=7), torch.zeros(1, dtype=torch.float64)),
        (CentrifugalPruner(keep_tokens=7), torch.zeros(1, requires_grad=True)),
    ],
)
def test_what_the_kernels_do_not_offer_takes_the_torch_path(monkeypatch, method, tensor):
    monkeypatch.setenv(kernels.VARIABLE, "on")
    assert method._backend(tensor) is batched
    assert CentrifugalPruner(keep_tokens=7)._backend(torch.zeros(1)) is kernels.load()


def test_conformance_kit(monkeypatch):
    """The smallest grid of the kit, in every configuration whose budget the released code meets."""
    tensors = load_file(conformance("selection") / "selection.safetensors")
    smallest = min(case["grid"][0] * case["grid"][1] for case, _ in golden_configurations())
    checked = 0
    for case, config in golden_configurations():
        if case["grid"][0] * case["grid"][1] == smallest:
            hidden, keys = (tensors[f"case{case['case']}.{part}"].float() for part in ("hidden", "keys"))
            monkeypatch.setenv(kernels.VARIABLE, "on")
            method = golden_method(config)
            chosen = method.select(
                hidden.to(DEVICE), keys.to(DEVICE), TokenLayout.grid(*case["grid"]), config["budget"]
            )
            if not config["underfilled"]:
                assert chosen.indices.tolist() == config["retained"], json.dumps(config)[:200]
                checked += 1
    assert checked > 0


def test_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv(kernels.VARIABLE, "maybe")
    with pytest.raises(PruningError, match="'maybe' must be auto, on or off"):
        kernels.wanted(torch.zeros(1))


def test_without_a_choice_a_cpu_tensor_takes_the_torch_path(monkeypatch):
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    assert not kernels.wanted(torch.zeros(1))


def test_each_launch_makes_its_tensors_device_the_current_one(monkeypatch):
    """Triton launches on the current device, even if its arguments are on another one."""
    entered = []

    class Recorded(torch.cuda.device_of):
        def __enter__(self):
            entered.append(self.idx)
            return super().__enter__()

    monkeypatch.setattr(torch.cuda, "device_of", Recorded)
    hidden, _, _ = picture(4, 5)
    kernels.load().screen_channels(hidden[None].to(DEVICE), 8)
    assert entered == [hidden.to(DEVICE).get_device()]


class ShortOrder(CentrifugalPruner):
    """Overrides `choose`, as a user may."""

    def choose(self, view):
        chosen = super().choose(view)
        return type(chosen).of(chosen.order.flip(0))


@pytest.mark.parametrize("kind", [CentrifugalPruner, ShortOrder])
def test_images_of_a_call_get_each_its_own_choice_in_order(monkeypatch, kind):
    """Of two sizes, and of one size with two budgets: only images that are alike share a launch."""
    monkeypatch.setenv(kernels.VARIABLE, "on")
    sizes = [((5, 4), 6), ((3, 6), 6), ((5, 4), 9), ((5, 4), 6)]
    views = []
    for seed, (grid, budget) in enumerate(sizes):
        hidden, keys, layout = picture(*grid, seed=seed)
        views.append(View(hidden.to(DEVICE), keys.to(DEVICE), layout, budget))
    method = kind(keep_tokens=6)
    wanted = [method.choose(view).order.tolist() for view in views]
    assert [chosen.order.tolist() for chosen in method.choose_all(views)] == wanted
