"""Makes one left-padded batch of prepared questions for `generate`, and sorts out what pruning kept of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_pruner.llava.constants import IMAGE_TOKEN_INDEX
from vlm_pruner.llava.eval.errors import ItemError
from vlm_pruner.receipts import ImageReceipt, Receipt


@dataclass(frozen=True)
class Prepared:
    """One question as tensors.

    index: of the question in its file. input_ids: [T] long, one id -200 per picture, at ``positions``.
    pixels: [3, H, W] or [tiles, 3, H, W] per picture, [F, 3, H, W] per video. sizes: (width, height) in pixels per
    picture, None per video.
    """

    index: int
    input_ids: Tensor
    positions: tuple[int, ...] = ()
    pixels: tuple[Tensor, ...] = ()
    sizes: tuple[tuple[int, int] | None, ...] = ()

    @property
    def kinds(self) -> list[str]:
        """ "image" or "video" for each of ``pixels``."""
        return ["video" if size is None else "image" for size in self.sizes]


def image_positions(input_ids: Tensor, pictures: int) -> tuple[int, ...]:
    """Positions of the ids -200, one per picture. Raises ItemError if the question itself holds some."""
    positions = (input_ids == IMAGE_TOKEN_INDEX).nonzero()[:, 0].tolist()
    if len(positions) != pictures:
        raise ItemError(f"the question holds {len(positions) - pictures} <image> marks of its own; take them out")
    return tuple(positions)


def generate_arguments(batch: Sequence[Prepared], pad: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of LLaVA's `generate` for a batch: ids, mask, pictures and videos."""
    rows = [item.input_ids for item in batch]
    ids = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    return {
        "inputs": ids.to(device),
        "attention_mask": mask.to(device),
        "images": _on_device(batch, device, dtype),
        "image_sizes": [size for item in batch for size in item.sizes] or None,
        "modalities": [kind for item in batch for kind in item.kinds] or None,
    }


def _on_device(batch: Sequence[Prepared], device: torch.device, dtype: torch.dtype) -> list[Tensor] | None:
    """Every picture of the batch in order. One that several questions share stays one tensor, so it is encoded once."""
    moved = {id(picture): picture for item in batch for picture in item.pixels}
    moved = {key: picture.to(device, dtype, non_blocking=True) for key, picture in moved.items()}
    return [moved[id(picture)] for item in batch for picture in item.pixels] or None


def kept_per_row(receipt: Receipt, rows: int) -> list[list[ImageReceipt]]:
    """A prefill's pictures by question; beam search repeats each question ``batch_size / rows`` times."""
    kept: list[list[ImageReceipt]] = [[] for _ in range(rows)]
    beams = receipt.batch_size // rows
    for image in receipt.images:
        if image.row % beams == 0:
            kept[image.row // beams].append(image)
    return kept


def check_receipt(receipt: Receipt, batch: Sequence[Prepared], kept: Sequence[Sequence[ImageReceipt]]) -> None:
    """Raises RuntimeError if pruning did nothing or met other tokens than the pictures'."""
    for item, images in zip(batch, kept, strict=True):
        found = [image.span[0] for image in images]
        expected = _starts(item, [image.n_before for image in images], receipt.tokens_before)
        if found != expected:
            raise RuntimeError(f"pruning met visual tokens at {found}, but the pictures start at {expected}")


def _starts(item: Prepared, tokens: Sequence[int], padded: int) -> list[int]:
    """First position of each picture in a row of ``padded`` positions; ``tokens``: each picture's visual tokens."""
    shift = padded - len(item.input_ids) - sum(count - 1 for count in tokens)
    starts = []
    for position, count in zip(item.positions, tokens, strict=False):
        starts.append(position + shift)
        shift += count - 1
    return starts
