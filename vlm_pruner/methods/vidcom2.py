"""VidCom2 (EMNLP 2025, arXiv 2505.14454): gives unlike frames of a video more tokens, and keeps unlike tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.shares import allocate, largest_of_parts
from vlm_pruner.selection.standing import group_means


def frame_weights(uniqueness: Tensor, temperature: float) -> Tensor:
    """[T], each frame's share of tokens relative to an even one: 1 + softmax(uniqueness / temperature) - 1 / T."""
    return 1 + (uniqueness / temperature).softmax(dim=0) - 1 / len(uniqueness)


def vidcom2_order(features: Tensor, frame: Tensor, budget: int, temperature: float = 0.01) -> Tensor:
    """Order of choice, long [budget]. features: [N, d]. frame: long [N], ascending, each token's frame, from 0.

    A frame's uniqueness is minus the mean cosine of its tokens to the video's mean token. A token's score is minus its
    cosines to that mean and to its frame's mean.
    """
    count = int(frame[-1]) + 1
    unit = normalize(features, dim=1)
    sizes = torch.bincount(frame, minlength=count)
    means = group_means(features, frame, count)
    to_video = unit @ normalize(features.mean(dim=0), dim=0)
    to_frame = (unit * normalize(means, dim=1)[frame]).sum(dim=1)
    uniqueness = -unit.new_zeros(count).index_add_(0, frame, to_video) / sizes
    shares = allocate(frame_weights(uniqueness, temperature) * sizes, budget, sizes.tolist())
    score = -(to_video + to_frame)
    return largest_of_parts(score, sizes.tolist(), shares)


@register("vidcom2", "VidCom2", arxiv="2505.14454")
@dataclass(frozen=True)
class VidCom2Pruner(Pruner):
    """Splits a video's budget by how unique each frame is, and keeps each frame's tokens that are most unlike the rest.

    temperature: of the softmax over frames; the smaller, the more the most unique frame gets.
    layer:       0, as published: compares the projector's output.

    For videos only; pictures stay whole. What exceeds a frame's tokens goes to the other frames. Kept tokens keep their
    positions.
    """

    layer: int = 0
    temperature: float = 0.01

    videos_only: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"embeddings"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise PruningError(f"temperature={self.temperature} must be above 0, such as 0.01")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        times = view.layout.coords[:, 0].to(view.embeddings.device)
        frame = times.unique(return_inverse=True)[1]
        by_frame = frame.argsort(stable=True)
        order = vidcom2_order(view.embeddings.float()[by_frame], frame[by_frame], view.budget, self.temperature)
        return Selection.of(by_frame[order])
