"""Where the tokens of a pruned prompt stand in the un-pruned one, and positions that travel beside embeddings.

An engine decides a prompt's positions from sizes, before it encodes pictures. A kept token's position is known later,
when the method has chosen. So the engine gives all tokens of a picture the position of its first one, and each kept
token brings its offset from there, as a few more channels of its embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

AXES = 3
DIGITS = 2  # channels per axis
_BASE = 128  # bfloat16 holds every whole number up to 256
CHANNELS = AXES * DIGITS
LIMIT = _BASE**DIGITS  # offsets are below


@dataclass(frozen=True)
class Item:
    """A picture or video in a prompt: `kept` placeholders from `start` on, which stand for `whole` tokens."""

    start: int
    kept: int
    whole: int


@dataclass(frozen=True)
class Placement:
    """A pruned prompt's tokens in the un-pruned prompt.

    index:  each token's position in the un-pruned prompt; a pruned item's tokens all have the position of its first.
    starts: where each item starts in the un-pruned prompt. length: of the un-pruned prompt.
    """

    index: list[int]
    starts: list[int]
    length: int


def place(items: Sequence[Item], length: int) -> Placement:
    """The placement of a pruned prompt of `length` tokens. items: in order, not overlapping."""
    index: list[int] = []
    starts: list[int] = []
    shift = 0  # tokens that earlier items lack
    for item in items:
        index += range(len(index) + shift, item.start + shift)
        first = item.start + shift
        starts.append(first)
        index += range(first, first + item.kept) if item.kept == item.whole else [first] * item.kept
        shift += item.whole - item.kept
    index += range(len(index) + shift, length + shift)
    return Placement(index, starts, length + shift)


def with_offsets(embeddings: Tensor, offsets: Tensor) -> Tensor:
    """[R, d + CHANNELS]: embeddings [R, d], and whole offsets [R, AXES], each at least 0 and below LIMIT, as digits."""
    digits = torch.stack([offsets // _BASE, offsets % _BASE], dim=-1).flatten(1)
    return torch.cat([embeddings, digits.to(embeddings)], dim=1)


def split_offsets(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(embeddings [R, width], offsets [AXES, R]) of rows with or without offsets; zeros without."""
    digits = rows[:, width:].round().long()
    if not digits.shape[1]:
        return rows, digits.new_zeros(AXES, len(rows))
    high, low = digits.view(len(rows), AXES, DIGITS).unbind(dim=-1)
    return rows[:, :width], (high * _BASE + low).T


def batches(sizes: Sequence[int], limit: int) -> list[slice]:
    """Splits items of `sizes` tokens into runs of at most `limit` tokens; a larger item runs alone."""
    runs, start, total = [], 0, 0
    for number, size in enumerate(sizes):
        if number > start and total + size > limit:
            runs.append(slice(start, number))
            start, total = number, 0
        total += size
    return [*runs, slice(start, len(sizes))] if sizes else []
