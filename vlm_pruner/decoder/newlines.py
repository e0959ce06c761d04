"""Newline tokens that follow their lines: not chosen, not counted, and kept where their line keeps a token.

For methods with `newlines="of-kept-rows"`. The method sees the other tokens only, and merges those.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vlm_pruner.decoder.tasks import Task
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.methods.view import View


@dataclass(frozen=True)
class WithNewlines(Selection):
    """A choice among `content`, long [n], the tokens that are no newlines, and the newlines that go with it.

    chosen: the method's own selection, counted within `content`.
    """

    content: Tensor = field(kw_only=True)
    chosen: Selection = field(kw_only=True)


def choose_all(method: Pruner, tasks: Sequence[Task], view: Callable[[Task], View]) -> list[Selection]:
    """For each image, or what is left of it, the tokens that stay. view: what the method sees of a task."""
    contents = [_content(task) for task in tasks]
    pairs = list(zip(tasks, contents, strict=True))
    chosen = method.choose_all([view(task if content is None else _only(task, content)) for task, content in pairs])
    return [
        selection if content is None else _with_newlines(task, content, selection)
        for (task, content), selection in zip(pairs, chosen, strict=True)
    ]


def _content(task: Task) -> Tensor | None:
    """Long [n], the tokens that are no newlines; None if newlines are like other tokens."""
    if not task.newlines_follow or task.span is None or task.span.layout.lines is None:
        return None
    return (~task.span.layout.lines.newlines).nonzero().squeeze(1)


def _only(task: Task, content: Tensor) -> Task:
    """The task without its newlines."""
    assert task.span is not None and task.image.layout.lines is not None
    shown = torch.arange(task.image.length, device="cpu") if task.shown is None else task.shown
    shown = shown[~task.image.layout.lines.newlines[shown]]
    return replace(task, span=task.span.part(content), shown=shown)


def _with_newlines(task: Task, content: Tensor, chosen: Selection) -> WithNewlines:
    """A choice among `content`, and the newlines of the lines that keep a token."""
    assert task.span is not None and task.span.layout.lines is not None
    lines, device = task.span.layout.lines, chosen.indices.device
    content, newlines, rows = content.to(device), lines.newlines.to(device), lines.rows.to(device)
    kept = content[chosen.indices]
    ends = (newlines & torch.isin(rows, rows[kept])).nonzero().squeeze(1)
    order = torch.cat([content[chosen.order], ends])
    pivots = None if chosen.pivots is None else content[chosen.pivots]
    return WithNewlines(order.sort().values, order, pivots=pivots, content=content, chosen=chosen)


def merge(method: Pruner, tokens: Tensor, selection: Selection) -> Tensor:
    """[R, d], what stays of an image's `tokens` [N, d], merged by the method; newlines as they are."""
    if not isinstance(selection, WithNewlines):
        return method.merge(tokens, selection)
    merged = tokens[selection.indices]
    places = torch.searchsorted(selection.indices, selection.content[selection.chosen.indices])
    return merged.index_copy(0, places, method.merge(tokens[selection.content], selection.chosen).to(merged))


def assigned(method: Pruner, tokens: Tensor, selection: Selection) -> Tensor:
    """Long [N], where in `selection.indices` each of an image's `tokens` [N, d] counts, or -1; see Pruner.assigned."""
    if not isinstance(selection, WithNewlines):
        return method.assigned(tokens, selection)
    own = method.assigned(tokens[selection.content], selection.chosen)
    places = torch.searchsorted(selection.indices, selection.content[selection.chosen.indices])
    group = own.new_full((len(tokens),), -1)
    group[selection.content] = torch.where(own < 0, -1, places[own.clamp(min=0)])
    group[selection.indices] = torch.arange(len(selection.indices), device=group.device)
    return group
