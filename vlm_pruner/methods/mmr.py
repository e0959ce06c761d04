"""MMR (arXiv 2602.13315, IDPruner, without its learned scorer): important tokens that repeat no chosen one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.coverage import marginal_relevance


@register("mmr", "MMR", arxiv="2602.13315")
@dataclass(frozen=True)
class MMRPruner(Pruner):
    """Maximal marginal relevance: trades a token's importance against its similarity to the tokens already chosen.

    balance: weight of importance, 0 to 1; the rest is the weight of the largest cosine to a chosen token.

    IDPruner learns its importance; that scorer is not part of this method. Importance is the attention of the prompt's
    last token in the layer before `layer`, mean over heads, scaled to 0 ... 1 over the image. Similarity is measured on
    the states that enter `layer`. Needs text after the image.
    """

    balance: float = 0.5

    needs: ClassVar[frozenset[str]] = frozenset({"attend"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_share("balance", "; 1 looks at importance alone")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        attention = view.attend(torch.tensor([-1], device="cpu")).mean(dim=(0, 1))
        least, most = attention.aminmax()
        importance = (attention - least) / (most - least).clamp(min=torch.finfo(attention.dtype).tiny)
        features = view.hidden.to(torch.promote_types(view.hidden.dtype, torch.float32))
        return Selection.of(marginal_relevance(features, importance.to(features), view.budget, self.balance))
