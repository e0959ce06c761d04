"""EVS (arXiv 2510.14624): keeps the first frame of a video, and what changes from one frame to the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.ranking import largest


def tokens_before(coords: Tensor) -> Tensor:
    """For each token the one at its position in the frame before, or -1 if there is none: long [N].

    coords: [N, 3], (t, x, y). The frame before is the one that precedes in the video, whatever its number.
    """
    frames, frame = coords[:, 0].unique(return_inverse=True)
    positions, position = coords[:, 1:].unique(dim=0, return_inverse=True)
    table = torch.full((len(frames) + 1, len(positions)), -1, device=coords.device)  # its first row: before the video
    table[frame + 1, position] = torch.arange(len(coords), device=coords.device)
    return table[frame, position]


def changes(features: Tensor, coords: Tensor) -> Tensor:
    """[N], 1 - cosine of each token to the one at its position in the frame before; infinite where there is none."""
    before = tokens_before(coords)
    change = 1 - cosine_similarity(features, features[before.clamp(min=0)], dim=1)
    return change.masked_fill(before < 0, torch.inf)


@register("evs", "EVS", arxiv="2510.14624")
@dataclass(frozen=True)
class EVSPruner(Pruner):
    """Keeps a video's first frame whole, and elsewhere the tokens that differ most from the same place a frame before.

    layer: 0, as published: compares the projector's output.

    For videos only; pictures stay whole. A budget below the first frame's tokens is refused; the published code raises
    it instead. The paper compares pixels, the deployed versions embeddings, as here. Kept tokens keep their positions,
    as published.
    """

    layer: int = 0

    videos_only: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        change = changes(view.embeddings.float(), view.layout.coords.to(view.embeddings.device))
        first = int(change.isinf().sum())
        if first > view.budget:
            raise PruningError(
                f"a budget of {view.budget} is less than the {first} tokens of the video's first frame, which EVS "
                f"always keeps; keep at least {first}, or use another method"
            )
        return Selection.of(largest(change, view.budget))
