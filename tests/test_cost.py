"""The cost model against sums written out, the paper's own estimate, torch's counter and every family's real cache."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch.utils import flop_counter

import vlm_pruner as vp
from tests.families import FAMILIES, ONE
from vlm_pruner import adapters
from vlm_pruner.cost.flops import (
    DecoderShape,
    Machine,
    head_bytes,
    head_flops,
    kv_bytes,
    layer_bytes,
    layer_flops,
    lengths,
    prefill_flops,
    prefill_seconds,
    step_seconds,
)
from vlm_pruner.cost.machine import known, measure
from vlm_pruner.decoder.cache_names import cache_of

LLAVA_7B = DecoderShape(layers=32, hidden=4096, intermediate=11008, heads=32, key_value_heads=32, head_size=128)


def test_one_layer_written_out():
    shape = DecoderShape(layers=1, hidden=6, intermediate=10, heads=4, key_value_heads=2, head_size=3)
    tokens = 5
    multiplications = 0
    for position in range(tokens):
        multiplications += 6 * (4 * 3)  # q
        multiplications += 2 * 6 * (2 * 3)  # k and v
        for _ in range(4):  # heads
            multiplications += (position + 1) * 3 * 2  # scores with every earlier key, then the sum over values
        multiplications += (4 * 3) * 6  # output
        multiplications += 3 * 6 * 10  # gate, up and down
    assert layer_flops(shape, tokens) == 2 * multiplications


def test_llava_7b_cache_is_half_a_mebibyte_per_token():
    assert kv_bytes(LLAVA_7B, [1] * 32, bytes_per_number=2) == 512 * 1024
    pruned = lengths(LLAVA_7B, 40, 576, [(2, 64)])
    assert kv_bytes(LLAVA_7B, pruned, bytes_per_number=2, batch=3) == 3 * 16384 * (2 * 616 + 30 * 104)


def test_saving_agrees_with_the_published_estimate():
    """64 of 576 kept beside about 43 text tokens: the paper claims 77.91 % fewer operations."""
    dense, pruned = (prefill_flops(LLAVA_7B, lengths(LLAVA_7B, 43, 576, steps)) for steps in ([], [(2, 64)]))
    saved = 1 - pruned / dense
    assert saved == pytest.approx(0.779, abs=0.005)


def test_keeping_all_costs_what_the_dense_model_costs():
    assert prefill_flops(LLAVA_7B, lengths(LLAVA_7B, 43, 576, [(2, 576)])) == 32 * layer_flops(LLAVA_7B, 619)


def test_shape_from_a_configuration():
    config = SimpleNamespace(num_hidden_layers=3, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    assert DecoderShape.of(config) == DecoderShape(3, 64, 96, heads=4, key_value_heads=4, head_size=16)
    config.num_key_value_heads, config.head_dim = 2, 24
    assert DecoderShape.of(config) == DecoderShape(3, 64, 96, heads=4, key_value_heads=2, head_size=24)


def test_steps_follow_each_other_and_only_drop():
    shape = DecoderShape(6, 8, 8, heads=1, key_value_heads=1, head_size=8)
    assert lengths(shape, 5, 20, [(1, 10), (4, 2)]) == [25, 15, 15, 15, 7, 7]
    assert lengths(shape, 5, 20, [(0, 10)]) == [15] * 6
    assert lengths(shape, 5, 20) == lengths(shape, 5, 20, [(2, 20)]) == [25] * 6
    for steps in ([(6, 3)], [(2, 21)], [(3, 9), (2, 8)], [(1, 4), (3, 5)]):
        with pytest.raises(ValueError, match=r"step \("):
            lengths(shape, 5, 20, steps)


def test_a_mixture_of_experts_computes_few_and_reads_what_is_touched():
    shape = DecoderShape(1, 10, 7, heads=1, key_value_heads=1, head_size=10, experts=(8, 2))
    assert shape.mlp_weights(100) == 10 * (3 * 7 * 8 + 8)
    assert shape.mlp_weights(1) == 10 * (3 * 7 * 2 + 8)
    dense = DecoderShape(1, 10, 14, heads=1, key_value_heads=1, head_size=10)
    assert layer_flops(shape, 5) == layer_flops(dense, 5) + 2 * 5 * 10 * 8  # two experts of 7, and the router


def test_only_some_layers_with_experts_is_refused():
    config = SimpleNamespace(num_experts=4, mlp_only_layers=[0], num_attention_heads=4)
    with pytest.raises(ValueError, match="only some layers"):
        DecoderShape.of(config)


def test_a_step_costs_what_a_prefill_grows_by():
    shape = DecoderShape(3, 6, 10, heads=4, key_value_heads=2, head_size=3)
    assert layer_flops(shape, 1, past=7) == layer_flops(shape, 8) - layer_flops(shape, 7)


def test_bytes_are_weights_once_and_activations_per_row():
    shape = DecoderShape(1, 6, 10, heads=2, key_value_heads=1, head_size=3)
    weights = 6 * 6 + 2 * 6 * 3 + 6 * 6 + 3 * 6 * 10
    one = layer_bytes(shape, 5, bytes_per_number=2) - 2 * weights
    assert layer_bytes(shape, 5, bytes_per_number=2, batch=3) == 2 * weights + 3 * one
    inputs_and_outputs = (6 + 12) + (12 + 6) + (6 + 6) + (6 + 20) + (10 + 6)  # qkv, attention, output, up, down
    assert one == 2 * 5 * inputs_and_outputs


def test_the_roofline_has_two_sides():
    machine = Machine("imaginary", flops=1e12, bandwidth=1e9)
    assert machine.seconds(2e12, 1) == 2
    assert machine.seconds(1, 3e9) == 3
    few = prefill_seconds(LLAVA_7B, [1] * 32, machine, bytes_per_number=2)
    read = 32 * layer_bytes(LLAVA_7B, 1, bytes_per_number=2) + head_bytes(LLAVA_7B, 1, bytes_per_number=2)
    assert few == pytest.approx(read / 1e9)
    with pytest.raises(ValueError, match="must be positive"):
        Machine("broken", flops=0, bandwidth=1)


def test_a_7b_at_batch_1_on_an_h200_is_bound_by_its_weights():
    """64 tokens from layer 2 on leave 2.0 of 8.3 TFLOP, and reading 13 GB then takes longer than computing."""
    h200 = Machine("H200", 790e12, 4.3e12)
    dense = prefill_flops(LLAVA_7B, [636] * 32)
    pruned = prefill_flops(LLAVA_7B, lengths(LLAVA_7B, 60, 576, [(2, 64)]))
    assert (dense / 1e12, pruned / 1e12) == (pytest.approx(8.3, abs=0.15), pytest.approx(2.0, abs=0.15))
    times = [
        prefill_seconds(LLAVA_7B, lengths(LLAVA_7B, 60, 576, steps), h200, bytes_per_number=2)
        for steps in ([], [(2, 64)])
    ]
    assert times[1] > 1.3 * pruned / h200.flops
    assert 2.8 < times[0] / times[1] < 3.6


def test_step_time_is_reading_weights_and_cache():
    machine = Machine("imaginary", flops=1e18, bandwidth=1e9)
    short, long = (step_seconds(LLAVA_7B, [n] * 32, machine, bytes_per_number=2) for n in (100, 600))
    assert long - short == pytest.approx(kv_bytes(LLAVA_7B, [500] * 32, bytes_per_number=2) / 1e9)


def test_known_accelerators():
    assert known("NVIDIA H200").bandwidth == 4.8e12
    assert known("NVIDIA A100-SXM4-80GB").bandwidth == 2.039e12 == known("NVIDIA A100 80GB PCIe").bandwidth
    assert known("NVIDIA A100-PCIE-40GB").bandwidth == 1.555e12
    assert known("NVIDIA H100 PCIe").flops < known("NVIDIA H100 80GB HBM3").flops
    assert known("NVIDIA GeForce GTX 1080") is None


def test_measuring_a_cpu_gives_its_order_of_magnitude():
    machine = measure("cpu", seconds=0.1)
    assert 1e8 < machine.flops < 1e15
    assert 1e7 < machine.bandwidth < 1e13
    assert "float32" in machine.name


# Against real models: every family's tiny one.


@dataclass(frozen=True)
class TwoSteps(vp.RandomPruner):
    """Chooses without computing anything that a counter would see."""

    def layers(self, depth):
        return (1, 3)

    def budgets(self, tokens, depth, rounding="round"):
        return (8, self.keep_tokens)


METHODS = {"dense": None, "one step": vp.RandomPruner(keep_tokens=6), "two steps": TwoSteps(keep_tokens=6)}


def fused_flops(query, key, value, *args, out_shape=None, **kwargs):
    """torch counts fused attention on accelerators, and leaves out the CPU's: here it is counted likewise."""
    return flop_counter.sdpa_flop_count(query, key, value)


FUSED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: fused_flops}


def prefill(model, batch, method):
    """(output of one prefill that asks for the last logits, visual tokens, steps) of a batch of equal prompts."""
    with torch.no_grad():
        if method is None:
            with vp.prune(model, vp.RandomPruner(reduction_ratio=0.0)) as pruning:
                model(**batch)
            return model(**batch, use_cache=True, logits_to_keep=1), pruning.receipts[0].images[0].n_before, []
        with vp.prune(model, method) as pruning:
            out = model(**batch, use_cache=True, logits_to_keep=1)
    image = pruning.receipts[0].images[0]
    return out, image.n_before, image.steps


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_cache_bytes_are_exact(family, method):
    batch = family.inputs(ONE, ONE)
    out, visual, steps = prefill(family.model, batch, method)
    shape = DecoderShape.of(family.model.config.get_text_config())
    held = lengths(shape, batch["input_ids"].shape[1] - visual, visual, steps)
    tensors = [tensor for layer in cache_of(out).layers for tensor in (layer.keys, layer.values)]
    real = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert kv_bytes(shape, held, bytes_per_number=4, batch=2) == real


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_operations_agree_with_torchs_counter(family, method, attention):
    """Within 2 %. Both kinds of attention are counted by their full square."""
    model = family.eager if attention == "eager" else family.model
    if DecoderShape.of(model.config.get_text_config()).experts[0]:
        model.set_experts_implementation("eager")  # torch does not count grouped products
    batch = family.inputs(ONE, ONE)
    _, visual, steps = prefill(model, batch, method)  # the visual tokens are known now
    counter = flop_counter.FlopCounterMode(display=False, custom_mapping=FUSED)
    with counter:
        prefill(model, batch, method) if method else model(**batch, logits_to_keep=1)
    decoder = adapters.find(model).decoder
    names = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    counts = counter.get_flop_counts()
    counted = sum(sum(counts[names[part]].values()) for part in [*decoder.layers, model.lm_head])
    shape = DecoderShape.of(model.config.get_text_config())
    tokens = lengths(shape, batch["input_ids"].shape[1] - visual, visual, steps)
    needless = sum(2 * shape.queries * n * (n - 1) for n in tokens)  # torch counts keys after the query too
    predicted = 2 * (sum(layer_flops(shape, n) for n in tokens) + needless + head_flops(shape, 1))  # two rows
    assert predicted == pytest.approx(counted, rel=0.02)
