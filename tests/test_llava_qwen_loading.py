"""LLaVA on Qwen2 in its original layout: which files make which model, and what is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_model, open_checkpoint
from llava.model.checkpoint import CheckpointError
from llava.model.language_model import modeling_qwen2_self
from llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from llava.model.multimodal_encoder.siglip_encoder import SiglipImageProcessor
from tests import tiny_llava_qwen as tiny


def answer(model: Any) -> list[int]:
    tokens = model.generate(
        tiny.ids(), images=[tiny.film()], modalities=["video"], max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    return tokens[0].tolist()


@pytest.mark.parametrize("model_type", ["llava", "qwen2", "llava_qwen"])
def test_the_architecture_decides(model_type, tmp_path):
    model = load_model(tiny.write(tmp_path, model_type=model_type))
    assert isinstance(model, LlavaQwenForCausalLM) and isinstance(model.model, modeling_qwen2_self.VLMPruner)
    assert answer(model) == answer(tiny.model())


def test_the_towers_trained_weights_win_over_its_own_repository(tmp_path):
    """Also where the caller names a folder, which then gives sizes alone."""
    checkpoint = tiny.write(tmp_path)
    expected = answer(tiny.model())
    assert answer(load_model(checkpoint)) == expected
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "siglip", tmp_path / "elsewhere" / "copy")
    with pytest.raises(CheckpointError, match="siglip does not exist; pass vision_tower=FOLDER"):
        load_model(checkpoint)
    assert answer(load_model(checkpoint, vision_tower=moved)) == expected


def test_a_tower_beside_the_checkpoint_loses_its_last_layer_and_its_head(tmp_path):
    model = load_model(tiny.write(tmp_path, with_tower=False))
    own = load_file(tmp_path / "siglip" / "model.safetensors")
    held = model.get_vision_tower().vision_tower.state_dict()
    assert not any("layers.2." in name or "head." in name for name in held)
    found = {name.removeprefix("vision_model."): tensor for name, tensor in held.items()}
    assert all(torch.equal(tensor, own["vision_model." + name]) for name, tensor in found.items())


def test_a_published_tower_named_by_its_repository_needs_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = tiny.write(tmp_path, mm_vision_tower="google/siglip-so400m-patch14-384")
    source = open_checkpoint(checkpoint)
    assert source.tower is None
    assert source.config.mm_vision_config["hidden_size"] == 1152
    assert source.config.mm_vision_config["num_hidden_layers"] == 27
    with pytest.raises(CheckpointError, match=r"model\.vision_tower\S+ has shape .* pass vision_tower=FOLDER"):
        load_model(checkpoint)  # these weights are of a smaller tower than the name says
    assert answer(load_model(checkpoint, vision_tower=tmp_path / "siglip")) == answer(tiny.model())


def test_sizes_in_the_checkpoints_own_config(tmp_path):
    checkpoint = tiny.write(tmp_path, mm_vision_tower="somewhere/siglip-unknown", mm_vision_config=tiny.VISION)
    assert answer(load_model(checkpoint)) == answer(tiny.model())


def test_shards(tmp_path):
    checkpoint = tiny.write(tmp_path)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, checkpoint / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert answer(load_model(checkpoint)) == answer(tiny.model())


def test_tied_embeddings(tmp_path):
    changes = {"tie_word_embeddings": True}
    model = load_model(tiny.write(tmp_path, model_changes=changes))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert answer(model) == answer(tiny.model(**changes))


def test_rope_scaling_is_dropped_and_no_window_applied(tmp_path):
    config = open_checkpoint(tiny.write(tmp_path, rope_scaling={"type": "linear", "factor": 2.0})).config
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000.0}
    assert set(config.layer_types) == {"full_attention"}
    with pytest.raises(CheckpointError, match="use_sliding_window is true"):
        open_checkpoint(tiny.write(tmp_path, use_sliding_window=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"add_faster_video": True}, "add_faster_video is true"),
        ({"mm_newline_position": "everywhere"}, "mm_newline_position is 'everywhere'; supported: 'grid'"),
        ({"mm_spatial_pool_mode": "cubic"}, "mm_spatial_pool_mode is 'cubic'; supported: 'bilinear'"),
    ],
)
def test_videos_that_the_original_refuses_are_refused_by_name(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        answer(load_model(tiny.write(tmp_path, **changes)))


def test_two_speeds_are_ignored_where_the_original_ignores_them(tmp_path):
    changes = {"mm_newline_position": "frame"}
    model = load_model(tiny.write(tmp_path, add_faster_video=True, **changes))
    assert answer(model) == answer(tiny.model(**changes))


def test_the_processor_is_fixed(tmp_path):
    processor = load_model(tiny.write(tmp_path)).get_vision_tower().image_processor
    assert isinstance(processor, SiglipImageProcessor)
    frames = torch.randint(0, 256, (2, 40, 60, 3), dtype=torch.uint8)
    values = processor.preprocess(frames.numpy(), return_tensors="pt")["pixel_values"]
    assert values.shape == (2, 3, tiny.TILE, tiny.TILE) and values.abs().max() <= 1
    with pytest.raises(ValueError, match=r"float32 \[2, 2, 3\]"):
        processor.preprocess([torch.zeros(2, 2, 3)])


def test_the_published_sizes():
    """LLaVA-Video-7B-Qwen2: 8.03 billion parameters, counted from its tensors' shapes."""
    from llava.model.layouts import config_from_original, known_tower

    published = {
        **tiny.CONFIG,
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "mm_hidden_size": 1152,
    }
    config = config_from_original(published, Path("."))
    config.mm_vision_config = known_tower("google/siglip-so400m-patch14-384")
    with torch.device("meta"):
        model = LlavaQwenForCausalLM(config)
    decoder = 7_615_616_512  # Qwen2-7B
    projector = 1152 * 3584 + 3584 + 3584 * 3584 + 3584
    layer = 4 * (1152 * 1152 + 1152) + 2 * 1152 * 4304 + 4304 + 1152 + 4 * 1152
    tower = 3 * 14 * 14 * 1152 + 1152 + 729 * 1152 + 26 * layer + 2 * 1152
    assert sum(weight.numel() for weight in model.parameters()) == decoder + projector + tower + 3584
    assert model.get_vision_tower().num_patches == 729
