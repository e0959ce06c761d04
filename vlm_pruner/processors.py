"""Processors of transformers, also where torchvision is not installed.

Families that take videos have a processor that cannot be made without a video processor, and that needs torchvision.
Their image processors do without, so pictures are served everywhere, and videos where torchvision is.
"""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.utils import is_torchvision_available


def load_processor(checkpoint: str, **settings: Any) -> Any:
    """The checkpoint's processor. settings: of its image processor, such as max_pixels.

    Without torchvision its `video_processor` is None where the family has one.
    """
    if is_torchvision_available():
        return AutoProcessor.from_pretrained(checkpoint, **settings)
    family = _family(checkpoint)
    if family is None or "video_processor" not in family.get_attributes():
        return AutoProcessor.from_pretrained(checkpoint, **settings)
    return _without_videos(family, checkpoint, settings)


def _family(checkpoint: str) -> Any:
    """The class of the checkpoint's processor, if transformers knows it by the model's type."""
    name = PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(checkpoint).model_type)
    return None if name is None else getattr(transformers, name)


def _without_videos(family: Any, checkpoint: str, settings: dict[str, Any]) -> Any:
    class ImagesOnly(family):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor" and argument is None:
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    ImagesOnly.__name__ = family.__name__
    own, _ = family.get_processor_dict(checkpoint)
    kept = {name: value for name, value in own.items() if name in _parameters(family)}
    return ImagesOnly(
        **kept,
        image_processor=AutoImageProcessor.from_pretrained(checkpoint, **settings),
        tokenizer=AutoTokenizer.from_pretrained(checkpoint),
        video_processor=None,
    )


def _parameters(family: Any) -> set[str]:
    parts = {"self", "image_processor", "tokenizer", "video_processor", "kwargs"}
    return set(inspect.signature(family.__init__).parameters) - parts
