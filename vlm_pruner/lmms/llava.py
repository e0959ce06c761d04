"""LLaVA-1.5 and 1.6 for lmms-eval, from checkpoints in the original layout or in transformers'.

Loading, prompts and pictures are those of `llava.eval`, so that a question gives the same answer through either door.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.eval.batch import Prepared, check_receipt, kept_per_row
from llava.eval.checkpoint import load_checkpoint
from llava.eval.engine import LlavaEngine
from llava.eval.questions import Question
from vlm_pruner.lmms.arguments import ArgumentError, LlavaArguments
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


class Llava(PrunedModel):
    """`vlm_pruner_llava`: plain prompts, images before the question unless the task places them."""

    is_simple = True
    arguments_class = LlavaArguments
    default_length = 1024  # as lmms-eval's own LLaVA
    arguments: LlavaArguments

    def load(self) -> None:
        self._checkpoint = load_checkpoint(self._flags(Decoding(self.default_length)))
        self._model = self._checkpoint.model

    @property
    def config(self) -> Any:
        return self.model.config

    def answer(self, documents: Sequence[Document], decoding: Decoding) -> list[Reply]:
        if decoding.repetition_penalty is not None or decoding.top_k is not None:
            raise ArgumentError("repetition_penalty and top_k are not known to LLaVA's generation; leave them out")
        engine = _Engine(self._checkpoint, self.method, self._flags(decoding))
        items = [engine.prepare(self._question(document)) for document in documents]
        with self.pruned(sum(len(item.pixels) for item in items)) as pruning:
            ids = engine.generate_ids(items)
        kept: list[Any] = [()] * len(items)
        if pruning is not None:
            kept = kept_per_row(pruning.receipts[0], len(items))
            check_receipt(pruning.receipts[0], items, kept)
        return [self._reply(*row) for row in zip(items, ids, kept, strict=True)]

    def _reply(self, item: Prepared, ids: Any, kept: Sequence[Any]) -> Reply:
        tokenizer = self._checkpoint.tokenizer
        visual = sum(self._checkpoint.tokens_in(*pair) for pair in zip(item.pixels, item.sizes, strict=True))
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
        """What `llava.eval`'s generators know as their command line."""
        own = self.arguments
        return Namespace(
            model_path=own.pretrained, model_base=None, conv_mode=own.conv_template, dtype=own.dtype,
            attn_implementation=own.attn_implementation, device_map=own.device_map,
            device=None if own.device_map else str(self.device), compat=own.compat, image_folder="",
            batch_size=own.batch_size, seed=own.seed, temperature=decoding.temperature, top_p=decoding.top_p,
            num_beams=decoding.num_beams, max_new_tokens=decoding.max_new_tokens,
            image_token_length=None, image_token_start_index=None,
        )  # fmt: skip


def count_new(ids: Sequence[int], end: int | None) -> int:
    """Generated tokens, the one that ends the answer included; what follows it in a batch is padding."""
    return ids.index(end) + 1 if end in ids else len(ids)
