"""Checkpoints in LLaVA's original layout, with LLaVA's own prompts and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vlm_pruner.asking.chat import Chat, Pictures, Prompt, as_list
from vlm_pruner.llava.eval.checkpoint import Checkpoint
from vlm_pruner.llava.mm_utils import process_images
from vlm_pruner.llava.model.builder import load_pretrained_model

CONVERSATION = "vicuna_v1"


class OriginalChat(Chat):
    """`LlavaLlamaForCausalLM` of this repository. Pictures come before the question."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint.model, checkpoint.model_id)
        self.checkpoint = checkpoint

    @classmethod
    def open(cls, folder: Path, name: str, **options: Any) -> OriginalChat:
        tokenizer, model, image_processor, _ = load_pretrained_model(folder, **options)
        return cls(Checkpoint(name, tokenizer, model, image_processor))

    def prompt(self, pictures: Pictures, question: str, video: Sequence[Image.Image] = ()) -> Prompt:
        if video:
            raise ValueError(f"{self.name} is a LLaVA model for pictures and reads no video; ask about single frames")
        model, shown = self.model, as_list(pictures)
        asked = self.checkpoint.prompt(_without_placeholder(question), len(shown), CONVERSATION)
        ids = self.checkpoint.ids(asked)
        pixels = process_images(shown, self.checkpoint.image_processor, model.config)
        inputs = {
            "inputs": ids[None].to(model.device),
            "images": pixels.to(model.device, model.dtype) if hasattr(pixels, "to") else pixels,
            "image_sizes": [picture.size for picture in shown],
        }
        visual = sum(self.checkpoint.tokens_of(picture.size) for picture in shown)
        return Prompt(inputs, len(ids) - len(shown), visual)

    def visual_tokens(self, picture: Image.Image) -> int:
        return self.checkpoint.tokens_of(picture.size)

    def decode(self, ids: list[int]) -> str:
        return str(self.checkpoint.tokenizer.decode(ids, skip_special_tokens=True))


def _without_placeholder(question: str) -> str:
    """Breaks up a placeholder in the question, which would count as another picture."""
    return question.replace("<image>", "< image >")
