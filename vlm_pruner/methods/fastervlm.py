"""FasterVLM (arXiv 2412.01818): keeps the visual tokens that the vision tower's class token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.fastv import attention_order
from vlm_pruner.methods.view import View


@register("fastervlm", "FasterVLM", arxiv="2412.01818")
@dataclass(frozen=True)
class FasterVLMPruner(Pruner):
    """Keeps what the class token attends to in the layer that supplies the features. Needs a class token.

    layer: 0, as published. Kept tokens keep their positions; renumber=True renumbers them, as published.
    """

    layer: int = 0

    needs: ClassVar[frozenset[str]] = frozenset({"cls_attention"})

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        return Selection.of(attention_order(view.cls_attention[:, None], view.budget))
