"""The checkpoint under evaluation: loading it as the command line says, and what the run has to know about it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from llava.eval.errors import UsageError
from llava.mm_utils import get_model_name_from_path
from llava.model.builder import load_pretrained_model

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Checkpoint:
    """What ``load_pretrained_model`` returns, and the checkpoint's name."""

    model_id: str
    tokenizer: Any
    model: Any
    image_processor: Any

    @property
    def visual_tokens(self) -> int | None:
        """Visual tokens of one picture; None where that depends on the picture (AnyRes)."""
        if getattr(self.model.config, "image_aspect_ratio", None) == "anyres":
            return None
        vision_tower = self.model.get_vision_tower()
        return int(vision_tower.num_patches)


def load_checkpoint(args: argparse.Namespace) -> Checkpoint:
    """``--model-path`` on ``--device`` in ``--dtype``; :class:`UsageError` where that is not possible here."""
    device = _device(args.device)
    dtype = DTYPES.get(args.dtype) or (torch.float16 if device.type == "cuda" else torch.float32)
    name = get_model_name_from_path(args.model_path)
    try:
        tokenizer, model, processor, _ = load_pretrained_model(
            args.model_path, args.model_base, name, device=device, torch_dtype=dtype,
            attn_implementation=args.attn_implementation,
        )  # fmt: skip
    except ImportError as error:
        raise UsageError(f"--attn_implementation {args.attn_implementation} is not possible here: {error}") from None
    return Checkpoint(name, tokenizer, model, processor)


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name} is not a device; use cpu, cuda or cuda:1") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name} is not here: torch sees {torch.cuda.device_count()} GPUs; use cpu or another"
        )
    return device
