"""CDPruner (NeurIPS 2025, arXiv 2506.10967): visual tokens that differ, weighted by relevance to the question.

Not registered: relevance compares CLIP's image space with CLIP's text tower, which LLaVA's checkpoints do not have.
Anything else in its place would be another method.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.methods.base import explain_missing
from vlm_pruner.selection.diversity import maximise_determinant

explain_missing(
    "cdpruner",
    "it weighs tokens by the question in CLIP's joint space of pictures and text, and LLaVA's checkpoints have the "
    "picture half of CLIP only (its mathematics is in vlm_pruner.methods.cdpruner)",
)


def relevance(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """[N], relevance of patches [N, c] in CLIP's joint space to M pieces of text [M, c]; about 0 to 1.

    The mean of MINUS the cosine, stretched to its range: the sign is the published code's, and so is the 1e-6, which
    stands in the numerator only.
    """
    unlike = -(normalize(image_embeds, dim=1) @ normalize(text_embeds, dim=1).T).mean(dim=1)
    low, high = unlike.aminmax()
    return (unlike - low + 1e-6) / (high - low)


def cdpruner_order(features: Tensor, image_embeds: Tensor, text_embeds: Tensor, budget: int) -> Tensor:
    """Order of choice, long [budget]. features: [N, d], the projector's output; it should have d >= budget."""
    return maximise_determinant(features, relevance(image_embeds, text_embeds), budget)
