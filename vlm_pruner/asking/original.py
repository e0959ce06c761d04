"""Checkpoints in LLaVA's original layout, with LLaVA's own prompts and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.asking.chat import Chat, Pictures, Prompt, as_list
from vlm_pruner.llava.eval.checkpoint import Checkpoint
from vlm_pruner.llava.model.builder import load_pretrained_model


class OriginalChat(Chat):
    """`LlavaLlamaForCausalLM` or `LlavaQwenForCausalLM` of this repository.

    Pictures come before the question, and a video, which only the latter reads, after the pictures.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model, checkpoint.model_id)
        self.checkpoint = checkpoint

    @classmethod
    def open(cls, folder: Path, name: str, **options: Any) -> OriginalChat:
        tokenizer, model, image_processor, _ = load_pretrained_model(folder, **options)
        return cls(Checkpoint(name, tokenizer, model, image_processor))

    @property
    def takes_video(self) -> bool:
        return bool(self.model.config.takes_videos)

    def prompt(self, pictures: Pictures, question: str, video: Sequence[Image.Image] = ()) -> Prompt:
        if video and not self.takes_video:
            raise ValueError(f"{self.name} is a LLaVA model for pictures and reads no video; ask about single frames")
        own, shown = self.checkpoint, as_list(pictures)
        pixels = [own.pixels_of(picture, alone=len(shown) == 1) for picture in shown]
        sizes: list[tuple[int, int] | None] = [picture.size for picture in shown]
        if video:
            pixels.append(own.pixels_of_film(list(video)))
            sizes.append(None)
        asked = own.prompt(_without_placeholder(question), len(pixels), own.conversation)
        item = own.prepare(asked, pixels, sizes)
        visual = sum(own.tokens_in(*pair) for pair in zip(pixels, sizes, strict=True))
        return Prompt(own.arguments([item]), len(item.input_ids) - len(pixels), visual)

    def visual_tokens(self, picture: Image.Image) -> int:
        return self.checkpoint.tokens_of(picture.size)

    def decode(self, ids: list[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(ids, skip_special_tokens=True))


def _without_placeholder(question: str) -> str:
    """Breaks up a placeholder in the question, which would count as another picture."""
    return question.replace("<image>", "< image >")
