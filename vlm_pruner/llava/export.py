"""Writes a LLaVA checkpoint of the original layout in transformers' layout, which serving engines load.

Renames tensors and computes nothing. The vocabulary gets one more token, <image>, whose rows copy those of the padding
token. Processor and chat template are written too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from vlm_pruner.geometry.anyres import parse_pinpoints
from vlm_pruner.llava.constants import DEFAULT_IMAGE_TOKEN
from vlm_pruner.llava.conversation import SeparatorStyle, Template, conv_templates
from vlm_pruner.llava.model.builder import Source, collect_tensors, load_image_processor, open_checkpoint
from vlm_pruner.llava.model.checkpoint import CheckpointError, Tensors
from vlm_pruner.llava.model.layouts import renamed_by
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig
from vlm_pruner.llava.model.tokenizer import load_tokenizer, mark_tokens

_SHARD = 5 * 2**30  # bytes

_TO_TRANSFORMERS: Sequence[tuple[str, str]] = (
    (r"^model\.vision_tower\.vision_tower\.(vision_model\.)?", "vision_tower.vision_model."),
    (r"^model\.mm_projector\.0\.", "multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "multi_modal_projector.linear_2."),
    (r"^model\.image_newline$", "image_newline"),
    (r"^(model\.|lm_head\.)", r"language_model.\1"),
)
_VOCABULARY = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
_PIXELS = (
    *("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"),
)
_TEXT = (
    *("hidden_act", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads"),
    *("num_hidden_layers", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_parameters"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)


def export(model_path: str | Path, out: Path, template: str = "vicuna_v1", vision_tower: str | None = None) -> Path:
    """Writes the checkpoint at `model_path` to the folder `out`, and returns it.

    template: the prompt format, by its name in LLaVA, for the chat template. Raises CheckpointError for a checkpoint or
    a format that is not supported, and if `out` has files already.
    """
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty; give a new folder")
    chat = chat_template(template)
    source = open_checkpoint(model_path, vision_tower)
    config = source.config
    _check(source)
    tokenizer = load_tokenizer(source.folder, config.vocab_size, mark_tokens(config))
    tokenizer.add_special_tokens({"additional_special_tokens": [DEFAULT_IMAGE_TOKEN]})
    image = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    assert isinstance(image, int)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tensors = _renamed(collect_tensors(source), image, int(tokenizer.pad_token_id))
    out.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(tensors, out, max_shard_size=_SHARD)
    written = json.dumps(_transformers_config(config, image, tensors), indent=2)
    (out / "config.json").write_text(written + "\n", encoding="utf-8")
    generation = source.folder / "generation_config.json"
    if generation.is_file():
        (out / generation.name).write_bytes(generation.read_bytes())
    processor = _processor(source, tokenizer, chat)
    processor.save_pretrained(out)
    processor.image_processor.save_pretrained(out)  # engines look for a file of its own
    return out


def _check(source: Source) -> None:
    config, folder = source.config, source.folder
    if not source.original_layout:
        raise CheckpointError(f"{folder} is in transformers' layout already")
    if config.takes_videos:
        raise CheckpointError(f"{folder} is a LLaVA on Qwen2; only LLaVA-1.5 and 1.6 on Llama can be exported")
    if config.mm_projector_type != "mlp2x_gelu":
        raise CheckpointError(
            f"{folder}: transformers' LLaVA has a projector of two layers, mlp2x_gelu, not {config.mm_projector_type}"
        )
    if _is_next(config) and config.mm_patch_merge_type != "spatial_unpad":
        raise CheckpointError(
            f"{folder}: transformers' LLaVA-NeXT merges tiles by spatial_unpad, not by {config.mm_patch_merge_type}"
        )


def _is_next(config: AnyLlavaConfig) -> bool:
    return config.image_aspect_ratio == "anyres"


def _renamed(tensors: Tensors, image: int, padding: int) -> Tensors:
    """The tensors under transformers' names; the rows of token `image` copy those of token `padding`."""
    found = {renamed_by(_TO_TRANSFORMERS, name): tensor for name, tensor in tensors.items()}
    for name in _VOCABULARY:
        if name in found:
            found[name] = _with_row(found[name], image, padding)
    return found


def _with_row(table: Tensor, image: int, padding: int) -> Tensor:
    rows = max(len(table), image + 1)
    wider = torch.cat([table, table[padding].expand(rows - len(table), -1)])
    wider[image] = table[padding]
    return wider


def _transformers_config(config: AnyLlavaConfig, image: int, tensors: Tensors) -> dict[str, Any]:
    table = tensors[_VOCABULARY[0]]
    text = {name: getattr(config, name) for name in _TEXT if getattr(config, name, None) is not None}
    vision = {name: value for name, value in (config.mm_vision_config or {}).items() if name != "transformers_version"}
    architecture = "LlavaNextForConditionalGeneration" if _is_next(config) else "LlavaForConditionalGeneration"
    written = {
        "architectures": [architecture],
        "model_type": "llava_next" if _is_next(config) else "llava",
        "dtype": str(table.dtype).removeprefix("torch."),
        "image_token_index": image,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "vision_feature_layer": config.mm_vision_select_layer,
        "vision_feature_select_strategy": _strategy(config),
        "text_config": {**text, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": len(table)},
        "vision_config": {**vision, "model_type": "clip_vision_model"},
    }
    return {**written, **({"image_grid_pinpoints": _canvases(config)} if _is_next(config) else {})}


def _strategy(config: AnyLlavaConfig) -> str:
    return "default" if config.mm_vision_select_feature == "patch" else "full"


def _canvases(config: AnyLlavaConfig) -> list[list[int]]:
    """Canvases as transformers writes them, [height, width]."""
    return [[height, width] for width, height in parse_pinpoints(config.image_grid_pinpoints)]


def _processor(source: Source, tokenizer: PreTrainedTokenizerBase, chat: str) -> Any:
    config, vision = source.config, source.config.mm_vision_config or {}
    return (transformers.LlavaNextProcessor if _is_next(config) else transformers.LlavaProcessor)(
        image_processor=_image_processor(source),
        tokenizer=tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy=_strategy(config),
        chat_template=chat,
        image_token=DEFAULT_IMAGE_TOKEN,
        num_additional_image_tokens=1,  # CLIP's class token
    )


def _image_processor(source: Source) -> Any:
    """As the checkpoint was trained: LLaVA-1.5 pads a picture to a square, 1.6 cuts it into tiles."""
    own, config = load_image_processor(source).to_dict(), source.config  # type: ignore[union-attr]
    settings = {name: own[name] for name in _PIXELS if own.get(name) is not None}
    if _is_next(config):
        return transformers.LlavaNextImageProcessorPil(**settings, image_grid_pinpoints=_canvases(config))
    if config.image_aspect_ratio == "pad":
        return transformers.LlavaImageProcessorPil(**settings, do_pad=True)
    return transformers.CLIPImageProcessorPil(**settings)


def chat_template(name: str) -> str:
    """The Jinja form of a prompt format. It writes <s> itself: engines tokenise chats without special tokens."""
    template = conv_templates.get(name)
    if template is None or template.sep_style is not SeparatorStyle.TWO:
        known = ", ".join(one for one, it in conv_templates.items() if it.sep_style is SeparatorStyle.TWO)
        raise CheckpointError(f"no chat template for the prompt format {name!r}; there is one for {known}")
    return _jinja(template)


def _jinja(template: Template) -> str:
    user, assistant = template.roles
    return (
        f"{{{{ bos_token + {_quoted(template.system + template.sep)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}"
        f"{{{{ {_quoted(user + ': ')} }}}}"
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] if part['type'] != 'text' %}"
        f"{{{{ {_quoted(DEFAULT_IMAGE_TOKEN)} + '\\n' }}}}"
        "{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
        "{% endif %}"
        f"{{{{ {_quoted(template.sep)} }}}}"
        "{% elif message['role'] == 'assistant' %}"
        f"{{{{ {_quoted(assistant + ': ')} + _TEXT_ + {_quoted(template.sep2 or '')} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(assistant + ':')} }}}}{{% endif %}}"
    ).replace("_TEXT_", "(message['content'] if message['content'] is string else message['content'][0]['text'])")


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
