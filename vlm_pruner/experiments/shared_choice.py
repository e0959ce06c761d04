"""Chooses once for neighbouring rows of a batch that show the same picture, as questions about one picture do.

Only for methods that choose by a picture's own hidden states and keys: the question cannot change their choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vlm_pruner.methods.base import Pruner, Selection, overriding
from vlm_pruner.methods.view import View


def once_per_picture(method: Pruner) -> Pruner:
    """The same method, which chooses once for neighbouring rows that show it the same."""
    if method.needs:
        return method

    def choose_all(self: Pruner, views: Sequence[View]) -> list[Selection]:
        firsts: list[View] = []
        which = []
        for view in views:
            if not firsts or not _same(firsts[-1], view):
                firsts.append(view)
            which.append(len(firsts) - 1)
        chosen = method.choose_all(firsts)
        return [chosen[number] for number in which]

    return overriding(method, choose_all=choose_all)


def _same(one: View, other: View) -> bool:
    """Whether the method sees the same of both."""
    tensors = ((view.layout.coords, view.keys, view.hidden) for view in (one, other))
    return (one.budget, one.start, one.layout.diagonal) == (other.budget, other.start, other.layout.diagonal) and all(
        torch.equal(mine, its) for mine, its in zip(*tensors, strict=True)
    )
