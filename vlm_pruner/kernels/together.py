"""Several images in one launch: those of the same sizes go together. Needs no Triton."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def stack(tensors: list[Tensor]) -> Tensor:
    """[I, ...]. A single one is not copied."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def in_groups(
    items: Iterable[_In],
    kind: Callable[[_In], Hashable],
    *,
    together: Callable[[list[_In]], list[_Out]],
    alone: Callable[[_In], _Out],
) -> list[_Out]:
    """In the order of `items`: what `together` makes of all those of a kind, and `alone` of each that has none."""
    found: dict[int, _Out] = {}
    groups: dict[Hashable, dict[int, _In]] = {}
    for number, item in enumerate(items):
        its_kind = kind(item)
        if its_kind is None:
            found[number] = alone(item)
        else:
            groups.setdefault(its_kind, {})[number] = item
    for group in groups.values():
        found |= zip(group, together(list(group.values())), strict=True)
    return [found[number] for number in sorted(found)]
