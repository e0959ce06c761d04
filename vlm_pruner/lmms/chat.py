"""Families that transformers loads with a processor and a chat template: Qwen's, and every other supported one.

Takes one or several images, and videos, each as the document supplies it, without re-encoding; the checkpoint's own
template builds the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from lmms_eval.protocol import ChatMessages
from PIL import Image
from transformers import AutoConfig

from vlm_pruner.asking.frame_processor import scaled
from vlm_pruner.asking.processors import load_processor
from vlm_pruner.asking.smaller import Shrinker
from vlm_pruner.asking.weights import load_model
from vlm_pruner.decoder.pruning import prune
from vlm_pruner.frames import read_film
from vlm_pruner.geometry.frame_sizes import VideoLimits
from vlm_pruner.images import to_rgb
from vlm_pruner.llava.eval.batch import kept_per_row
from vlm_pruner.llava.eval.checkpoint import DTYPES
from vlm_pruner.llava.sights import BLIND
from vlm_pruner.lmms.arguments import ArgumentError, ChatArguments, Qwen3Arguments
from vlm_pruner.lmms.decoding import Decoding
from vlm_pruner.lmms.documents import Document
from vlm_pruner.lmms.ledger import count_visuals
from vlm_pruner.lmms.model import PrunedModel, Reply

Messages = list[dict[str, Any]]


class ChatModel(PrunedModel):
    """`vlm_pruner_hf`: any supported family whose checkpoint has a chat template."""

    is_simple = False
    arguments_class = ChatArguments
    arguments: ChatArguments
    families: ClassVar[tuple[str, ...]] = ()  # model types; () means all
    even_frames: ClassVar[bool] = False  # take an even number of a video's frames, as qwen-vl-utils does

    def load(self) -> None:
        own = self.arguments
        self._shown = FramesShown()
        self._check_family(AutoConfig.from_pretrained(own.pretrained).model_type)
        self.processor = load_processor(own.pretrained, own.min_pixels, own.max_pixels)
        self.processor.tokenizer.padding_side = "left"
        self._limits = self._video_limits()
        self._blind = self.sight is not None and self.sight.name == BLIND
        self._shrink = None if self.sight is None or self._blind else Shrinker(self.processor, self.sight)
        if not self.processor.chat_template:
            raise ArgumentError(f"{own.pretrained} has no chat template (chat_template.jinja): add its family's own")
        self._model = load_model(
            own.pretrained, dtype=self._dtype(), attn_implementation=own.attn_implementation,
            device_map=own.device_map or ({"": str(self.device)} if self.device.type != "cpu" else None),
        )  # fmt: skip

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @torch.inference_mode()
    def answer(self, documents: Sequence[Document], decoding: Decoding) -> list[Reply]:
        prompts = [self._sighted(self.messages(document)) for document in documents]
        visuals = [count_visuals(prompt) for prompt in prompts]
        inputs = self._inputs(prompts)
        pad = self.tokenizer.eos_token_id if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id
        running = nullcontext() if self.method is None or not any(visuals) else prune(self.model, self.method)
        with running as pruning:
            ids = self.model.generate(**inputs, **decoding.options(), use_cache=True, pad_token_id=pad)
        new = ids[:, inputs["input_ids"].shape[1] :]
        kept = [()] * len(prompts) if pruning is None else kept_per_row(pruning.receipts[0], len(prompts))
        lengths = inputs["attention_mask"].sum(1).tolist()
        return [self._reply(*row) for row in zip(new, lengths, visuals, kept, strict=True)]

    def _sighted(self, messages: Messages) -> Messages:
        """The conversation with its pictures whole, made smaller, or left out."""
        if self._blind:
            visual = ("image", "video")
            return [{**m, "content": [part for part in m["content"] if part["type"] not in visual]} for m in messages]
        for part in (part for message in messages for part in message["content"] if self._shrink is not None):
            if part["type"] == "video" or (part["type"] == "image" and not isinstance(part["image"], Image.Image)):
                raise TypeError(f"method=resize shrinks pictures, and a document shows a {part['type']} by its path")
            if part["type"] == "image" and self._shrink is not None:
                part["image"] = self._shrink(part["image"])
        return messages

    def messages(self, document: Document) -> Messages:
        """The document's conversation in transformers' form."""
        own: Messages = ChatMessages(messages=document.look()).to_hf_messages()
        for message in own:
            for part in message["content"]:
                if part["type"] == "audio":
                    raise TypeError(f"{document.name} has sound; {type(self).__name__} takes images and videos only")
                if part["type"] == "image" and isinstance(part["image"], Image.Image):
                    part["image"] = to_rgb(part["image"])
        return self._with_system(own)

    def _with_system(self, messages: Messages) -> Messages:
        prompt = self.arguments.system_prompt
        if prompt is None or messages[0]["role"] == "system":
            return messages
        return [{"role": "system", "content": [{"type": "text", "text": prompt}]}, *messages]

    def _video_limits(self) -> VideoLimits | None:
        """Limits on frames, for families that scale them by pixels; None: the checkpoint's own."""
        limits, images = self.arguments.pixels.video, self.processor.image_processor
        if limits is not None and not hasattr(images, "merge_size"):
            raise ArgumentError(
                f"{type(images).__name__} scales frames to fixed sizes, not to a number of pixels; leave "
                "video_min_pixels, video_max_pixels and total_pixels out"
            )
        return limits

    def inputs(self) -> dict[str, Any]:
        """The settings, with the checkpoint's limits if none were given, and the frames that were shown."""
        given, size = super().inputs(), getattr(self.processor.image_processor, "size", {})
        for name, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if given[name] is None and hasattr(self.processor.image_processor, "merge_size"):
                given[name] = size[edge]
        return {**given, **self._shown.summary()}

    def _inputs(self, prompts: Sequence[Messages]) -> Any:
        films = self._read_films(prompts)
        video: dict[str, Any] = {"video_metadata": films, "do_sample_frames": False} if films else {}
        if films and self._limits is not None:
            video["videos_kwargs"] = {"do_resize": False}
        inputs = self.processor.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt", **video},
        )  # fmt: skip
        if films and "video_grid_thw" in inputs:
            self._shown.add(films, inputs["video_grid_thw"], self.processor.video_processor)
        return inputs.to(self.model.device, self.model.dtype)

    def _read_films(self, prompts: Sequence[Messages]) -> list[Any]:
        """Replaces videos' paths by frames, scaled if limits are given. Returns the frames' positions, in order."""
        own, found = self.arguments, []
        if getattr(self.processor, "video_processor", True) is None and any(map(_has_video, prompts)):
            raise ArgumentError(f"{own.pretrained} reads videos through torchvision: pip install torchvision")
        for part in (part for prompt in prompts for message in prompt for part in message["content"]):
            if part["type"] == "video" and isinstance(part["video"], str):
                frames, metadata = read_film(part["video"], own.max_num_frames, own.fps, self.even_frames)
                limits = self._limits
                part["video"] = frames if limits is None else scaled(frames, limits, self.processor.image_processor)
                found.append(metadata)
        return found

    def _reply(self, ids: Any, length: int, visuals: int, kept: Sequence[Any]) -> Reply:
        ends = self.model.generation_config.eos_token_id
        numbers = ids.tolist()
        stops = [numbers.index(end) + 1 for end in (ends if isinstance(ends, list) else [ends]) if end in numbers]
        new = min(stops, default=len(numbers))
        return Reply(self.tokenizer.decode(numbers[:new], skip_special_tokens=True), length, new, visuals, kept)

    def _dtype(self) -> torch.dtype:
        if self.arguments.dtype != "auto":
            return DTYPES[self.arguments.dtype]
        on_cpu = self.device.type == "cpu" and self.arguments.device_map is None
        return torch.float32 if on_cpu else torch.bfloat16

    def _check_family(self, found: str) -> None:
        if self.families and found not in self.families:
            raise ArgumentError(
                f"{self.arguments.pretrained} is a {found}, and this model takes {' and '.join(self.families)}; "
                "--model vlm_pruner_hf takes every supported family, vlm_pruner_llava LLaVA-1.5 and 1.6"
            )


class ChatModelSimple(ChatModel):
    """The same for plain prompts (`--force_simple`): all images and videos, then the text."""

    is_simple = True

    def messages(self, document: Document) -> Messages:
        parts = [_part(document, visual) for visual in document.look() or ()]
        text = document.context.replace("<image>", "").replace("<video>", "")
        content = [*parts, {"type": "text", "text": text}]
        return self._with_system([{"role": "user", "content": content}])


@dataclass
class FramesShown:
    """Counts the frames that were shown: sums over the videos of a run."""

    videos: int = 0
    frames: int = 0
    pixels: float = 0.0  # per frame

    def add(self, films: Sequence[Any], grids: Any, processor: Any) -> None:
        """grids: (time, height, width) of each film in patches."""
        side = int(processor.patch_size)
        for film, (_, height, width) in zip(films, grids.tolist(), strict=True):
            self.videos += 1
            self.frames += len(film.frames_indices)
            self.pixels += height * width * side**2

    def summary(self) -> dict[str, float]:
        """Averages; empty without videos."""
        if not self.videos:
            return {}
        return {"video_frames": self.frames / self.videos, "pixels_per_frame": self.pixels / self.videos}


def _has_video(prompt: Messages) -> bool:
    return any(part["type"] == "video" for message in prompt for part in message["content"])


def _part(document: Document, visual: Any) -> dict[str, Any]:
    if isinstance(visual, Image.Image):
        return {"type": "image", "image": to_rgb(visual)}
    if isinstance(visual, str):
        return {"type": "video", "video": visual}
    raise TypeError(f"{document.name} shows a {type(visual).__name__}; images and paths of videos are known")


class Qwen2VL(ChatModel):
    families = ("qwen2_vl",)


class Qwen2VLSimple(ChatModelSimple):
    families = Qwen2VL.families


class Qwen25VL(ChatModel):
    families = ("qwen2_5_vl",)


class Qwen25VLSimple(ChatModelSimple):
    families = Qwen25VL.families


class Qwen3VL(ChatModel):
    families = ("qwen3_vl", "qwen3_vl_moe")
    arguments_class = Qwen3Arguments
    even_frames = True


class Qwen3VLSimple(ChatModelSimple):
    families = Qwen3VL.families
    arguments_class = Qwen3Arguments
    even_frames = True
