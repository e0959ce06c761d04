"""Loads transformers' processors, with or without torchvision.

In a family with videos, the processor requires a video processor, which needs torchvision. Its image processor does
not, so without torchvision pictures work and videos do not. torchvision is not a dependency because it must match the
installed torch exactly (CPU or CUDA, and the version), and fails on import beside any other.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available


def load_processor(checkpoint: str, min_pixels: int | None = None, max_pixels: int | None = None) -> Any:
    """Loads the checkpoint's processor. Limits: pixels per image, for families that scale images by pixels.

    Without torchvision, `video_processor` is None for families that have one.
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
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = family.__name__
    own, _ = family.get_processor_dict(checkpoint)
    kept = {name: value for name, value in own.items() if name in _parameters(family)}
    return ImagesOnly(
        **kept,
        image_processor=AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=False),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False),
        video_processor=None,
    )


def _parameters(family: Any) -> set[str]:
    parts = {"self", "image_processor", "tokenizer", "video_processor", "kwargs"}
    return set(inspect.signature(family.__init__).parameters) - parts
