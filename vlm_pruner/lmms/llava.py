"""LLaVA-1.5 and 1.6, LLaVA-Video and LLaVA-OneVision for lmms-eval, from LLaVA's own checkpoints.

Loading, prompts and pictures are those of `llava.eval`, so that a question gives the same answer through either door.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vlm_pruner.llava.constants import DEFAULT_IMAGE_TOKEN
from vlm_pruner.llava.eval.batch import Prepared
from vlm_pruner.llava.eval.checkpoint import load_checkpoint
from vlm_pruner.llava.eval.engine import LlavaEngine
from vlm_pruner.llava.eval.films import VIDEO_FLAGS, Film, read_film
from vlm_pruner.llava.eval.questions import Question
from vlm_pruner.lmms.arguments import ArgumentError, LlavaArguments, LlavaOnevisionArguments, LlavaVideoArguments
from vlm_pruner.lmms.decoding import Decoding
from vlm_pruner.lmms.documents import Document
from vlm_pruner.lmms.model import PrunedModel, Reply


class _Engine(LlavaEngine):
    """Tasks may place the images of a question themselves."""

    def _prompt(self, question: Question) -> str:
        if DEFAULT_IMAGE_TOKEN not in question.asked:
            return super()._prompt(question)
        placed = Question(question.index, question.question_id, question.asked, question.prompt)
        return super()._prompt(placed)


class _QwenEngine(_Engine):
    """Marks of several pictures stand on one line, with spaces between them, as lmms-eval writes them."""

    def _prompt(self, question: Question) -> str:
        items = len(question.images) + len(question.videos)
        if items and DEFAULT_IMAGE_TOKEN not in question.asked:
            marks = " ".join([DEFAULT_IMAGE_TOKEN] * items)
            question = replace(question, asked=f"{marks}\n{question.asked}")
        return super()._prompt(question)

    def _film(self, video: str | Path) -> Film:
        """A folder of frames gives as many as a long video, as in lmms-eval's MVBench."""
        settings = replace(self.videos, force_sample=True) if Path(video).is_dir() else self.videos
        return read_film(Path(video), settings)


class Llava(PrunedModel):
    """`vlm_pruner_llava`: plain prompts, images before the question unless the task places them."""

    is_simple = True
    arguments_class = LlavaArguments
    default_length = 1024  # as lmms-eval's own LLaVA
    arguments: LlavaArguments

    engine_class: ClassVar[type[LlavaEngine]] = _Engine

    def load(self) -> None:
        decoding = Decoding(self.default_length)
        self._checkpoint = load_checkpoint(self._flags(decoding))
        self._model = self._checkpoint.model
        self._engine(decoding)  # raises for settings that do not fit the model, before the first document

    def _engine(self, decoding: Decoding) -> LlavaEngine:
        return self.engine_class(self._checkpoint, self.method, self._flags(decoding), self.sight)

    def answer(self, documents: Sequence[Document], decoding: Decoding) -> list[Reply]:
        if decoding.repetition_penalty is not None or decoding.top_k is not None:
            raise ArgumentError("repetition_penalty and top_k are not known to LLaVA's generation; leave them out")
        engine = self._engine(decoding)
        items = [engine.prepare(self._question(document)) for document in documents]
        ids, kept = engine.generate_pruned(items)
        visual = [engine.visual_tokens(item) for item in items]
        return [self._reply(*row) for row in zip(items, ids, kept, visual, strict=True)]

    def _reply(self, item: Prepared, ids: Any, kept: Sequence[Any], visual: int) -> Reply:
        tokenizer = self._checkpoint.tokenizer
        return Reply(
            text=tokenizer.decode(ids, skip_special_tokens=True),
            input_tokens=len(item.input_ids) - len(item.pixels) + visual,
            output_tokens=count_new(ids.tolist(), tokenizer.eos_token_id),
            visuals=len(item.pixels),
            kept=kept,
        )

    def _question(self, document: Document) -> Question:
        images = tuple(document.look() or ())
        for image in images:
            if not isinstance(image, Image.Image):
                raise TypeError(f"{document.name} shows a {type(image).__name__}; LLaVA takes pictures only")
        marks = document.context.count(DEFAULT_IMAGE_TOKEN)
        if marks not in (0, len(images)):
            raise ValueError(f"{document.name} places {marks} images in its text, but has {len(images)}")
        return Question(document.position, document.doc_id, document.context, document.context, images)

    def _flags(self, decoding: Decoding) -> Namespace:
        """The settings as the flags of `llava.eval`'s generators."""
        own = self.arguments
        return Namespace(
            model_path=own.pretrained, model_base=None, conv_mode=own.conv_template, dtype=own.dtype,
            attn_implementation=own.attn_implementation, device_map=own.device_map,
            device=None if own.device_map else str(self.device), compat=own.compat, image_folder="",
            batch_size=own.batch_size, seed=own.seed, temperature=decoding.temperature, top_p=decoding.top_p,
            num_beams=decoding.num_beams, max_new_tokens=decoding.max_new_tokens,
            image_token_length=None, image_token_start_index=None,
        )  # fmt: skip


class LlavaOnevision(Llava):
    """`vlm_pruner_llava_onevision`: pictures, several of them padded to squares, and videos."""

    arguments_class = LlavaOnevisionArguments
    engine_class = _QwenEngine
    arguments: LlavaOnevisionArguments

    def load(self) -> None:
        super().load()
        if not self.config.takes_videos:
            raise ArgumentError(
                f"{self.arguments.pretrained} is a {self.config.model_type}; this model takes LLaVA on Qwen2, "
                "--model vlm_pruner_llava LLaVA-1.5 and 1.6"
            )

    def _question(self, document: Document) -> Question:
        shown = list(document.look() or ())
        videos = tuple(Path(one) for one in shown if isinstance(one, str))
        if not videos:
            return super()._question(document)
        if len(videos) < len(shown):
            raise TypeError(f"{document.name} shows videos and other things together, which no task of lmms-eval does")
        return Question(document.position, document.doc_id, document.context, document.context, videos=videos)

    def _flags(self, decoding: Decoding) -> Namespace:
        own = vars(self.arguments)
        video = {"force_sample": True, **{name: own[name] for name in VIDEO_FLAGS if name in own}}
        return Namespace(**vars(super()._flags(decoding)), **video)


class LlavaVideo(LlavaOnevision):
    """`vlm_pruner_llava_vid`: LLaVA-Video."""

    arguments_class = LlavaVideoArguments
    arguments: LlavaVideoArguments


def count_new(ids: Sequence[int], end: int | None) -> int:
    """Generated tokens, the one that ends the answer included; what follows it in a batch is padding."""
    return ids.index(end) + 1 if end in ids else len(ids)
