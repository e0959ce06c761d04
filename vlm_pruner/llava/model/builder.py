"""Loads LLaVA: the model alone, or with the tokenizer and image processor that LLaVA's scripts expect.

All checks come before the first weight is copied: the folder, the configuration, and that the names and shapes of all
tensors match the model exactly. No weight ever keeps a random value.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from transformers import BitsAndBytesConfig, CLIPImageProcessorPil, GenerationConfig, PreTrainedTokenizerBase
from transformers.integrations import is_deepspeed_zero3_enabled

from vlm_pruner.llava.model import layouts
from vlm_pruner.llava.model.checkpoint import (
    CheckpointError,
    Tensors,
    find_folder,
    first_line,
    read_config,
    read_trained_beside,
    read_weights,
)
from vlm_pruner.llava.model.language_model.llava_llama import LlavaLlamaForCausalLM
from vlm_pruner.llava.model.language_model.llava_qwen import LlavaQwenForCausalLM
from vlm_pruner.llava.model.llava_config import AnyLlavaConfig, LlavaQwenConfig
from vlm_pruner.llava.model.multimodal_encoder.siglip_encoder import SiglipImageProcessor
from vlm_pruner.llava.model.tokenizer import load_tokenizer, mark_tokens

Llava: TypeAlias = LlavaLlamaForCausalLM | LlavaQwenForCausalLM
ImageProcessor: TypeAlias = CLIPImageProcessorPil | SiglipImageProcessor

CONTEXT_LENGTH = 2048  # tokens; LLaVA's value for checkpoints that give none

_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # transformers 5 writes only the second
_MERGE = "merge it into its base model first (peft's merge_and_unload, then save_pretrained) and load the result"
_TOWER_REMEDY = "pass vision_tower=FOLDER, or put the tower where config.json's mm_vision_tower says"


@dataclass(frozen=True)
class Source:
    """The files of a model. tower: None if the checkpoint contains or describes its tower itself."""

    folder: Path
    config: AnyLlavaConfig
    tower: Path | None
    original_layout: bool
    tower_chosen: bool = False


def model_class(config: AnyLlavaConfig) -> type[Llava]:
    """The model class for a configuration."""
    return LlavaQwenForCausalLM if isinstance(config, LlavaQwenConfig) else LlavaLlamaForCausalLM


def load_model(
    model_path: str | Path,
    *,
    vision_tower: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
    device_map: str | dict[str, Any] | None = None,
    quantization_config: BitsAndBytesConfig | None = None,
) -> Llava:
    """Loads a checkpoint in the original or in transformers' layout, ready for inference.

    vision_tower: folder or Hub name of a tower to use instead of the checkpoint's; a relative `mm_vision_tower` of the
    checkpoint itself is relative to the checkpoint. dtype: float16 on a GPU and float32 on a CPU unless given.
    device_map: as in transformers (needs accelerate); replaces `device`.

    Raises `CheckpointError` for any problem with the files.
    """
    source = open_checkpoint(model_path, vision_tower)
    tensors = collect_tensors(source)
    straight = torch.device(device).type != "cpu" and importlib.util.find_spec("accelerate")
    if device_map is None and straight and not is_deepspeed_zero3_enabled():
        device_map = {"": str(device)}  # straight to the device, without a full copy in main memory
    model, info = model_class(source.config).from_pretrained(
        None,
        config=source.config,
        state_dict=tensors,
        dtype=_dtype(dtype, device, device_map),
        attn_implementation=attn_implementation,
        device_map=device_map,
        quantization_config=quantization_config,
        output_loading_info=True,
    )
    _check_loaded(info, source.folder)
    model.config.name_or_path = str(model_path)
    if (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model.eval() if device_map is not None or quantization_config is not None else model.to(device).eval()


def load_pretrained_model(
    model_path: str | Path,
    model_base: str | None = None,
    model_name: str | None = None,  # part of LLaVA's signature; the name has no effect here
    load_8bit: bool = False,
    load_4bit: bool = False,
    device_map: str | dict[str, Any] | None = None,
    device: str | torch.device = "cpu",
    use_flash_attn: bool = False,
    **options: Any,
) -> tuple[PreTrainedTokenizerBase, Llava, ImageProcessor, int]:
    """LLaVA's loader: (tokenizer, model, image processor, context length in tokens).

    `options` go to `load_model`. LoRA adapters and projector-only folders (`model_base`) are refused: merge them first.
    """
    if model_base is not None:
        raise CheckpointError(
            f"model_base is {model_base!r}: {model_path} would be a LoRA or a bare projector; {_MERGE}"
        )
    source = open_checkpoint(model_path, options.get("vision_tower"))
    tokenizer = load_tokenizer(source.folder, source.config.vocab_size, mark_tokens(source.config))
    image_processor = load_image_processor(source)
    quantization = _quantization(load_8bit, load_4bit)
    if quantization is not None:
        options["quantization_config"] = quantization
        device_map = device_map or "auto"
    if use_flash_attn:
        options["attn_implementation"] = "flash_attention_2"
    if "torch_dtype" in options:
        options["dtype"] = options.pop("torch_dtype")
    model = load_model(model_path, device=device, device_map=device_map, **options)
    if isinstance(model, LlavaQwenForCausalLM) and len(tokenizer) < model.config.vocab_size:
        model.resize_token_embeddings(len(tokenizer))  # like the original: ids beyond the vocabulary are never answers
    config = model.config
    length = getattr(config, "max_sequence_length", None) or config.tokenizer_model_max_length or CONTEXT_LENGTH
    return tokenizer, model, image_processor, length


def open_checkpoint(model_path: str | Path, vision_tower: str | Path | None = None, weights: bool = True) -> Source:
    """Reads and checks everything except the weights. weights: whether what the Hub supplies includes them."""
    folder = find_folder(model_path, "checkpoint", "check the path or download the checkpoint first", weights)
    if (folder / "adapter_config.json").is_file():
        raise CheckpointError(f"checkpoint {folder} is a LoRA adapter (adapter_config.json); {_MERGE}")
    raw = read_config(folder, "checkpoint")
    _check_quantized(raw, folder)
    original = not layouts.is_transformers_layout(raw)
    configure = layouts.config_from_original if original else layouts.config_from_transformers
    config = configure(raw, folder)
    tower = _find_tower(config, folder, vision_tower, weights)
    if tower is not None:
        types = ("siglip_vision_model", "clip_vision_model") if config.takes_videos else ("clip_vision_model",)
        config.mm_vision_config = layouts.tower_config(read_config(tower, "vision tower"), tower, types)
    elif not config.mm_vision_config:
        config.mm_vision_config = layouts.known_tower(config.mm_vision_tower or "")
    return Source(folder, config, tower, original, tower_chosen=vision_tower is not None)


def collect_tensors(source: Source) -> Tensors:
    """All tensors of the model under its own names, checked for completeness and shape.

    The checkpoint's own tower takes precedence over the tower's folder, unless the caller chose the folder. LLaVA on
    Qwen2 was trained together with its tower, so a folder supplies only the tower's sizes.
    """
    on_disk = read_weights(source.folder, "checkpoint") | read_trained_beside(source.folder)
    tensors = layouts.from_original(on_disk) if source.original_layout else layouts.from_transformers(on_disk)
    has_tower = any(name.startswith(layouts.TOWER) for name in tensors)
    chosen = source.tower_chosen and not source.config.takes_videos
    if not has_tower or (source.tower is not None and chosen):
        tower = source.tower or find_folder(source.config.mm_vision_tower or "", "vision tower", _TOWER_REMEDY)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(layouts.TOWER)}
        tensors |= layouts.from_tower(read_weights(tower, "vision tower"), source.config.mm_vision_config or {})
    with torch.device("meta"):
        expected = model_class(source.config)(source.config).state_dict()
    if source.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
        expected.pop("lm_head.weight")
    _check_tensors({layouts.canonical(name): t for name, t in expected.items()}, tensors, source.folder)
    return {name: tensors[layouts.canonical(name)] for name in expected}


def load_image_processor(source: Source) -> ImageProcessor:
    """The tower's image processor (with Pillow's arithmetic, as in LLaVA's training), or the checkpoint's own.

    SigLIP's is fixed: no file can change it.
    """
    vision = source.config.mm_vision_config or {}
    if vision.get("model_type") == "siglip_vision_model":
        return SiglipImageProcessor(vision["image_size"])
    folders = [folder for folder in (source.tower, source.folder) if folder is not None]
    for folder in folders:
        for name in _PROCESSOR_FILES:
            if (folder / name).is_file():
                processor = CLIPImageProcessorPil.from_pretrained(folder)
                _check_processor(processor, folder / name, source)
                return processor
    raise CheckpointError(
        f"no preprocessor_config.json in {' or '.join(map(str, folders))}; copy it from the vision tower's repository"
    )


def _check_processor(processor: CLIPImageProcessorPil, path: Path, source: Source) -> None:
    """Raises unless a non-square picture comes out in the tower's size."""
    side = (source.config.mm_vision_config or {}).get("image_size")
    if side is None:
        return
    remedy = "copy the preprocessor_config.json of the vision tower's own repository there"
    try:
        pixels = processor(images=Image.new("RGB", (side, 2 * side)), return_tensors="np")["pixel_values"]
    except Exception as error:  # arbitrary settings, read by code that is not ours
        raise CheckpointError(
            f"{path} does not describe a picture's processing ({first_line(error)}); {remedy}"
        ) from None
    height, width = pixels.shape[-2:]
    if (height, width) != (side, side):
        raise CheckpointError(
            f"{path} makes pictures of {width} x {height} pixels, and the vision tower of {source.folder} takes"
            f" {side} x {side}; {remedy}"
        )


def _check_quantized(raw: dict[str, Any], folder: Path) -> None:
    """Raises unless the library that quantised the checkpoint is installed."""
    quantization = raw.get("quantization_config")
    if not isinstance(quantization, dict):
        return
    method = str(quantization.get("quant_method") or "bitsandbytes")
    if method != "bitsandbytes":
        raise CheckpointError(
            f"checkpoint {folder} was quantised by {method} (quantization_config in config.json), which is not read"
            " here; use the checkpoint that it was made from"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        bits = "4" if quantization.get("load_in_4bit") else "8"
        raise CheckpointError(
            f"checkpoint {folder} was saved in {bits} bits (quantization_config in config.json) and needs bitsandbytes,"
            " which is not installed: pip install 'vlm-pruner[quant]', or use the checkpoint that it was made from"
        )


def _find_tower(config: AnyLlavaConfig, folder: Path, chosen: str | Path | None, weights: bool = True) -> Path | None:
    """The tower's folder; None if the checkpoint describes its tower, or names a published one that it may contain."""
    if chosen is not None:
        return find_folder(chosen, "vision tower", "check the path", weights)
    if config.mm_vision_tower is None:
        return None
    beside = folder / config.mm_vision_tower
    if beside.is_dir():
        return beside
    if config.mm_vision_config:  # the checkpoint describes its tower: the folder is not needed
        return None
    known = config.takes_videos and layouts.known_tower(config.mm_vision_tower)
    if known and not Path(config.mm_vision_tower).expanduser().is_dir():
        return None
    if config.mm_vision_tower.startswith("."):
        raise CheckpointError(f"vision tower folder {beside} does not exist; {_TOWER_REMEDY}")
    return find_folder(config.mm_vision_tower, "vision tower", _TOWER_REMEDY, weights)


def _check_tensors(expected: Tensors, found: Tensors, folder: Path) -> None:
    """Raises unless names and shapes on disk match the model exactly."""
    for name, tensor in expected.items():
        if name in found and found[name].shape != tensor.shape:
            remedy = "use the config.json that belongs to these weights"
            if name.startswith(layouts.TOWER):
                remedy = "pass vision_tower=FOLDER with the config.json of the tower that these weights are of"
            raise CheckpointError(
                f"checkpoint {folder}: {name} has shape {list(found[name].shape)} on disk, config.json asks for "
                f"{list(tensor.shape)}; {remedy}"
            )
    for names, problem in (
        (expected.keys() - found.keys(), "lacks"),
        (found.keys() - expected.keys(), "has, beyond the model,"),
    ):
        if names:
            first, more = min(names), f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                f"checkpoint {folder} {problem} {first}{more}; download it again, "
                "or use the config.json that belongs to these weights"
            )


def _check_loaded(info: dict[str, Any], folder: Path) -> None:
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if info.get(problem):
            raise CheckpointError(
                f"checkpoint {folder} was not loaded completely: {problem} {sorted(info[problem])[0]}"
            )


def _quantization(load_8bit: bool, load_4bit: bool) -> BitsAndBytesConfig | None:
    if not (load_8bit or load_4bit):
        return None
    if load_8bit and load_4bit:
        raise CheckpointError("load_8bit and load_4bit are both set; choose one")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise CheckpointError(
            f"{'load_8bit' if load_8bit else 'load_4bit'} needs bitsandbytes, which is not installed: "
            "pip install 'vlm-pruner[quant]', or load without it"
        )
    # The tower and the projector are small, and quantising them costs accuracy.
    dense = ["vision_tower", "mm_projector", "lm_head"]
    if load_8bit:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=dense)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=dense,
        bnb_4bit_compute_dtype=torch.float16,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_type="nf4",
    )


def _dtype(
    dtype: torch.dtype | str | None, device: str | torch.device, device_map: str | dict[str, Any] | None
) -> torch.dtype:
    if isinstance(dtype, str):
        found = getattr(torch, dtype, None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"dtype is {dtype!r}; use for example 'float16', 'bfloat16' or 'float32'")
        return found
    if dtype is not None:
        return dtype
    on_cpu = torch.device(device).type == "cpu" if device_map is None else not torch.cuda.is_available()
    return torch.float32 if on_cpu else torch.float16
