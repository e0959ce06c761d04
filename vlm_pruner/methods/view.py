"""What a method may read: one image's tokens and, on demand, the text, the embeddings and the vision tower."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeAlias

from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout

AttentionRows: TypeAlias = Callable[[Tensor], Tensor]  # text tokens, long [Q] -> attention to the image, [heads, Q, N]


class View:
    """One image of one batch row: N visual tokens followed by T text tokens (padding does not count).

    hidden, keys, layout, budget: as for Pruner.select. start: the image's first position in its row, not counting
    padding.

    The other fields are computed when they are first read. A running decoder supplies those that the method lists in
    `needs`. Outside a model, pass the ones that the method reads:

        View(hidden, keys, TokenLayout.grid(24, 24), budget=64, text_hidden=text)

    Reading a field without a value raises PruningError.
    """

    def __init__(
        self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int, start: int = 0, **more: Any
    ) -> None:
        unknown = sorted(more.keys() - FIELDS)
        if unknown:
            raise TypeError(f"a View has no {', '.join(unknown)}; it may have {', '.join(sorted(FIELDS))}")
        self.hidden = hidden
        self.keys = keys
        self.layout = layout
        self.budget = budget
        self.start = start
        # Values passed here replace the properties below: a cached_property checks the instance first.
        vars(self).update((name, value) for name, value in more.items() if value is not None)

    @cached_property
    def hidden_before(self) -> Tensor:
        """[N, d], the visual tokens as inputs of the layer before the pruned one."""
        raise self.missing("hidden_before")

    @cached_property
    def text_hidden(self) -> Tensor:
        """[T, d], text tokens after the image, as inputs of the pruned layer."""
        raise self.missing("text_hidden")

    @cached_property
    def text_keys(self) -> Tensor:
        """[T, k], their keys in the layer before."""
        raise self.missing("text_keys")

    @cached_property
    def final_norm(self) -> Callable[[Tensor], Tensor]:
        """The decoder's last normalisation, [..., d] -> [..., d]."""
        raise self.missing("final_norm")

    @cached_property
    def embeddings(self) -> Tensor:
        """[N, d], the visual tokens as inputs of the first decoder layer: the projector's output."""
        raise self.missing("embeddings")

    @cached_property
    def text_embeddings(self) -> Tensor:
        """[T, d], the text tokens as inputs of the first decoder layer."""
        raise self.missing("text_embeddings")

    @cached_property
    def attend(self) -> AttentionRows:
        """Attention of the given text tokens (of T) to the image in the layer before the pruned one.

        Returns the image's part of softmax rows over the whole sequence; computes only the requested rows.
        """
        raise self.missing("attend")

    @cached_property
    def attend_next(self) -> AttentionRows:
        """The same for the pruned layer itself, on the sequence before pruning."""
        raise self.missing("attend_next")

    @cached_property
    def cls_attention(self) -> Tensor:
        """[heads, N], attention of the vision tower's class token in the layer that supplies the features.

        Not renormalised over the N patches.
        """
        raise self.missing("cls_attention")

    @cached_property
    def patch_features(self) -> Tensor:
        """[N, c], the features that go to the projector."""
        raise self.missing("patch_features")

    @cached_property
    def patch_keys(self) -> Tensor:
        """[N, head size], the patches' keys in that layer of the tower, mean over heads."""
        raise self.missing("patch_keys")

    @cached_property
    def last_layer(self) -> tuple[Tensor, Tensor]:
        """([c], [1 + N, c]), the class token's query and all keys of the tower's last layer, heads side by side.

        The class token's key is the first.
        """
        raise self.missing("last_layer")

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        """The projector, from features [..., c] to embeddings [..., d]."""
        raise self.missing("project")

    def missing(self, field: str) -> PruningError:
        return PruningError(
            f"this view has no {field}: pass View(..., {field}=...), or list {field!r} in the method's `needs` "
            "and prune a model"
        )


FROM_TOWER = frozenset({"cls_attention", "patch_features", "patch_keys", "last_layer", "project"})
FIELDS = frozenset(name for name, member in vars(View).items() if isinstance(member, cached_property))
