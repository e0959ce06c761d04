"""A LLaVA checkpoint that answers batches of questions, with its costs measured on the way.

What does not depend on the method (reading the picture, vision tower, projector, tokenising) is done once per batch and
is timed apart; an answer's `seconds` are generation alone, the same call for every method.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from transformers import DynamicCache

from vlm_pruner import adapters, prune
from vlm_pruner.asking.answer import cache_bytes, joint_probabilities
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.towers import TowerOutput, TowerTap
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.answerer import ANSWER_TOKENS, Answerer, Reply
from vlm_pruner.experiments.arms import NO_PICTURE, ModelFacts
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.replay import Replay
from vlm_pruner.images import read_image
from vlm_pruner.llava.eval.batch import Prepared
from vlm_pruner.llava.eval.checkpoint import Checkpoint
from vlm_pruner.llava.mm_utils import expand2square
from vlm_pruner.llava.model.builder import load_pretrained_model
from vlm_pruner.llava.model.multimodal_prompt import MultimodalPrompt, prepare_prompt
from vlm_pruner.llava.sights import Grid, Sight
from vlm_pruner.methods import Pruner


@dataclass(frozen=True)
class _Prepared:
    """A batch as the decoder reads it, and what the vision tower saw of it, for the methods that ask."""

    question_ids: tuple[int, ...]
    images: tuple[Path, ...]
    prompt: MultimodalPrompt
    seen: list[TowerOutput]
    seconds: float  # of the tower and the projector

    def is_of(self, batch: Sequence[Question]) -> bool:
        return self.question_ids == tuple(q.question_id for q in batch) and self.images == tuple(q.image for q in batch)


class LlavaAnswerer(Answerer):
    """A LLaVA in the original layout whose pictures all have one grid."""

    def __init__(self, tokenizer: Any, model: Any, image_processor: Any, max_new_tokens: int = ANSWER_TOKENS) -> None:
        self.checkpoint = Checkpoint("", tokenizer, model, image_processor)
        self.model = model
        self.max_new_tokens = max_new_tokens
        self._prepared: dict[Grid | None, _Prepared] = {}  # of one batch, by the grid of its pictures

    @classmethod
    def load(cls, checkpoint: Path, device: str, max_new_tokens: int = ANSWER_TOKENS) -> LlavaAnswerer:
        """Raises llava's CheckpointError (a ValueError) for everything that is wrong with the files."""
        tokenizer, model, image_processor, _ = load_pretrained_model(checkpoint, device=device)
        return cls(tokenizer, model, image_processor, max_new_tokens)

    @property
    def side(self) -> int:
        """Visual tokens along one side of a picture."""
        return int(self.model.get_vision_tower().num_patches_per_side)

    @property
    def where(self) -> dict[str, Any]:
        return {"grid": [self.side, self.side]}

    def replay(self, layers: int, prefixes: bool) -> AbstractContextManager[object]:
        return Replay(self.model.get_model(), layers, prefixes)

    def batches(self, questions: Iterable[Question], size: int, by_picture: bool = False) -> list[list[Question]]:
        """Batches of at most `size` prompts of equal length, with and without a picture, so that nothing is padded.

        by_picture: of prompts about as few pictures as possible instead, which `replay` computes once each.
        """
        if by_picture:
            pictures: dict[Path, list[Question]] = {}
            for question in questions:
                pictures.setdefault(question.image, []).append(question)
            ordered = [question for group in pictures.values() for question in group]
            return [ordered[i : i + size] for i in range(0, len(ordered), size)]
        groups: dict[tuple[int, int], list[Question]] = {}
        for question in questions:
            lengths = self._length(question), self._length(question, shown=False)
            groups.setdefault(lengths, []).append(question)
        return [group[i : i + size] for group in groups.values() for i in range(0, len(group), size)]

    def answer(
        self, batch: Sequence[Question], method: Pruner | None, shown: Grid | Sight | None = None,
        exactly: int | None = None,
    ) -> list[Reply]:  # fmt: skip
        assert not isinstance(shown, Sight), "pictures of this model have one size"
        prepared = self._prepare(batch, shown)
        prompt = prepared.prompt
        cache = DynamicCache(config=self.model.config)
        with nullcontext() if method is None else prune(self.model, method) as pruning:
            if pruning is not None:
                pruning.provide(prepared.seen)
            started = self._now()
            output = self.model.generate(
                inputs_embeds=prompt.inputs_embeds,
                attention_mask=prompt.attention_mask,
                visual_spans=prompt.visual_spans,
                max_new_tokens=exactly or self.max_new_tokens,
                min_new_tokens=exactly,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
                **cache_argument(cache),
            )
            seconds = (self._now() - started) / len(batch)
        receipts = {} if pruning is None else {image.row: image for image in pruning.receipts[-1].images}
        ids = output.sequences
        lengths, confidences = joint_probabilities(ids, output.logits, self.model.generation_config.eos_token_id)
        vision = prepared.seconds / len(batch)
        kv_bytes = cache_bytes(cache) // len(batch)
        replies = []
        for row, text in enumerate(self.checkpoint.decode(ids)):
            receipt = receipts.get(row)
            kept = receipt.n_after if receipt else sum(span.length for span in prompt.visual_spans[row])
            more = lengths[row], confidences[row], vision
            replies.append(Reply(text, seconds, kv_bytes, kept, receipt, *more))
        return replies

    def picture(self, question: Question) -> Image.Image:
        picture = read_image(question.image)
        padded = getattr(self.model.config, "image_aspect_ratio", None) == "pad"
        return expand2square(picture, (122, 116, 104)) if padded else picture

    def forget(self) -> None:
        self._prepared = {}

    def _prepare(self, batch: Sequence[Question], grid: Grid | None) -> _Prepared:
        """The batch's prompts as embeddings; kept until another batch is asked."""
        if not all(prepared.is_of(batch) for prepared in self._prepared.values()):
            self.forget()
        if grid not in self._prepared:
            question_ids, images = tuple(q.question_id for q in batch), tuple(q.image for q in batch)
            self._prepared[grid] = _Prepared(question_ids, images, *self._read(batch, grid))
        return self._prepared[grid]

    def _read(self, batch: Sequence[Question], grid: Grid | None) -> tuple[MultimodalPrompt, list[TowerOutput], float]:
        """The batch's prompts, what the tower saw, and the seconds that tower and projector took."""
        own = self.checkpoint
        if grid == NO_PICTURE:
            return self._without_tap([own.prepare(self._prompt(question, shown=False)) for question in batch]), [], 0.0
        pictures = {path: read_image(path) for path in dict.fromkeys(question.image for question in batch)}
        started = self._now()
        pixels = {path: own.pixels_of(picture, grid=grid) for path, picture in pictures.items()}
        processed = self._now()
        with own.at(grid):
            prompt, seen = self._encode(
                [own.prepare(self._prompt(q), [pixels[q.image]], [pictures[q.image].size]) for q in batch]
            )
        ended = self._now()
        if grid is None:
            self.vision_seconds += ended - started
            self.pictures += len(pictures)
        return prompt, seen, ended - processed

    @torch.no_grad()
    def _without_tap(self, batch: Sequence[Prepared]) -> MultimodalPrompt:
        given = self.checkpoint.arguments(batch)
        prompt = prepare_prompt(self.model.get_model(), given.pop("inputs"), **given, padding_side="left")
        return prompt if bool(prompt.attention_mask.all()) else prompt.padded_behind_pictures()

    @torch.no_grad()
    def _encode(self, batch: Sequence[Prepared]) -> tuple[MultimodalPrompt, list[TowerOutput]]:
        """The prompts, and what the tower saw: nothing of a tower that has no class token."""
        try:
            tap = TowerTap(adapters.find(self.model).tower())
        except PruningError:
            return self._without_tap(batch), []
        removers = tap.hooks()
        try:
            return self._without_tap(batch), tap.pictures
        finally:
            for remove in removers:
                remove()

    def facts(self, questions: Iterable[Question]) -> ModelFacts:
        """What budgets are solved and costs are counted with; the text's length is the median of the questions'.

        Raises ValueError for a model whose pictures differ in tokens.
        """
        if str(getattr(self.model.config, "image_aspect_ratio", "")).startswith("anyres"):
            raise ValueError("this checkpoint's pictures differ in tokens (AnyRes); give one with a fixed grid")
        text = int(median(self._length(question) - 1 for question in questions))
        return ModelFacts(self.side**2, DecoderShape.of(self.model.config), text, self.model.dtype.itemsize)

    def _prompt(self, question: Question, shown: bool = True) -> str:
        return self.checkpoint.prompt(question.text, int(shown), self.checkpoint.conversation)

    def _length(self, question: Question, shown: bool = True) -> int:
        """The prompt's number of ids, with one for the picture if it is shown."""
        return len(self.checkpoint.ids(self._prompt(question, shown)))

    def _now(self) -> float:
        """Seconds; on a GPU when everything that was asked for is done."""
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()
