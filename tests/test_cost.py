"""The cost model against sums written out, and against the paper's own estimate."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from vlm_pruner.cost import DecoderShape, kv_bytes, layer_flops, prefill_flops

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
    assert kv_bytes(LLAVA_7B, 1, 0, 0, 2, bytes_per_number=2) == 512 * 1024
    assert kv_bytes(LLAVA_7B, 40, 576, 64, 2, bytes_per_number=2, batch=3) == 3 * 16384 * (2 * 616 + 30 * 104)


def test_saving_agrees_with_the_published_estimate():
    """64 of 576 kept beside about 43 text tokens: the paper claims 77.91 % fewer operations."""
    saved = 1 - prefill_flops(LLAVA_7B, 43, 576, 64, 2) / prefill_flops(LLAVA_7B, 43, 576, 576, 2)
    assert saved == pytest.approx(0.779, abs=0.005)


def test_keeping_all_costs_what_the_dense_model_costs():
    assert prefill_flops(LLAVA_7B, 43, 576, 576, 2) == 32 * layer_flops(LLAVA_7B, 619)


def test_shape_from_a_configuration():
    config = SimpleNamespace(num_hidden_layers=3, hidden_size=64, intermediate_size=96, num_attention_heads=4)
    assert DecoderShape.of(config) == DecoderShape(3, 64, 96, heads=4, key_value_heads=4, head_size=16)
    config.num_key_value_heads, config.head_dim = 2, 24
    assert DecoderShape.of(config) == DecoderShape(3, 64, 96, heads=4, key_value_heads=2, head_size=24)
