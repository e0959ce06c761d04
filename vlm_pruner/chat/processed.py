"""Checkpoints in transformers' layout, with the processor and the chat template that come with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlm_pruner.chat.base import Chat, Prompt

LLAVA_PROMPT = "USER: <image>\n{question} ASSISTANT:"  # of LLaVA-1.5, whose older checkpoints bring no template


class ProcessedChat(Chat):
    """Any family that `vlm_pruner.prune` supports, as transformers loads it."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        super().__init__(model, name)
        self.processor = processor

    @classmethod
    def open(cls, folder: Path, name: str, *, dtype: Any, device: str) -> ProcessedChat:
        AutoConfig.from_pretrained(folder)  # a folder of something else is told before anything is loaded
        processor = AutoProcessor.from_pretrained(folder)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        return cls(model.to(device).eval(), processor, name)

    def prompt(self, picture: Image.Image, question: str) -> Prompt:
        text = self._text(question)
        inputs = self.processor(images=[picture], text=[text], return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        ids = inputs["input_ids"]
        visual = int((ids == self.model.config.image_token_id).sum())
        return Prompt(dict(inputs), ids.shape[1] - visual, visual)

    def _text(self, question: str) -> str:
        if getattr(self.processor, "chat_template", None) is None:
            if self.model.config.model_type != "llava":
                raise ValueError(f"{self.name} has no chat template (chat_template.jinja): add the one of its family")
            return LLAVA_PROMPT.format(question=question)
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return str(
            self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        )

    def decode(self, ids: list[int]) -> str:
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=True))
