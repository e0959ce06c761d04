"""The model behind the runner: a LLaVA checkpoint, dense or pruned, answering batches of prepared questions."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import vlm_pruner as vp
from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.checkpoint import Checkpoint, load_checkpoint
from llava.eval.errors import ItemError, UsageError
from llava.eval.images import open_image
from llava.eval.prompts import build_prompt
from llava.eval.questions import Question
from llava.eval.runner import Reply
from llava.mm_utils import process_images, tokenizer_image_token

if TYPE_CHECKING:
    from vlm_pruner.methods import Pruner
    from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Prepared:
    """One question as tensors.

    index: the question's place in its file. input_ids: [T] long, one id -200 per picture.
    pixels: [3, H, W] or [tiles, 3, H, W]; None for a text-only question.
    size: the picture's (width, height) in pixels. start: position of its first visual token.
    """

    index: int
    input_ids: Tensor
    pixels: Tensor | None
    size: tuple[int, int] | None
    start: int | None

    @property
    def shape(self) -> tuple[object, ...]:
        """Items of equal shape go through the model together."""
        return (len(self.input_ids), None if self.pixels is None else tuple(self.pixels.shape))


class LlavaEngine:
    """See :class:`llava.eval.runner.Engine`. Pruning is switched on around each ``generate`` call."""

    def __init__(self, checkpoint: Checkpoint, method: Pruner | None, args: argparse.Namespace) -> None:
        self.checkpoint = checkpoint
        self.model_id = checkpoint.model_id
        self.method = method
        self.args = args
        self.image_folder = Path(args.image_folder)
        self._check()

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, method: Pruner | None) -> LlavaEngine:
        return cls(load_checkpoint(args), method, args)

    def prepare(self, question: Question) -> Prepared:
        prompt = self._prompt(question)
        input_ids = tokenizer_image_token(prompt, self.checkpoint.tokenizer, IMAGE_TOKEN_INDEX, return_tensors="pt")
        self._check_length(input_ids)
        if question.image is None:
            return Prepared(question.index, input_ids, None, None, None)
        start = self._image_start(input_ids)
        picture = open_image(self.image_folder, question.image, as_released=self.args.compat == "released")
        pixels = process_images([picture], self.checkpoint.image_processor, self.checkpoint.model.config)[0]
        return Prepared(question.index, input_ids, pixels, picture.size, start)

    def generate(self, batch: Sequence[Prepared]) -> list[Reply]:
        """Items of equal length share a call; the replies are in the order of the batch."""
        replies: dict[int, Reply] = {}
        for positions in _groups(batch):
            group = self._generate_equal([batch[position] for position in positions])
            replies.update(zip(positions, group, strict=True))
        return [replies[position] for position in range(len(batch))]

    def _generate_equal(self, batch: Sequence[Prepared]) -> list[Reply]:
        with ExitStack() as stack:
            pruning = None
            if self.method is not None and batch[0].pixels is not None:
                pruning = stack.enter_context(vp.prune(self.checkpoint.model, self.method))
            try:
                texts = self._call(batch)
            except torch.OutOfMemoryError:
                raise UsageError(
                    f"out of memory with --batch-size {self.args.batch_size}: give a smaller one; what is answered is"
                    " safe, and the same command continues from there"
                ) from None
            receipts = list(pruning.receipts) if pruning is not None else []
        if pruning is None:
            return [Reply(text, {"method": "dense", "visual_tokens": self.checkpoint.visual_tokens}) for text in texts]
        kept = _per_row(receipts, len(batch))
        self._check_receipts(batch, kept)
        return [Reply(text, _metadata(images)) for text, images in zip(texts, kept, strict=True)]

    @torch.inference_mode()
    def _call(self, batch: Sequence[Prepared]) -> list[str]:
        model, tokenizer, args = self.checkpoint.model, self.checkpoint.tokenizer, self.args
        if args.temperature > 0:
            torch.manual_seed(args.seed + batch[0].index)  # batches of one: answers do not depend on resuming
        images = None
        if batch[0].pixels is not None:
            images = torch.stack([item.pixels for item in batch]).to(model.device, model.dtype)
        output = model.generate(
            torch.stack([item.input_ids for item in batch]).to(model.device),
            images=images,
            image_sizes=[item.size for item in batch] if images is not None else None,
            do_sample=args.temperature > 0,
            temperature=args.temperature if args.temperature > 0 else None,
            top_p=args.top_p if args.temperature > 0 else None,
            num_beams=args.num_beams,
            max_new_tokens=args.max_new_tokens,
            use_cache=True,
            pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        )
        return [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]

    def _prompt(self, question: Question) -> str:
        start_end = bool(getattr(self.checkpoint.model.config, "mm_use_im_start_end", False))
        return build_prompt(question.asked, self.args.conv_mode, question.image is not None, start_end)

    def _image_start(self, input_ids: Tensor) -> int:
        """Where the picture is, checked against ``--image_token_start_index``."""
        places = (input_ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
        if len(places) != 1:
            raise ItemError(f"the question holds {len(places) - 1} more <image> marks; a picture is asked about once")
        return int(places[0])

    def _check(self) -> None:
        """Flags against the model, before the first question is asked."""
        config, stated = self.checkpoint.model.config, self.args
        layers = int(config.num_hidden_layers)
        if self.method is not None and self.method.layer >= layers:
            raise UsageError(
                f"--pruned_layer {self.method.layer} is beyond the last layer: {self.model_id} has {layers} layers,"
                f" so 1 to {layers - 1} are possible"
            )
        found = self.checkpoint.visual_tokens
        if self.method is not None and found is not None:
            self.method.budget(found)  # raises for keep_tokens above the picture's tokens
        if stated.image_token_length is not None and found not in (None, stated.image_token_length):
            raise UsageError(
                f"--image_token_length {stated.image_token_length} was given, but {self.model_id} makes {found} visual"
                " tokens per picture; correct the flag or leave it out"
            )
        if stated.image_token_start_index is not None:
            self._check_start(stated.image_token_start_index)

    def _check_start(self, stated: int) -> None:
        """The picture stands before the question, so its place is the same for every question."""
        probe = self._prompt(Question(0, 0, asked="?", prompt="?", image="?"))
        found = self._image_start(tokenizer_image_token(probe, self.checkpoint.tokenizer, return_tensors="pt"))
        if found != stated:
            raise UsageError(
                f"--image_token_start_index {stated} was given, but with --conv-mode {self.args.conv_mode} the picture"
                f" starts at {found} for {self.model_id}; correct the flag or leave it out"
            )

    def _check_length(self, input_ids: Tensor) -> None:
        """Text and picture have to fit the model's positions."""
        config = self.checkpoint.model.config
        limits = (config.max_position_embeddings, getattr(config, "tokenizer_model_max_length", None))
        limit = min(int(limit) for limit in limits if limit is not None)
        length = len(input_ids) - 1 + (self.checkpoint.visual_tokens or 0)
        if length > limit:
            raise ItemError(f"the prompt has {length} tokens with its picture, the model reads {limit} at most")

    def _check_receipts(self, batch: Sequence[Prepared], kept: Sequence[Sequence[ImageReceipt]]) -> None:
        """Pruning that silently did nothing, or met other tokens than the picture's, must not pass for a result."""
        for item, images in zip(batch, kept, strict=True):
            spans = [image.span[0] for image in images]
            if spans != [item.start]:
                raise RuntimeError(f"pruning met visual tokens at {spans}, but the picture starts at {item.start}")


def _groups(batch: Sequence[Prepared]) -> Iterator[list[int]]:
    """Positions of items with equal shapes."""
    by_shape: dict[tuple[object, ...], list[int]] = {}
    for position, item in enumerate(batch):
        by_shape.setdefault(item.shape, []).append(position)
    yield from by_shape.values()


def _per_row(receipts: Sequence[Any], rows: int) -> list[list[ImageReceipt]]:
    """The prefill's receipts by question; beam search repeats each question ``batch_size / rows`` times."""
    kept: list[list[ImageReceipt]] = [[] for _ in range(rows)]
    for receipt in receipts[:1]:
        beams = receipt.batch_size // rows
        for image in receipt.images:
            if image.row % beams == 0:
                kept[image.row // beams].append(image)
    return kept


def _metadata(images: Sequence[ImageReceipt]) -> dict[str, Any]:
    """Method, layer and kept counts of the question's picture."""
    return {
        "method": images[0].method,
        "layer": images[0].layer,
        "visual_tokens": sum(image.n_before for image in images),
        "kept": sum(image.n_after for image in images),
    }
