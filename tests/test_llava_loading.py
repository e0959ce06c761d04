"""Both checkpoint layouts load to the same model; any problem with a checkpoint is one line with a remedy."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from llava.model.builder import load_model, load_pretrained_model
from llava.model.checkpoint import CheckpointError
from llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from llava.model.language_model.modeling_llama_self import VLMPruner
from llava.model.layouts import config_from_original, tower_config
from llava.model.tokenizer import load_tokenizer
from tests import llava_tiny


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def kit(tmp_path_factory):
    """A checkpoint with tokenizer; tests that change files copy it."""
    folder = tmp_path_factory.mktemp("kit")
    llava_tiny.write_tokenizer(llava_tiny.write_original(folder))
    return folder


@pytest.fixture
def checkpoint(kit, tmp_path):
    return shutil.copytree(kit, tmp_path / "kit") / "llava"


@pytest.fixture(scope="module")
def expected():
    """The weights on disk: rounded to float16."""
    return {name: tensor.half().float() for name, tensor in llava_tiny.model().state_dict().items()}


def assert_weights(model, expected):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())


def change_config(checkpoint, **changes):
    path = checkpoint / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def test_original_layout(kit, expected):
    model = load_model(kit / "llava")
    assert_weights(model, expected)
    assert isinstance(model.model, VLMPruner) and model.model.method is None
    assert model.dtype == torch.float32 and not model.training
    assert model.config._attn_implementation == "sdpa"


def test_tower_inside_the_checkpoint_wins_over_the_towers_folder(checkpoint, expected):
    own, tower = llava_tiny.original_tensors(llava_tiny.model())
    inside = {"model.vision_tower.vision_tower." + name: tensor + 1 for name, tensor in tower.items()}
    save_file({**own, **inside}, checkpoint / "model.safetensors")
    assert not torch.equal(
        load_model(checkpoint).model.vision_tower.vision_tower.post_layernorm.weight,
        load_model(
            checkpoint, vision_tower=checkpoint.parent / "clip"
        ).model.vision_tower.vision_tower.post_layernorm.weight,
    )
    assert_weights(load_model(checkpoint, vision_tower=checkpoint.parent / "clip"), expected)


def test_tower_from_a_whole_clip_model(checkpoint, expected):
    clip = checkpoint.parent / "clip"
    tensors = load_file(clip / "model.safetensors")
    extra = {"logit_scale": torch.zeros(1), "text_model.final_layer_norm.bias": torch.zeros(4)}
    extra["vision_model.embeddings.position_ids"] = torch.arange(37)[None]
    save_file({**tensors, **extra}, clip / "model.safetensors")
    llava_tiny.write_json(clip / "config.json", {"model_type": "clip", "vision_config": llava_tiny.VISION})
    assert_weights(load_model(checkpoint), expected)


def test_shards(checkpoint, expected):
    tensors = load_file(checkpoint / "model.safetensors")
    names = sorted(tensors)
    shards = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for shard, members in shards.items():
        save_file({name: tensors[name] for name in members}, checkpoint / shard)
    (checkpoint / "model.safetensors").unlink()
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    llava_tiny.write_json(checkpoint / "model.safetensors.index.json", {"weight_map": weight_map})
    assert_weights(load_model(checkpoint), expected)
    (checkpoint / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard b\.safetensors"):
        load_model(checkpoint)


@pytest.mark.parametrize("zipped", [True, False])
def test_legacy_bin(checkpoint, expected, zipped):
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)  # older versions wrote it
    torch.save(tensors, checkpoint / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_weights(load_model(checkpoint), expected)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_bin_with_code_in_it_is_not_run(checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"weight": Trap(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a plain weights file"):
        load_model(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_transformers_layout(tmp_path, expected):
    model = load_model(llava_tiny.write_transformers(tmp_path))
    assert_weights(model, expected)
    assert isinstance(model.model, VLMPruner)
    assert model.config.image_token_index == 63


def test_transformers_layout_under_its_newer_names(tmp_path, expected):
    folder = llava_tiny.write_transformers(tmp_path)
    renamed = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        name = name.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        )
        renamed["model." + name if name.startswith(("vision", "multi")) else name] = tensor
    save_file(renamed, folder / "model.safetensors")
    assert_weights(load_model(folder), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "float16"])
def test_dtype(kit, dtype):
    model = load_model(kit / "llava", dtype=dtype)
    wanted = dtype if isinstance(dtype, torch.dtype) else torch.float16
    assert {tensor.dtype for tensor in model.parameters()} == {wanted}


def test_saved_model_loads_again_without_its_towers_folder(kit, tmp_path, expected):
    load_model(kit / "llava").save_pretrained(tmp_path / "saved")
    assert_weights(load_model(tmp_path / "saved"), expected)


def test_load_pretrained_model(kit):
    tokenizer, model, image_processor, context_length = load_pretrained_model(kit / "llava", None, "llava")
    assert tokenizer("w1 w2").input_ids == [5, 6]
    assert image_processor.crop_size["height"] == 84
    assert context_length == 256
    assert model.get_vision_tower().num_patches == 36


def published(**changes):
    """A config.json as the published LLaVA-1.5-7B has it (names and values are its format)."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "_name_or_path": "llava-v1.5-7b",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_length": 4096,
        "max_position_embeddings": 4096,
        "vocab_size": 32000,
        "image_aspect_ratio": "pad",
        "image_grid_pinpoints": None,
        "freeze_mm_mlp_adapter": False,
        "mm_hidden_size": 1024,
        "mm_projector_type": "mlp2x_gelu",
        "mm_resampler_type": None,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": "openai/clip-vit-large-patch14-336",
        "pretraining_tp": 1,
        "rope_scaling": None,
        "torch_dtype": "float16",
        "transformers_version": "4.31.0",
        "use_mm_proj": True,
        **changes,
    }


LARGE_CLIP = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    ("changes", "newline"),
    [({}, 0), ({"mm_patch_merge_type": "spatial_unpad", "image_grid_pinpoints": [[336, 672]]}, 4096)],
)
def test_published_configurations_give_the_published_sizes(changes, newline, tmp_path):
    config = config_from_original(published(**changes), tmp_path)
    config.mm_vision_config = tower_config({"model_type": "clip", "vision_config": LARGE_CLIP}, tmp_path)
    with torch.device("meta"):
        model = LlavaLlamaForCausalLM(config)
    vicuna, projector, clip = 6_738_415_616, 20_979_712, 303_507_456
    assert sum(weight.numel() for weight in model.parameters()) == vicuna + projector + clip + newline
    assert model.get_vision_tower().num_patches == 576


ERRORS = {
    "a tower": ({"mm_vision_tower": ...}, "names no vision tower"),
    "the tower's folder": ({"mm_vision_tower": "../nowhere"}, r"vision tower folder .*nowhere does not exist"),
    "a tower on the hub": ({"mm_vision_tower": "openai/nowhere"}, r"openai/nowhere is no folder and not on the Hub"),
    "mpt": ({"model_type": "llava_mpt"}, "'llava_mpt'"),
    "mistral": ({"model_type": "llava_mistral"}, "'llava_mistral'"),
    "hidden size": (
        {"hidden_size": 64, "num_attention_heads": 4},
        r"model\.\S+ has shape \[\d+(, \d+)?\] on disk, config.json asks for \[\d+(, \d+)?\]",
    ),
    "too few layers": ({"num_hidden_layers": 3}, r"has, beyond the model, model\.layers\.3\.\S+ and 8 more"),
    "too many layers": ({"num_hidden_layers": 5}, r"lacks model\.layers\.4\.\S+ and 8 more"),
    "projector": ({"mm_projector_type": "resampler"}, "'resampler'; supported"),
    "vision layer": ({"mm_vision_select_layer": -9}, r"mm_vision_select_layer is -9.*between -4 and 3"),
    "vision feature": ({"mm_vision_select_feature": "mean"}, "'mean'; supported"),
    "merge type": ({"mm_patch_merge_type": "pool"}, "'pool'; supported"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_wrong_configurations(checkpoint, what):
    changes, words = ERRORS[what]
    change_config(checkpoint, **changes)
    with pytest.raises(ValueError, match=words) as error:
        load_model(checkpoint)
    assert "\n" not in str(error.value)


TRANSFORMERS_ERRORS = {
    "kind": ({"model_type": "llava_onevision"}, "'llava_onevision'; only 'llava' and 'llava_next'"),
    "decoder": ({"text_config": {"model_type": "mistral"}}, "'mistral'; only 'llama'"),
    "tower": ({"vision_config": {"model_type": "siglip_vision_model"}}, "'siglip_vision_model'"),
    "layers": ({"vision_feature_layer": [-2, -5]}, r"\[-2, -5\]; only one layer"),
}


@pytest.mark.parametrize("what", TRANSFORMERS_ERRORS)
def test_transformers_variants_that_are_not_built(tmp_path, what):
    changes, words = TRANSFORMERS_ERRORS[what]
    with pytest.raises(CheckpointError, match=words):
        load_model(llava_tiny.write_transformers(tmp_path, **changes))


def test_missing_and_wrong_folders(kit, tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint folder .*/nowhere does not exist; check the path"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"owner/llava is no folder and not on the Hub"):
        load_model("owner/llava")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="is a file, not a folder"):
        load_model(kit / "llava" / "config.json")
    with pytest.raises(CheckpointError, match=r"model_type is 'clip_vision_model'"):
        load_model(kit / "clip")
    with pytest.raises(CheckpointError, match=r"vision tower folder .*/nowhere does not exist"):
        load_model(kit / "llava", vision_tower=tmp_path / "nowhere")


def test_damaged_files(checkpoint):
    (checkpoint / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_model(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(checkpoint)
    (checkpoint / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read as JSON"):
        load_model(checkpoint)


def test_no_tensor_may_lack(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.mm_projector.0.weight"]
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks model\.mm_projector\.0\.weight"):
        load_model(checkpoint)


def test_tokenizer_and_processor_must_be_there(checkpoint):
    (checkpoint.parent / "clip" / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json in .*clip or .*llava"):
        load_pretrained_model(checkpoint)
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        load_pretrained_model(checkpoint)


def test_a_tokenizer_of_another_model(checkpoint):
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"more{number}": 44 + number for number in range(50)}
    (checkpoint / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="has 94 tokens, the model 64"):
        load_pretrained_model(checkpoint)


def write_sentencepiece(folder):
    """Replaces the tokenizer by one of Llama's kind (byte-pair pieces with byte fallback); returns its own encoder."""
    sentencepiece = pytest.importorskip("sentencepiece")
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["what is the color of the ball ?", "USER: ASSISTANT: red blue green 1 2 3"]),
        model_writer=buffer,
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(buffer.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())


TEXTS = ["USER: ", "\nwhat is the color? ASSISTANT:", "red  ball 123 \u2122", "", "\n\nblue"]


@pytest.mark.parametrize("settings", [{}, {"add_bos_token": True, "legacy": False, "padding_side": "right"}])
def test_a_sentencepiece_tokenizer_encodes_as_sentencepiece_does(checkpoint, settings):
    encoder = write_sentencepiece(checkpoint)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    llava_tiny.write_json(
        checkpoint / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **special, **settings}
    )
    tokenizer = load_tokenizer(checkpoint, vocab_size=320)
    for text in TEXTS:
        assert tokenizer(text).input_ids == [1, *encoder.encode(text)], text


def test_a_damaged_tokenizer(checkpoint):
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"the tokenizer in .*llava cannot be read") as error:
        load_pretrained_model(checkpoint)
    assert "\n" not in str(error.value)


def test_adapters_are_refused(kit, checkpoint):
    with pytest.raises(CheckpointError, match=r"'base'.*merge it"):
        load_pretrained_model(kit / "llava", "base", "llava")
    llava_tiny.write_json(checkpoint / "adapter_config.json", {})
    with pytest.raises(CheckpointError, match="LoRA adapter"):
        load_model(checkpoint)


def test_quantised_loading_without_bitsandbytes(kit, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(CheckpointError, match="load_4bit needs bitsandbytes"):
        load_pretrained_model(kit / "llava", load_4bit=True)
    with pytest.raises(CheckpointError, match="choose one"):
        load_pretrained_model(kit / "llava", load_4bit=True, load_8bit=True)
