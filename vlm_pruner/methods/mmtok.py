"""MMTok (ICLR 2026, arXiv 2508.18264): tokens that together cover the question's words and the picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.coverage import maximise_coverage

WORDS, PICTURE, SHARE = 0.02, 0.2, 0.5  # temperatures of the two softmaxes, and the picture's weight, as published


def soft_cosines(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """[M, N], softmax over N of the cosines of rows [M, d] to columns [N, d] over `temperature`, divided by M."""
    cosines = normalize(rows, dim=1) @ normalize(columns, dim=1).T
    return (cosines / temperature).softmax(dim=1) / len(rows)


def mmtok_order(words: Tensor, tokens: Tensor, features: Tensor, budget: int) -> Tensor:
    """Order of choice, long [budget]. words: [M, d], tokens: [N, d], both embeddings. features: [N, c], of the patches.

    Greedy maximum coverage of the M words and, at half their weight, of the N tokens themselves.
    """
    picture = SHARE * soft_cosines(features, features, PICTURE)
    return maximise_coverage(torch.cat([soft_cosines(words, tokens, WORDS), picture]), budget)


@register("mmtok", "MMTok", arxiv="2508.18264")
@dataclass(frozen=True)
class MMTokPruner(Pruner):
    """Greedy maximum coverage of the question's words and, at half their weight, of the picture itself.

    features: what tells how well tokens cover the picture: "patches", the features that go to the projector, as
              published; or "embeddings", the projector's output, for models without a class token.
    suffix:   tokens at the prompt's end that are no words of the question, such as those of "ASSISTANT:".
    layer:    0, as published. Needs text after the image.

    The published code also leaves out stop words and benchmarks' fixed instructions, by their spelling. A method sees
    embeddings and no spelling: all text after the image but `suffix` counts.
    """

    layer: int = 0
    features: Literal["patches", "embeddings"] = "patches"
    suffix: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "text_embeddings", "patch_features"})

    def __post_init__(self) -> None:
        self._check_choice("features", "patches", "embeddings")
        if self.features == "embeddings":
            object.__setattr__(self, "needs", type(self).needs - {"patch_features"})
        super().__post_init__()
        self._check_whole("suffix", least=0)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        words = view.text_embeddings[: len(view.text_embeddings) - self.suffix].float()
        if not len(words):
            raise PruningError(
                f"{len(view.text_embeddings)} tokens of text follow the image and suffix={self.suffix} leaves none: "
                "MMTok needs the question's words after the image"
            )
        features = view.patch_features if self.features == "patches" else view.embeddings
        return Selection.of(mmtok_order(words, view.embeddings.float(), features.float(), view.budget))
