"""Checkpoints in transformers' layout, with the processor and the chat template that come with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm_pruner.asking.chat import Chat, Pictures, Prompt, as_list
from vlm_pruner.asking.frame_processor import scaled
from vlm_pruner.asking.processors import load_processor
from vlm_pruner.asking.weights import load_model
from vlm_pruner.errors import UnsupportedModelError
from vlm_pruner.frames import Clip, describe_clip
from vlm_pruner.geometry.frame_sizes import NO_LIMITS, PixelLimits

LLAVA_PROMPT = "USER: {images}{question} ASSISTANT:"  # of LLaVA-1.5, whose older checkpoints have no template


class Prompts:
    """Builds a checkpoint's prompts from its processor and configuration, without its weights.

    name: what the user called the checkpoint.
    """

    def __init__(self, processor: Any, config: Any, name: str, pixels: PixelLimits = NO_LIMITS) -> None:
        self.processor, self.config, self.name, self.pixels = processor, config, name, pixels

    @classmethod
    def open(cls, folder: Path, name: str, pixels: PixelLimits = NO_LIMITS) -> Prompts:
        config = AutoConfig.from_pretrained(
            folder, trust_remote_code=False
        )  # fails for any other folder, before anything is loaded
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise UnsupportedModelError(
                f"{(config.architectures or [type(config).__name__])[0]} is not supported: {name} is a "
                f"{config.model_type} model, which answers no questions about pictures; give a vision-language model "
                "of a family that `vlm-pruner methods` lists"
            )
        try:
            processor = load_processor(str(folder), pixels.min_pixels, pixels.max_pixels)
        except ImportError as error:
            missing = " ".join(str(error).split()).partition(". ")[0]
            raise ValueError(f"{name} cannot be opened here: {missing}; pip install torchvision") from None
        if pixels.video is not None and not hasattr(processor.image_processor, "merge_size"):
            raise ValueError(f"{name} ({config.model_type}) scales frames to fixed sizes; leave limits on pixels out")
        return cls(processor, config, name, pixels)

    @property
    def takes_video(self) -> bool:
        return getattr(self.config, "video_token_id", None) is not None

    def prompt(self, pictures: Pictures, question: str, video: Sequence[Image.Image] = ()) -> Prompt:
        """As `Chat.prompt`, with the processor's BatchFeature as `inputs`."""
        shown = as_list(pictures)
        visuals: dict[str, Any] = {"images": shown} if shown else {}
        if video:
            self._check_video()
            visuals |= self._film(video)
        text = self._text(question, ["image"] * len(shown) + ["video"] * bool(video))
        inputs = self.processor(text=[text], return_tensors="pt", **visuals)
        ids, config = inputs["input_ids"], self.config
        placeholders = {config.image_token_id, *([config.video_token_id] if self.takes_video else [])}
        visual = sum(int((ids == placeholder).sum()) for placeholder in placeholders)
        return Prompt(inputs, ids.shape[1] - visual, visual)

    def _film(self, video: Sequence[Image.Image]) -> dict[str, Any]:
        """What the processor takes for a video. Models that read times get them if `video` is a Clip."""
        frames, limits = np.stack([np.asarray(frame) for frame in video]), self.pixels.video
        film: dict[str, Any] = {"do_sample_frames": False}
        if limits is not None:
            frames, film["videos_kwargs"] = scaled(frames, limits, self.processor.image_processor), {"do_resize": False}
        if isinstance(video, Clip):
            film["video_metadata"] = [describe_clip(video.indices, video.total, video.fps)]
        return {**film, "videos": [frames]}

    def _check_video(self) -> None:
        if not self.takes_video:
            raise ValueError(f"{self.name} ({self.config.model_type}) reads no video; ask about single frames")
        if getattr(self.processor, "video_processor", None) is None:
            raise ValueError(f"the processor of {self.name} came without its video half: pip install torchvision")

    def _text(self, question: str, visuals: Sequence[str]) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            if self.config.model_type != "llava":
                raise ValueError(f"{self.name} has no chat template (chat_template.jinja): add the one of its family")
            return LLAVA_PROMPT.format(images="<image>\n" * len(visuals), question=question)
        content = [*({"type": kind} for kind in visuals), {"type": "text", "text": question}]
        return str(
            self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        )


class ProcessedChat(Chat):
    """Any family that `vlm_pruner.prune` supports, as transformers loads it."""

    def __init__(self, model: Any, processor: Any, name: str, pixels: PixelLimits = NO_LIMITS) -> None:
        super().__init__(model, name)
        self.processor, self.pixels = processor, pixels

    @classmethod
    def open(
        cls, folder: Path, name: str, *, dtype: Any, device: str, pixels: PixelLimits = NO_LIMITS
    ) -> ProcessedChat:
        processor = Prompts.open(folder, name, pixels).processor  # before the weights, which take longer
        model: Any = load_model(folder, dtype=dtype)
        return cls(model.to(device), processor, name, pixels)

    @property
    def _prompts(self) -> Prompts:
        return Prompts(self.processor, self.model.config, self.name, self.pixels)

    @property
    def takes_video(self) -> bool:
        return self._prompts.takes_video

    def prompt(self, pictures: Pictures, question: str, video: Sequence[Image.Image] = ()) -> Prompt:
        prompt = self._prompts.prompt(pictures, question, video)
        made: Any = prompt.inputs
        inputs = dict(made.to(self.model.device, self.model.dtype))
        return Prompt(inputs, prompt.text_tokens, prompt.visual_tokens)

    def decode(self, ids: list[int]) -> str:
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))
