"""The checkpoint under evaluation: loads it from the command line's flags, and counts its visual tokens."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlm_pruner.llava.eval import divided
from vlm_pruner.llava.eval.batch import Prepared, generate_arguments, image_positions
from vlm_pruner.llava.eval.errors import UsageError
from vlm_pruner.llava.eval.films import CONFIG_FLAGS
from vlm_pruner.llava.eval.processes import this_process, under_deepspeed
from vlm_pruner.llava.eval.prompts import build_prompt
from vlm_pruner.llava.mm_utils import get_model_name_from_path, process_images, tokenizer_image_token
from vlm_pruner.llava.model.builder import load_pretrained_model
from vlm_pruner.llava.model.image_tokens import count_tiled
from vlm_pruner.llava.model.video_tokens import count_video
from vlm_pruner.llava.sights import Grid, shrunk

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """The parts that ``load_pretrained_model`` returns, and the checkpoint's name."""

    model_id: str
    tokenizer: Any
    model: Any
    image_processor: Any

    @property
    def conversation(self) -> str:
        """The conversation template that published checkpoints of the model's class were trained with."""
        return "qwen_1_5" if self.model.config.takes_videos else "vicuna_v1"

    def prompt(self, asked: str, items: int, conversation: str) -> str:
        """The question as the model reads it, after `items` pictures or videos."""
        start_end = bool(getattr(self.model.config, "mm_use_im_start_end", False))
        return build_prompt(asked, conversation, items, start_end)

    def ids(self, prompt: str) -> Tensor:
        """[T] long, one id -200 per picture or video."""
        ids = tokenizer_image_token(prompt, self.tokenizer, return_tensors="pt")
        assert isinstance(ids, Tensor)
        return ids

    def prepare(
        self, prompt: str, pixels: Sequence[Tensor] = (), sizes: Sequence[tuple[int, int] | None] = (), index: int = 0
    ) -> Prepared:
        """A prompt as tensors; the rest as in `Prepared`. Raises ItemError if it holds other <image> marks."""
        ids = self.ids(prompt)
        return Prepared(index, ids, image_positions(ids, len(pixels)), tuple(pixels), tuple(sizes))

    def arguments(self, batch: Sequence[Prepared]) -> dict[str, Any]:
        """Arguments of the model's `generate` for a batch."""
        return generate_arguments(batch, self.pad, self.model.device, self.model.dtype)

    def decode(self, ids: Tensor) -> list[str]:
        """The texts of new ids [B, n]."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @property
    def pad(self) -> int:
        """The id that fills shorter rows."""
        tokenizer = self.tokenizer
        return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)

    def pixels_of(self, picture: Image.Image, alone: bool = True, grid: Grid | None = None) -> Tensor:
        """Pixel values [3, H, W] or [tiles, 3, H, W]. alone: whether it is the only picture of its prompt.

        LLaVA-OneVision's scripts pad pictures to a square where a prompt has several. grid: rows and columns of visual
        tokens to shrink the picture to; the model then runs `at` that grid.
        """
        config = self.model.config
        if config.takes_videos and not alone:
            config = SimpleNamespace(image_aspect_ratio="pad")
        pixels = process_images([picture], self.image_processor, config)[0]
        if grid is None:
            return pixels
        return shrunk(pixels, [side * int(self.model.get_vision_tower().config.patch_size) for side in grid])

    def at(self, grid: Grid | None) -> AbstractContextManager[object]:
        """Inside it, the vision tower reads pictures of that grid; None: of its own."""
        return nullcontext() if grid is None else self.model.get_vision_tower().any_size()

    def pixels_of_film(self, frames: Any) -> Tensor:
        """Pixel values [F, 3, side, side] of a video's frames: pictures, or an array [F, H, W, 3]."""
        if not self.model.config.takes_videos:
            raise UsageError(
                f"{self.model_id} takes pictures only; LLaVA-Video and LLaVA-OneVision checkpoints take videos"
            )
        pixels: Tensor = self.image_processor.preprocess(frames, return_tensors="pt")["pixel_values"]
        return pixels

    @property
    def visual_tokens(self) -> int | None:
        """Visual tokens of one picture; None where that depends on the picture (AnyRes)."""
        config = self.model.config
        if config.takes_videos or config.anyres:
            return None
        return int(self.model.get_vision_tower().num_patches) + (config.mm_vision_select_feature == "cls_patch")

    def tokens_of(self, size: tuple[int, int]) -> int:
        """Visual tokens of a picture of (width, height) pixels."""
        if self.visual_tokens is not None:
            return self.visual_tokens
        tower = self.model.get_vision_tower()
        return count_tiled(size, tower.num_patches_per_side, tower.config.image_size, self.model.config)

    def tokens_in(self, pixels: Tensor, size: tuple[int, int] | None) -> int:
        """Visual tokens of a picture of ``size`` pixels, or of a video, whose size is None."""
        tower, config = self.model.get_vision_tower(), self.model.config
        if size is None:
            return count_video(pixels.shape[0], tower.num_patches_per_side, config)
        if pixels.ndim == 3 and config.takes_videos:  # a picture of one view
            return int(tower.num_patches) + (config.mm_patch_merge_type == "spatial_unpad")
        return self.tokens_of(size)


_kept: dict[tuple[object, ...], Checkpoint] | None = None  # inside `keep_loaded`: at most one checkpoint


@contextmanager
def keep_loaded() -> Iterator[None]:
    """Inside it, runs with the same model flags share one loaded checkpoint."""
    global _kept
    _kept = {}
    try:
        yield
    finally:
        _kept = None


def load_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """``--model-path`` on ``--device`` in ``--dtype``. Raises UsageError if that is impossible here."""
    if _kept is None:
        return _load(args)
    names = ("model_path", "model_base", "device", "device_map", "dtype", "attn_implementation", *CONFIG_FLAGS)
    key = tuple(getattr(args, name, None) for name in names)
    if key not in _kept:
        _kept.clear()
        _kept[key] = _load(args)
    return _kept[key]


def _load(args: argparse.Namespace) -> Checkpoint:
    device = _device(args.device, this_process().local_rank)
    dtype = DTYPES.get(args.dtype) or (torch.float16 if device.type == "cuda" else torch.float32)
    name = get_model_name_from_path(args.model_path)

    def load() -> tuple[Any, Any, Any, int]:
        return load_pretrained_model(
            args.model_path, args.model_base, name, device=device, torch_dtype=dtype,
            attn_implementation=args.attn_implementation, device_map=_device_map(args.device_map),
        )  # fmt: skip

    try:
        tokenizer, model, processor, _ = divided.load(load, dtype) if under_deepspeed() else load()
    except ImportError as error:
        blamed = "flash" in str(error).lower() and args.attn_implementation == "flash_attention_2"
        what = f"--attn_implementation {args.attn_implementation}" if blamed else f"--model-path {args.model_path}"
        raise UsageError(f"{what} is not possible here: {error}") from None
    return Checkpoint(name, tokenizer, model, processor)


def _device(name: str | None, local_rank: int) -> torch.device:
    """``cuda`` without a number is the GPU of this process."""
    if name in (None, "cuda") and torch.cuda.is_available():
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name} is not here: torch sees {torch.cuda.device_count()} GPUs; use cpu or another"
        )
    return device


def _device_map(name: str | None) -> str | None:
    if name is None:
        return None
    if this_process().size > 1:
        raise UsageError(f"--device-map {name} gives one process all GPUs; start one process, or leave it out")
    if find_spec("accelerate") is None:
        raise UsageError(f"--device-map {name} needs accelerate: pip install accelerate, or use --device")
    return name
