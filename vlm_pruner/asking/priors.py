"""What a model attends to in any picture: the average over pictures, for methods that divide by it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from vlm_pruner.asking.chat import Chat
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods import Pruner, Selection, View
from vlm_pruner.methods.d2pruner import Prior


@dataclass(frozen=True)
class _Recorder(Pruner):
    """Notes each picture's layout and the last token's attention to it."""

    seen: list[tuple[TokenLayout, Tensor]] = field(default_factory=list, compare=False, repr=False)

    name: ClassVar[str] = "prior"
    needs: ClassVar[frozenset[str]] = frozenset({"attend"})

    def choose(self, view: View) -> Selection:
        attention = view.attend(torch.tensor([-1], device="cpu")).float().mean(dim=(0, 1))
        self.seen.append((view.layout, attention.cpu().double()))
        return Selection.of(torch.zeros(1, dtype=torch.long, device=view.hidden.device))

    def config(self) -> dict[str, Any]:
        return {"layer": self.layer}


def average_attention(chat: Chat, pictures: Iterable[Image.Image], question: str, layer: int) -> Prior:
    """The prior of a model for `question`, before decoder layer `layer`, over pictures that all have one grid.

    Raises PruningError if a picture has another grid than the first, or more than one.
    """
    recorder = _Recorder(keep_tokens=1, layer=layer)
    total, first, number = torch.zeros(0, device="cpu"), None, 0
    for number, picture in enumerate(pictures, start=1):
        recorder.seen.clear()
        chat.ask(picture, question, recorder, max_new_tokens=1)
        if not recorder.seen:
            raise PruningError(f"picture {number} has one visual token or none: there is nothing to average over")
        ((layout, attention),) = recorder.seen
        first = first or layout
        if len(layout) != len(first) or not torch.equal(layout.coords, first.coords):
            raise PruningError(
                f"picture {number} has {len(layout)} visual tokens on another grid than the first, which has "
                f"{len(first)}; a prior is of one grid: give pictures of one size"
            )
        total = attention if number == 1 else total + attention
    if first is None:
        raise PruningError("no picture was given; name at least one")
    height, width = _grid(first)
    mean = tuple((total / number).tolist())
    return Prior(mean, height, width, layer, number, chat.name, question)


def _grid(layout: TokenLayout) -> tuple[int, int]:
    """Rows and columns. Raises PruningError if the tokens are not one grid in raster order."""
    width, height = (int(axis.max()) + 1 for axis in layout.coords[:, -2:].T)
    if len(layout) != height * width or not math.isclose(layout.diagonal, math.hypot(height, width)):
        raise PruningError(
            "this model lays a picture out on more than one grid, or adds tokens; a prior is of one grid"
        )
    return height, width
