"""The model behind the runner: a LLaVA checkpoint, dense or pruned, answering batches of prepared questions."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_pruner.cost import accounting
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.decoder.pruning import prune
from vlm_pruner.errors import PruningError
from vlm_pruner.llava.conversation import get_conversation
from vlm_pruner.llava.eval import options
from vlm_pruner.llava.eval.batch import Prepared, check_receipt, image_positions, kept_per_row
from vlm_pruner.llava.eval.checkpoint import Checkpoint, load_checkpoint
from vlm_pruner.llava.eval.errors import ItemError, UsageError
from vlm_pruner.llava.eval.films import CONFIG_FLAGS, Film, VideoSettings, read_film
from vlm_pruner.llava.eval.images import open_image, resolve
from vlm_pruner.llava.eval.questions import Question
from vlm_pruner.llava.eval.runner import Reply
from vlm_pruner.llava.sights import BLIND, Grid, Sight
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt

RECENT_PICTURES = 16  # kept preprocessed: most benchmarks ask several questions in a row about a picture


class LlavaEngine:
    """See :class:`llava.eval.runner.Engine`. Pruning is switched on around each ``generate`` call.

    sight: how pictures are shown, if the flags do not say so.
    """

    def __init__(
        self, checkpoint: Checkpoint, method: Pruner | None, args: argparse.Namespace, sight: Sight | None = None
    ) -> None:
        self.checkpoint = checkpoint
        self.model_id = checkpoint.model_id
        self.method = method
        self.args = args
        self.sight = sight or options.build_sight(args)
        self.image_folder = Path(args.image_folder)
        self.videos = VideoSettings.of(args)
        for name in (name for name in CONFIG_FLAGS if getattr(args, name, None) is not None):
            setattr(checkpoint.model.config, name, getattr(args, name))
        self._recent = lru_cache(RECENT_PICTURES)(self._read)
        self._check()

    @classmethod
    def from_arguments(cls, args: argparse.Namespace, method: Pruner | None) -> LlavaEngine:
        return cls(load_checkpoint(args), method, args)

    def prepare(self, question: Question) -> Prepared:
        if self.blind:
            question = replace(question, images=(), videos=())
        films = [self._film(video) for video in question.videos]
        if self.videos.add_time_instruction and films:
            question = replace(question, asked=f"{films[0].instruction}\n{question.asked}")
        alone = len(question.images) == 1
        pictures = [self._recent(i, alone) if isinstance(i, str) else self._read(i, alone) for i in question.images]
        pixels = tuple(pixels for pixels, _ in pictures) + tuple(
            self.checkpoint.pixels_of_film(film.frames) for film in films
        )
        sizes = tuple(size for _, size in pictures) + (None,) * len(films)
        visual = [self._tokens_in(*item) for item in zip(pixels, sizes, strict=True)]
        item = self.checkpoint.prepare(self._prompt(question), pixels, sizes, question.index)
        self._check_tokens(item.input_ids, visual)
        return item

    def generate(self, batch: Sequence[Prepared]) -> list[Reply]:
        """All items in one call, padded on the left; the replies are in the order of the batch."""
        try:
            ids, kept = self.generate_pruned(batch)
        except torch.OutOfMemoryError:
            raise UsageError(
                f"out of memory with --batch-size {self.args.batch_size}: give a smaller one; what is answered is"
                " safe, and the same command continues from there"
            ) from None
        rows = zip(batch, self.checkpoint.decode(ids), kept, strict=True)
        return [Reply(text, self._metadata(item, images)) for item, text, images in rows]

    def generate_pruned(self, batch: Sequence[Prepared]) -> tuple[Tensor, list[list[ImageReceipt]]]:
        """New ids as from `generate_ids`, and the receipts of each item's pictures; none if nothing is pruned.

        Raises RuntimeError if pruning missed a picture.
        """
        if self.method is None or not any(item.pixels for item in batch):
            return self.generate_ids(batch), [[] for _ in batch]
        with prune(self.checkpoint.model, self.method) as pruning:
            ids = self.generate_ids(batch)
        kept = kept_per_row(pruning.receipts[0], len(batch))
        check_receipt(pruning.receipts[0], batch, kept)
        return ids, kept

    @torch.inference_mode()
    def generate_ids(self, batch: Sequence[Prepared]) -> Tensor:
        """New ids, [len(batch), at most max_new_tokens] long."""
        checkpoint, args = self.checkpoint, self.args
        if args.temperature > 0:
            torch.manual_seed(args.seed + batch[0].index)  # batches of one: answers do not depend on resuming
        with checkpoint.at(self._grid):
            return checkpoint.model.generate(
                **checkpoint.arguments(batch),
                do_sample=args.temperature > 0,
                temperature=args.temperature if args.temperature > 0 else None,
                top_p=args.top_p if args.temperature > 0 else None,
                num_beams=args.num_beams,
                max_new_tokens=args.max_new_tokens,
                use_cache=True,
                pad_token_id=checkpoint.pad,
            )

    def _metadata(self, item: Prepared, kept: Sequence[ImageReceipt]) -> dict[str, Any]:
        """Method, layer, visual tokens, kept ones and their cost; nothing that depends on the item's batch."""
        if self.method is None:
            name = "dense" if self.sight is None else self.sight.name
            return {"method": name, "visual_tokens": self.visual_tokens(item)}
        text = len(item.input_ids) - len(item.positions)
        model = self.checkpoint.model
        steps = [(image.n_before, image.steps) for image in kept]
        cost = accounting.of_steps(steps, text, DecoderShape.of(model.config), model.dtype.itemsize)
        return {
            "method": self.method.name,
            "layer": self.method.layer,
            "visual_tokens": cost.visual,
            "kept": sum(image.n_after for image in kept),
            "average_tokens": round(cost.average_tokens, 2),
            "flops_share": round(cost.flops_share, 4),
            "kv_bytes": cost.kv_bytes,
        }

    def visual_tokens(self, item: Prepared) -> int:
        """Visual tokens of an item, before pruning."""
        return sum(self._tokens_in(*pair) for pair in zip(item.pixels, item.sizes, strict=True))

    @property
    def blind(self) -> bool:
        """Whether the model is asked without the pictures."""
        return self.sight is not None and self.sight.name == BLIND

    @property
    def _grid(self) -> Grid | None:
        """Rows and columns of visual tokens that pictures are shrunk to, if they are."""
        if self.sight is None or self.blind:
            return None
        return self.sight.grid(self.checkpoint.model.get_vision_tower().num_patches_per_side)

    def _tokens_in(self, pixels: Tensor, size: tuple[int, int] | None) -> int:
        if self.sight is None:
            return self.checkpoint.tokens_in(pixels, size)
        rows, columns = self.checkpoint.model.get_vision_tower().grid(pixels)
        return rows * columns + (self.checkpoint.model.config.mm_vision_select_feature == "cls_patch")

    def _read(self, image: str | bytes | Image.Image, alone: bool) -> tuple[Tensor, tuple[int, int]]:
        """Pixel values of one picture, and its (width, height)."""
        picture = open_image(self.image_folder, image, as_released=self.args.compat == "released")
        return self.checkpoint.pixels_of(picture, alone, self._grid), picture.size

    def _film(self, video: str | Path) -> Film:
        return read_film(resolve(self.image_folder, video) if isinstance(video, str) else video, self.videos)

    def _prompt(self, question: Question) -> str:
        items = len(question.images) + len(question.videos)
        return self.checkpoint.prompt(question.asked, items, self.args.conv_mode)

    def _check(self) -> None:
        """Flags against the model, before the first question is asked."""
        config, stated = self.checkpoint.model.config, self.args
        if config.takes_videos and get_conversation(stated.conv_mode).version != "qwen":
            raise UsageError(
                f"--conv-mode {stated.conv_mode} is not the conversation that {self.model_id} was trained with; "
                "use qwen_1_5 (or qwen_2_5)"
            )
        if self.sight is not None and not self.blind:
            self._check_resize()
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

    def _check_resize(self) -> None:
        assert self.sight is not None
        if self.checkpoint.visual_tokens is None:
            raise UsageError(
                f"method resize: {self.model_id} cuts pictures into tiles, so their number of tokens follows from "
                "their shape and not from their size; give a model with one grid per picture"
            )
        self.sight.grid(self.checkpoint.model.get_vision_tower().num_patches_per_side)  # raises for too many tokens

    def _check_start(self, stated: int) -> None:
        """The picture stands before the question, so its position is the same for every question."""
        probe = self._prompt(Question(0, 0, asked="?", prompt="?", images=("?",)))
        (found,) = image_positions(self.checkpoint.ids(probe), 1)
        if found != stated:
            raise UsageError(
                f"--image_token_start_index {stated} was given, but with --conv-mode {self.args.conv_mode} the picture"
                f" starts at {found} for {self.model_id}; correct the flag or leave it out"
            )

    def _check_tokens(self, input_ids: Tensor, visual: Sequence[int]) -> None:
        """Text and pictures have to fit the model's positions, and the budget each picture's ``visual`` tokens."""
        config = self.checkpoint.model.config
        limits = (config.max_position_embeddings, getattr(config, "tokenizer_model_max_length", None))
        limit = min(int(limit) for limit in limits if limit is not None)
        length = len(input_ids) + sum(visual) - len(visual)
        if length > limit:
            raise ItemError(f"the prompt has {length} tokens with its picture, the model reads {limit} at most")
        if self.method is None:
            return
        try:
            for tokens in visual:
                self.method.budget(tokens)  # raises for keep_tokens above a picture's tokens
        except PruningError as error:
            raise ItemError(str(error)) from None
