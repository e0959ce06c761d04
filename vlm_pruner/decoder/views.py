"""Gathers, in a running decoder, what a method has asked to see beside the image's own hidden states and keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.attention_rows import LayerCall
from vlm_pruner.decoder.shortening import Task, rows_of
from vlm_pruner.decoder.towers import Picture, TowerTap
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.view import AttentionRows, View

SUPPLIED = frozenset(
    {"text_hidden", "text_keys", "final_norm", "embeddings", "text_embeddings", "attend", "attend_next"}
)
FROM_TOWER = frozenset({"cls_attention", "patch_features", "patch_keys", "last_layer", "project"})
FROM_FIRST_LAYER = FROM_TOWER | {"embeddings", "text_embeddings"}  # pictures are known by their embeddings


@dataclass(frozen=True)
class Scene:
    """One prefill at the moment of choice: the batch before the pruned layer, and where its images are.

    needs:    the fields of a View that the method has asked for. tasks: all images of all rows.
    now:      the call of the pruned layer. keys: [B, key heads, T, head size], new keys of the layer before.
    all_keys: the same behind the `past` ones that the cache held, maybe with room for more behind.
    before:   the call of the layer before. first: the call of decoder layer 0. tower: what the
              vision tower has seen. None if no need asks for them.
    """

    decoder: nn.Module
    needs: frozenset[str]
    tasks: list[Task]
    now: LayerCall
    keys: Tensor
    all_keys: Tensor
    past: int
    before: LayerCall | None
    first: LayerCall | None
    tower: TowerTap | None

    def view(self, task: Task) -> View:
        """What the method sees of a task's image: for reading, as it may be a part of the batch itself."""
        here, row = self.now.hidden, task.row
        return View(
            hidden=rows_of(here[row], task.span),
            keys=rows_of(self.keys[row].transpose(0, 1), task.span).flatten(1).to(here.device),
            layout=task.span.layout,
            budget=task.budget,
            start=self._start(task),
            **self._asked_for(task),
        )

    def _start(self, task: Task) -> int:
        """The place of the image's first token in its row, padding not counted."""
        if self.now.visible is None:
            return task.span.start
        return int(self._visible(self.now, task.row)[: task.span.start].sum())

    def _asked_for(self, task: Task) -> dict[str, Any]:
        if not self.needs:
            return {}
        image, text = task.span.positions(), self._text_after(task)
        return {need: getattr(self, f"_{need}")(task, image, text) for need in self.needs}

    # What each need is met with. image: long [N], text: long [T], positions in the row.

    def _text_hidden(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        return self.now.hidden[task.row, text.to(self.now.hidden.device)]

    def _text_keys(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        keys = self.keys[task.row].transpose(0, 1)
        return keys[text.to(keys.device)].flatten(1).to(self.now.hidden.device)

    def _final_norm(self, task: Task, image: Tensor, text: Tensor) -> nn.Module:
        return self.decoder.get_submodule("norm")

    def _embeddings(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        assert self.first is not None
        entered = self.first.hidden[task.row]
        return entered[task.image.positions().to(entered.device)].to(self.now.hidden.device)

    def _text_embeddings(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        assert self.first is not None
        entered = self.first.hidden[task.row]
        return entered[self._text_after(task, first=True).to(entered.device)].to(self.now.hidden.device)

    def _cls_attention(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        return self._picture(task).cls_attention().to(self.now.hidden.device)

    def _patch_features(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        return self._picture(task).states[1:].to(self.now.hidden.device)

    def _patch_keys(self, task: Task, image: Tensor, text: Tensor) -> Tensor:
        return self._picture(task).patch_keys().to(self.now.hidden.device)

    def _last_layer(self, task: Task, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        query, keys = self._picture(task).last_layer()
        return query.to(self.now.hidden.device), keys.to(self.now.hidden.device)

    def _project(self, task: Task, image: Tensor, text: Tensor) -> Callable[[Tensor], Tensor]:
        assert self.tower is not None
        projector, like = self.tower.tower.projector, self._picture(task).states
        return lambda features: projector(features.to(like)).to(self.now.hidden)

    def _picture(self, task: Task) -> Picture:
        assert self.tower is not None
        return self.tower.find(self._embeddings(task, task.image.positions(), task.image.positions()))

    def _attend(self, task: Task, image: Tensor, text: Tensor) -> AttentionRows:
        before, keys, past = self.before, self.all_keys[task.row], self.past
        assert before is not None

        def attend(queries: Tensor) -> Tensor:
            rows = before.rows(task.row, _pick(text, queries), keys, past)
            return rows[..., (image + past).to(rows.device)].to(self.now.hidden.device)

        return attend

    def _attend_next(self, task: Task, image: Tensor, text: Tensor) -> AttentionRows:
        if self.past:
            raise PruningError(
                "this method reads the attention of a layer that has not run yet, which works for fresh caches only: "
                "give the whole conversation in one prompt"
            )

        def attend(queries: Tensor) -> Tensor:
            rows = self.now.rows(task.row, _pick(text, queries), self.now.keys(task.row), 0)
            return rows[..., image.to(rows.device)]

        return attend

    def _text_after(self, task: Task, first: bool = False) -> Tensor:
        """Positions of the text tokens after an image in its row, long [T]: neither visual nor padding.

        first: in the sequence that entered decoder layer 0.
        """
        call = self.first if first else self.now
        assert call is not None
        is_text = self._visible(call, task.row)
        for other in self.tasks:
            if other.row == task.row:
                is_text[(other.image if first else other.span).positions()] = False
        is_text[: (task.image if first else task.span).stop] = False
        return is_text.nonzero().squeeze(1)

    def _visible(self, call: LayerCall, row: int) -> Tensor:
        """bool [T], on the CPU: the row's new tokens that are not padding."""
        length = call.hidden.shape[1]
        if call.visible is None:
            return torch.ones(length, dtype=torch.bool)
        return call.visible[row, -length:].cpu().clone()


def _pick(text: Tensor, queries: Tensor) -> Tensor:
    """Positions of the text tokens that a method names by number; negative numbers count from the end."""
    if not len(text):
        raise PruningError("the prompt ends with the image: this method needs text after it that attends to the image")
    return text[queries.cpu()]
