"""What a method may look at, when the image's own tokens are not enough for its choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout

AttentionRows = Callable[[Tensor], Tensor]  # text tokens, long [Q] -> their attention to the image, [heads, Q, N]


@dataclass(frozen=True)
class View:
    """One image of one batch row, with N visual tokens of which T tokens of text come after (padding is none).

    hidden, keys, layout, budget: as for Pruner.select; always there, as is `start`, the place of the image's first
    token in its row. What follows is there only for a method that names it in `needs`.

    text_hidden:     [T, d], text tokens after the image, as they enter the pruned layer.
    text_keys:       [T, k], their keys in the layer before.
    final_norm:      the decoder's last normalisation, [..., d] -> [..., d].
    embeddings:      [N, d], the visual tokens as they enter the first decoder layer: the projector's output.
    text_embeddings: [T, d], the text tokens likewise.
    attend:          attention of the given text tokens (of T) to the image in the layer before the pruned one: a part
                     of softmax rows over the whole sequence. Only the rows asked for are computed.
    attend_next:     the same with the weights of the pruned layer itself, on the sequence before pruning.
    cls_attention:   [heads, N], attention of the vision tower's class token in the layer that features come from,
                     not normalised again over the N patches.
    patch_features:  [N, c], the features that go to the projector.
    patch_keys:      [N, head size], the patches' keys in that layer of the tower, mean over heads.
    last_layer:      ([c], [1 + N, c]), the class token's query and all keys of the tower's last layer, heads side by
                     side; the class token's key is the first.
    project:         the projector, from features [..., c] to embeddings [..., d].
    """

    hidden: Tensor
    keys: Tensor
    layout: TokenLayout
    budget: int
    start: int = 0
    text_hidden: Tensor | None = None
    text_keys: Tensor | None = None
    final_norm: Callable[[Tensor], Tensor] | None = None
    embeddings: Tensor | None = None
    text_embeddings: Tensor | None = None
    attend: AttentionRows | None = None
    attend_next: AttentionRows | None = None
    cls_attention: Tensor | None = None
    patch_features: Tensor | None = None
    patch_keys: Tensor | None = None
    last_layer: tuple[Tensor, Tensor] | None = None
    project: Callable[[Tensor], Tensor] | None = None
