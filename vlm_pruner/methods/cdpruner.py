"""CDPruner (NeurIPS 2025, arXiv 2506.10967): keeps dissimilar visual tokens, weighted by relevance to the question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View
from vlm_pruner.selection.diversity import maximise_determinant


def relevance(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """[N], relevance of patches [N, c] in CLIP's joint space to M pieces of text [M, c]; about 0 to 1.

    The mean of MINUS the cosine, stretched to its range. The sign follows the published code, and so does the 1e-6,
    which appears in the numerator only.
    """
    unlike = -(normalize(image_embeds, dim=1) @ normalize(text_embeds, dim=1).T).mean(dim=1)
    low, high = unlike.aminmax()
    return (unlike - low + 1e-6) / (high - low)


def cdpruner_order(features: Tensor, image_embeds: Tensor, text_embeds: Tensor, budget: int) -> Tensor:
    """Order of choice, long [budget]. features: [N, d], the projector's output; it should have d >= budget."""
    return maximise_determinant(features, relevance(image_embeds, text_embeds), budget)


@register("cdpruner", "CDPruner", arxiv="2506.10967")
@dataclass(frozen=True)
class CDPruner(Pruner):
    """Determinantal choice among the projector's outputs, weighted by the question in CLIP's joint space.

    LLaVA's checkpoints contain only the picture half of CLIP. Pass the other half; nothing can replace it:

        clip = CLIPModel.from_pretrained("openai/clip-vit-large-patch14-336")  # the whole of the model's tower
        CDPruner(keep_tokens=64, question=clip.get_text_features(...), joint=lambda patches: clip.visual_projection(
            clip.vision_model.post_layernorm(patches)))

    question: [M, c], CLIP's embeddings of the question, one row per piece of at most 77 tokens. It applies to
              every image that is pruned; use dataclasses.replace for another question.
    joint:    from patch features [N, c_v], those that go to the projector, to the joint space [N, c].
    layer:    0, as published. Kept tokens keep their positions; renumber=True renumbers them, as published.
    """

    layer: int = 0
    question: Tensor | None = field(default=None, repr=False, compare=False)
    joint: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    needs: ClassVar[frozenset[str]] = frozenset({"embeddings", "patch_features"})
    by_settings: ClassVar[bool] = False
    requires: ClassVar[str] = "the text half of CLIP"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.question is None or self.joint is None:
            raise PruningError(
                "cdpruner weighs tokens by the question in CLIP's joint space of pictures and text, and LLaVA's "
                "checkpoints have the picture half of CLIP only: pass question= and joint= (see CDPruner)"
            )
        if self.question.ndim != 2 or not len(self.question):
            raise PruningError(f"question must have shape [M, c] with M at least 1, not {list(self.question.shape)}")

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        assert self.question is not None and self.joint is not None
        patches = self.joint(view.patch_features).float()
        order = cdpruner_order(view.embeddings.float(), patches, self.question.to(patches), view.budget)
        return Selection.of(order)

    def config(self) -> dict[str, Any]:
        """The fields except `question` and `joint`, which are not settings."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.compare}
