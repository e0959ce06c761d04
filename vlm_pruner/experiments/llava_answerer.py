"""A LLaVA checkpoint that answers batches of questions, with its costs measured on the way.

What does not depend on the method (reading the picture, vision tower, projector, tokenising) is done once per batch and
is timed apart; an answer's `seconds` are generation alone, the same call for every method.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from vlm_pruner import adapters, prune
from vlm_pruner.asking.answer import cache_bytes
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.towers import TowerOutput, TowerTap
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.arms import ModelFacts
from vlm_pruner.experiments.questions import Question
from vlm_pruner.images import read_image
from vlm_pruner.llava.eval.checkpoint import Checkpoint
from vlm_pruner.llava.mm_utils import expand2square, process_images
from vlm_pruner.llava.model.builder import load_pretrained_model
from vlm_pruner.llava.model.multimodal_prompt import MultimodalPrompt, prepare_prompt
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt

MAX_NEW_TOKENS = 16


@dataclass(frozen=True)
class Reply:
    """One answer and what it cost.

    seconds, kv_bytes: the batch's generation time and cache, divided by the batch's size. kept: visual tokens from the
    pruned layer on. receipt: None for the dense model.
    """

    text: str
    seconds: float
    kv_bytes: int
    kept: int
    receipt: ImageReceipt | None = None


@dataclass(frozen=True)
class _Prepared:
    """A batch as the decoder reads it, and what the vision tower saw of it, for the methods that ask."""

    question_ids: tuple[int, ...]
    images: tuple[Path, ...]
    prompt: MultimodalPrompt
    seen: list[TowerOutput]

    def is_of(self, batch: Sequence[Question]) -> bool:
        return self.question_ids == tuple(q.question_id for q in batch) and self.images == tuple(q.image for q in batch)


class LlavaAnswerer:
    """Asks questions of one picture each. `vision_seconds` and `pictures` add up the time spent before generation."""

    def __init__(self, tokenizer: Any, model: Any, image_processor: Any, max_new_tokens: int = MAX_NEW_TOKENS) -> None:
        self.checkpoint = Checkpoint("", tokenizer, model, image_processor)
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.vision_seconds = 0.0
        self.pictures = 0
        self._prepared: _Prepared | None = None

    @classmethod
    def load(cls, checkpoint: Path, device: str, max_new_tokens: int = MAX_NEW_TOKENS) -> LlavaAnswerer:
        """Raises llava's CheckpointError (a ValueError) for everything that is wrong with the files."""
        tokenizer, model, image_processor, _ = load_pretrained_model(checkpoint, device=device)
        return cls(tokenizer, model, image_processor, max_new_tokens)

    @property
    def side(self) -> int:
        """Visual tokens along one side of a picture."""
        return int(self.model.get_vision_tower().num_patches_per_side)

    def batches(self, questions: Iterable[Question], size: int) -> list[list[Question]]:
        """Batches of at most `size` prompts of equal length, so that nothing is padded."""
        groups: dict[int, list[Question]] = {}
        for question in questions:
            groups.setdefault(len(self._ids(question)), []).append(question)
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def answer(self, batch: Sequence[Question], method: Pruner | None) -> list[Reply]:
        """Greedy answers to a batch of equally long prompts. Raises PruningError for a method that does not fit."""
        prepared = self._prepare(batch)
        prompt = prepared.prompt
        cache = DynamicCache(config=self.model.config)
        with nullcontext() if method is None else prune(self.model, method) as pruning:
            if pruning is not None:
                pruning.provide(prepared.seen)
            started = self._now()
            ids = self.model.generate(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=prompt.attention_mask,
                visual_spans=prompt.visual_spans,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                **cache_argument(cache),
            )
            seconds = (self._now() - started) / len(batch)
        receipts = {} if pruning is None else {image.row: image for image in pruning.receipts[-1].images}
        texts = self.checkpoint.tokenizer.batch_decode(ids, skip_special_tokens=True)
        kv_bytes = cache_bytes(cache) // len(batch)
        replies = []
        for row, text in enumerate(texts):
            receipt = receipts.get(row)
            kept = receipt.n_after if receipt else sum(span.length for span in prompt.visual_spans[row])
            replies.append(Reply(text.strip(), seconds, kv_bytes, kept, receipt))
        return replies

    def picture(self, question: Question) -> Image.Image:
        """The picture as the vision tower's grid covers it."""
        picture = read_image(question.image)
        padded = getattr(self.model.config, "image_aspect_ratio", None) == "pad"
        return expand2square(picture, (122, 116, 104)) if padded else picture

    def _prepare(self, batch: Sequence[Question]) -> _Prepared:
        """The batch's prompts as embeddings; kept until another batch is asked."""
        if self._prepared is None or not self._prepared.is_of(batch):
            ids = torch.tensor([self._ids(question) for question in batch], device=self.model.device)
            pictures = {path: read_image(path) for path in dict.fromkeys(question.image for question in batch)}
            started = self._now()
            pixels = process_images(list(pictures.values()), self.checkpoint.image_processor, self.model.config)
            by_path = dict(zip(pictures, pixels, strict=True))  # one tensor per picture, so that it is encoded once
            prompt, seen = self._encode(ids, [by_path[question.image] for question in batch])
            self.vision_seconds += self._now() - started
            self.pictures += len(pictures)
            question_ids, images = tuple(q.question_id for q in batch), tuple(q.image for q in batch)
            self._prepared = _Prepared(question_ids, images, prompt, seen)
        return self._prepared

    @torch.no_grad()
    def _encode(self, ids: torch.Tensor, pixels: Any) -> tuple[MultimodalPrompt, list[TowerOutput]]:
        """The prompts, and what the tower saw: nothing of a tower that has no class token."""
        try:
            tap = TowerTap(adapters.find(self.model).tower())
        except PruningError:
            return prepare_prompt(self.model.get_model(), ids, None, pixels, padding_side="left"), []
        removers = tap.hooks()
        try:
            return prepare_prompt(self.model.get_model(), ids, None, pixels, padding_side="left"), tap.pictures
        finally:
            for remove in removers:
                remove()

    def facts(self, questions: Iterable[Question]) -> ModelFacts:
        """What budgets are solved and costs are counted with; the text's length is the median of the questions'.

        Raises ValueError for a model whose pictures differ in tokens.
        """
        if str(getattr(self.model.config, "image_aspect_ratio", "")).startswith("anyres"):
            raise ValueError("this checkpoint's pictures differ in tokens (AnyRes); give one with a fixed grid")
        text = int(median(len(self._ids(question)) - 1 for question in questions))
        return ModelFacts(self.side**2, DecoderShape.of(self.model.config), text, self.model.dtype.itemsize)

    def _ids(self, question: Question) -> list[int]:
        return self.checkpoint.ids(self.checkpoint.prompt(question.text, 1, self.checkpoint.conversation)).tolist()

    def _now(self) -> float:
        """Seconds; on a GPU when everything that was asked for is done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()
