"""Loads transformers' processors, with or without torchvision.

In a family with videos, the processor requires a video processor, which needs torchvision. Its image processor does
not: without torchvision pictures work, and Qwen's videos through `FrameProcessor`. torchvision is not a dependency
because it must match the installed torch exactly (CPU or CUDA, and the version), and fails on import beside any other.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import cached_file, is_torchvision_available

from vlm_pruner.asking.frame_processor import FrameProcessor

# transformers' defaults for videos: pixels of a token's side (a frame has 128 to 768 tokens), mean and std of colours.
_VIDEO_DEFAULTS = {
    "Qwen2VLProcessor": (28, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "Qwen2_5_VLProcessor": (28, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD),
    "Qwen3VLProcessor": (32, IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD),
}
_PATCHES = ("patch_size", "merge_size", "temporal_patch_size")


def load_processor(checkpoint: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """Loads the checkpoint's processor. Limits: pixels per image, for families that scale images by pixels.

    Without torchvision, `video_processor` is a FrameProcessor for Qwen's families, and None for others that have one.
    """
    family = None if is_torchvision_available() else _family(checkpoint)
    if family is None or "video_processor" not in family.get_attributes():
        processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    else:
        processor = _without_videos(family, checkpoint)
    limits = {"shortest_edge": min_pixels, "longest_edge": max_pixels}
    if given := {name: value for name, value in limits.items() if value is not None}:
        _limit(processor.image_processor, given)
    return processor


def _limit(images: Any, given: dict[str, int]) -> None:
    """Qwen's processors store limits in pixels as "shortest_edge" and "longest_edge"."""
    own = {name: images.size[name] for name in ("shortest_edge", "longest_edge") if name in images.size}
    if len(own) < 2 or not hasattr(images, "merge_size"):
        raise ValueError(
            f"{type(images).__name__} scales images to fixed sizes, not to a number of pixels; "
            "leave min_pixels and max_pixels out"
        )
    limits = {**own, **given}
    if limits["shortest_edge"] > limits["longest_edge"]:
        raise ValueError(f"min_pixels={limits['shortest_edge']} is more than max_pixels={limits['longest_edge']}")
    images.size = type(images.size)(**limits)


def _family(checkpoint: str) -> Any:
    """The class of the checkpoint's processor; None if transformers has none for the model's type."""
    name = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).model_type)
    return None if name is None else getattr(transformers, name)


def _without_videos(family: Any, checkpoint: str) -> Any:
    class ImagesOnly(family):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and (argument is None or isinstance(argument, FrameProcessor)):
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = family.__name__
    own, _ = family.get_processor_dict(checkpoint)
    kept = {name: value for name, value in own.items() if name in _parameters(family)}
    images = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False)
    return ImagesOnly(
        **kept,
        image_processor=images,
        tokenizer=AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False),
        video_processor=_frame_processor(family.__name__, images, checkpoint, own.get("video_processor")),
    )


def _frame_processor(family: str, images: Any, checkpoint: str, own: dict[str, Any] | None) -> FrameProcessor | None:
    """For Qwen's families. own: the video half of a processor_config.json, which newer checkpoints have.

    None for other families, and where videos have patches of another size than pictures.
    """
    if family not in _VIDEO_DEFAULTS:
        return None
    if not own:
        name = "video_preprocessor_config.json"
        file = cached_file(checkpoint, name, _raise_exceptions_for_missing_entries=False)
        own = None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
    of_video = family == "Qwen3VLProcessor"
    if own is None:  # older checkpoints: one file for both
        return FrameProcessor(images, (images.size["shortest_edge"], images.size["longest_edge"]), of_video)
    if any(own.get(name, getattr(images, name)) != getattr(images, name) for name in _PATCHES):
        return None
    side, mean, std = _VIDEO_DEFAULTS[family]
    size = own.get("size") or {}
    least = own.get("min_pixels") or size.get("shortest_edge") or 128 * side**2
    most = own.get("max_pixels") or size.get("longest_edge") or 768 * side**2
    colours = {"image_mean": own.get("image_mean", mean), "image_std": own.get("image_std", std)}
    return FrameProcessor(images, (int(least), int(most)), of_video, colours)


def _parameters(family: Any) -> set[str]:
    parts = {"self", "image_processor", "tokenizer", "video_processor", "kwargs"}
    return set(inspect.signature(family.__init__).parameters) - parts
