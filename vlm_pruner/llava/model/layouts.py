"""Maps both checkpoint layouts, the original and transformers', to one configuration and one set of tensor names.

Canonical names are those of `LlavaLlamaForCausalLM`'s state dict without the tower's `vision_model.`: transformers
dropped that level from its CLIP modules, and files exist with and without it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.llava.model.checkpoint import CheckpointError, Tensors
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig, LlavaConfig, LlavaQwenConfig
from vlm_pruner.llava.model.multimodal_encoder.siglip_encoder import DEFAULTS as SIGLIP_DEFAULTS

TOWER = "model.vision_tower.vision_tower."

_ORIGINAL_TYPES = ("llava", "llava_llama", "llama")

# Buffers that older versions wrote to disk and newer ones compute.
_COMPUTED = re.compile(r"(rotary_emb\.inv_freq|embeddings\.position_ids)$")

# Towers are published as parts of whole CLIP and SigLIP models.
_NOT_TOWER = re.compile(r"^(text_model|text_projection|visual_projection|logit_scale|logit_bias)\b")

_FROM_TRANSFORMERS: Sequence[tuple[str, str]] = (
    (r"^(model\.)?vision_tower\.", TOWER),
    (r"^(model\.)?image_newline$", "model.image_newline"),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "model.mm_projector.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "model.mm_projector.2."),
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "model."),
)


def is_transformers_layout(raw: dict[str, Any]) -> bool:
    """Whether a config.json is in transformers' layout; both layouts have used the name "llava"."""
    return "text_config" in raw or "vision_config" in raw


def config_from_transformers(raw: dict[str, Any], folder: Path) -> LlavaConfig:
    """Our configuration for a config.json in transformers' layout. Raises CheckpointError for unsupported parts."""
    text, vision = raw.get("text_config") or {}, raw.get("vision_config") or {}
    _require(folder, "model_type", raw.get("model_type"), "llava", "llava_next")
    _require(folder, "text_config.model_type", text.get("model_type", "llama"), "llama")
    _require(folder, "vision_config.model_type", vision.get("model_type", "clip_vision_model"), "clip_vision_model")
    _require(folder, "projector_hidden_act", raw.get("projector_hidden_act", "gelu"), "gelu")
    layer = raw.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise CheckpointError(f"{folder}/config.json: vision_feature_layer is {layer}; only one layer is supported")
    strategies = {"default": "patch", "full": "cls_patch"}
    strategy = raw.get("vision_feature_select_strategy", "default")
    if strategy not in strategies:
        raise CheckpointError(
            f"{folder}/config.json: vision_feature_select_strategy is {strategy!r}; "
            f"supported: {', '.join(map(repr, strategies))}"
        )
    tower = {**_LLAVA_TOWER, **vision}
    return LlavaConfig(
        **{**_LLAVA_TEXT, **_without(text, *_NOT_TEXT)},
        tie_word_embeddings=raw.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
        mm_vision_config=tower,
        mm_vision_select_layer=layer,
        mm_vision_select_feature=strategies[strategy],
        mm_projector_type="mlp2x_gelu",
        mm_projector_bias=raw.get("multimodal_projector_bias", True),
        mm_hidden_size=tower["hidden_size"],
        image_token_index=raw.get("image_token_index", raw.get("image_token_id", 32000)),
        tokenizer_padding_side="left",
        **(_next_from_transformers(raw, folder) if raw["model_type"] == "llava_next" else {}),
    )


def _next_from_transformers(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """LLaVA-NeXT's part of our configuration. transformers writes canvases as [height, width], not [width, height]."""
    pinpoints = raw.get("image_grid_pinpoints") or _NEXT_PINPOINTS
    try:
        canvases = [[int(width), int(height)] for height, width in pinpoints]
    except (TypeError, ValueError):
        raise CheckpointError(
            f"{folder}/config.json: image_grid_pinpoints is {pinpoints!r}; expected a list of [height, width] in pixels"
        ) from None
    return {
        "image_aspect_ratio": "anyres",
        "mm_patch_merge_type": "spatial_unpad",
        "image_grid_pinpoints": canvases,
        "unpad_rounds": True,
    }


def config_from_original(raw: dict[str, Any], folder: Path) -> AnyLlavaConfig:
    """Our configuration for a config.json in the original layout, the tower's part still to be filled in.

    The architecture decides: `model_type` has been "llava", "qwen2" and "llava_qwen" in published files of one kind.
    """
    kind = raw.get("model_type")
    on_qwen = "LlavaQwenForCausalLM" in (raw.get("architectures") or ()) or kind == "llava_qwen"
    if not on_qwen and kind not in _ORIGINAL_TYPES:
        raise CheckpointError(
            f"{folder}/config.json: model_type is {kind!r} and architectures {raw.get('architectures')}; supported are "
            "LLaVA checkpoints on Llama and Vicuna ('llava_llama', 'llava') and on Qwen2 (LlavaQwenForCausalLM); for "
            "other models use vlm_pruner.prune with transformers' own class"
        )
    if not raw.get("mm_vision_tower") and not raw.get("mm_vision_config"):
        raise CheckpointError(
            f"{folder}/config.json names no vision tower (mm_vision_tower), so it is not a LLaVA checkpoint; "
            "pass a LLaVA folder, not its language model"
        )
    own = _without(raw, "model_type", "torch_dtype", "dtype")
    return LlavaQwenConfig(**_on_qwen(own, folder)) if on_qwen else LlavaConfig(**own)


def _on_qwen(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of our configuration. The original code drops rope_scaling, and applies no sliding window."""
    if raw.get("use_sliding_window"):
        raise CheckpointError(
            f"{folder}/config.json: use_sliding_window is true, which no published LLaVA on Qwen2 was trained with; "
            "set it to false"
        )
    theta = raw.get("rope_theta", (raw.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    own = _without(raw, "rope_scaling", "rope_theta", "rope_parameters")
    own["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return {name: value for name, value in own.items() if value is not None or name not in _DEFAULTED}


def tower_config(raw: dict[str, Any], folder: Path, types: Sequence[str] = ("clip_vision_model",)) -> dict[str, Any]:
    """A vision tower's configuration from its config.json, which may describe a whole CLIP or SigLIP model.

    types: the vision configurations that the model can have.
    """
    vision = raw.get("vision_config", raw) if raw.get("model_type") in ("clip", "siglip") else raw
    kind = vision.get("model_type", "siglip_vision_model" if raw.get("model_type") == "siglip" else types[0])
    _require(folder, "model_type", kind, *types)
    defaults = SIGLIP_DEFAULTS if kind == "siglip_vision_model" else {}
    return {**defaults, **_without(vision, "torch_dtype", "dtype", "architectures"), "model_type": kind}


def known_tower(name: str) -> dict[str, Any] | None:
    """The configuration of a published tower, by the last part of its name, for checkpoints that hold its weights."""
    known = Path(name).name == "siglip-so400m-patch14-384"
    return {**SIGLIP_DEFAULTS, "model_type": "siglip_vision_model"} if known else None


def canonical(name: str) -> str:
    """The canonical form of a name in our state dict or in the original layout."""
    return name.replace("vision_tower.vision_model.", "vision_tower.")


def from_original(tensors: Tensors) -> Tensors:
    return _renamed(tensors, canonical)


def from_transformers(tensors: Tensors) -> Tensors:
    return _renamed(tensors, lambda name: canonical(renamed_by(_FROM_TRANSFORMERS, name)))


def renamed_by(patterns: Sequence[tuple[str, str]], name: str) -> str:
    """The name after the first (pattern, replacement) that matches it."""
    for pattern, replacement in patterns:
        changed, matches = re.subn(pattern, replacement, name)
        if matches:
            return changed
    return name


def from_tower(tensors: Tensors, vision: dict[str, Any]) -> Tensors:
    """The tensors of a tower's own folder, under the names that they have inside LLaVA.

    vision: the tower's configuration. Of SigLIP, LLaVA leaves out the last layer and the pooling head.
    """
    tower = {
        name.removeprefix("vision_model."): tensor for name, tensor in tensors.items() if not _NOT_TOWER.match(name)
    }
    if vision.get("model_type") == "siglip_vision_model":
        left_out = ("head.", f"encoder.layers.{vision['num_hidden_layers'] - 1}.")
        tower = {name: tensor for name, tensor in tower.items() if not name.startswith(left_out)}
    return _renamed(tower, lambda name: TOWER + name)


def _renamed(tensors: Tensors, rename: Callable[[str], str]) -> Tensors:
    return {rename(name): tensor for name, tensor in tensors.items() if not _COMPUTED.search(name)}


def _require(folder: Path, key: str, found: object, *expected: str) -> None:
    if found not in expected:
        supported = " and ".join(map(repr, expected))
        raise CheckpointError(f"{folder}/config.json: {key} is {found!r}; only {supported} is supported here")


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


# Keys of a text_config that describe itself, or that our configuration sets on its own.
_NOT_TEXT = ("model_type", "architectures", "_name_or_path", "torch_dtype", "dtype", "tie_word_embeddings")

# Keys that published files may hold as null, and whose defaults then apply.
_DEFAULTED = ("mm_spatial_pool_mode", "mm_newline_position", "add_faster_video", "tokenizer_padding_side")

# transformers leaves defaults out of the config.json that it writes; these are the ones of its LLaVA.
_LLAVA_TEXT: dict[str, Any] = {"vocab_size": 32000}
_NEXT_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_LLAVA_TOWER: dict[str, Any] = {
    "intermediate_size": 4096,
    "hidden_size": 1024,
    "patch_size": 14,
    "image_size": 336,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
