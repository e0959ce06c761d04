"""A method's view of an image in a running decoder, computed on access."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.attention_rows import rows_before, rows_now
from vlm_pruner.decoder.autocast import Autocast
from vlm_pruner.decoder.decoders import final_norm
from vlm_pruner.decoder.image_states import ImageState, tokens_of
from vlm_pruner.decoder.layer_call import KeyTap, LayerCall
from vlm_pruner.decoder.masks import LayerMask
from vlm_pruner.decoder.positions import prompts_of
from vlm_pruner.decoder.towers import TowerOutput, TowerTap
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.methods.view import FIELDS, FROM_TOWER, AttentionRows, View

SUPPLIED = FIELDS - FROM_TOWER  # without a vision tower
FROM_FIRST_LAYER = FROM_TOWER | {"embeddings", "text_embeddings"}  # pictures are identified by their embeddings
FROM_QUESTION = frozenset({"text_hidden", "text_keys", "text_embeddings", "attend", "attend_next"})


@dataclass(frozen=True)
class Prefill:
    """A prefill at the moment of choice: the batch before the pruned layer, with its images.

    images: all images of all rows. now: the call of the pruned layer; mask: its mask.
    past:   tokens that layer 0 had cached before. tap: the keys of the layer before. before, first: the calls of that
            layer and of layer 0, if the method needs them. tower: what the vision tower has seen, likewise.
    """

    decoder: nn.Module
    method: Pruner
    images: list[ImageState]
    now: LayerCall
    mask: LayerMask
    past: int
    tap: KeyTap
    before: LayerCall | None
    first: LayerCall | None
    tower: TowerTap | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "as_called", Autocast(self.now.hidden))

    as_called: Autocast = None  # type: ignore[assignment]  # how the caller runs the model's code

    @property
    def keys(self) -> tuple[Tensor, Tensor]:
        """[B, key heads, T, head size] of the layer before; and [B, key heads, >= past + T, head size], all cached."""
        if self.tap.keys is None or self.tap.all_keys is None:
            raise PruningError(
                f"layer {self.now.index - 1} of {type(self.decoder).__name__} handed no keys to its cache; pruning "
                "reads them there: use layer=0, or another model"
            )
        return self.tap.keys, self.tap.all_keys

    def view(self, image: ImageState) -> PrefillView:
        return PrefillView(self, image)

    def text_after(self, row: int, span: VisualSpan, spans: list[VisualSpan], mask: LayerMask) -> Tensor:
        """Positions of the text tokens after an image that may attend to it, long [T]: not visual, not hidden.

        spans: of all images in the row, in the sequence that `mask` is of.
        """
        is_text = mask.shown(row) & mask.looking_at(row, span.positions())
        for other in spans:
            is_text[other.positions()] = False
        is_text[: span.stop] = False
        return is_text.nonzero().squeeze(1)


class PrefillView(View):
    """Read-only: the tensors may be views of the batch itself."""

    def __init__(self, prefill: Prefill, image: ImageState) -> None:
        assert image.span is not None
        here, row = prefill.now.hidden, image.row
        keys = tokens_of(prefill.keys[0][row].transpose(0, 1), image.span).flatten(1)
        start = image.span.start
        if prefill.mask.given is not None:
            start = int(prefill.mask.shown(row)[:start].sum())
        super().__init__(
            tokens_of(here[row], image.span), keys.to(here.device), image.span.layout, image.budget, start=start
        )
        self._prefill, self._image, self._span = prefill, image, image.span

    @cached_property
    def hidden_before(self) -> Tensor:
        if self._prefill.before is None:
            raise self.missing("hidden_before")
        return tokens_of(self._prefill.before.hidden[self._image.row], self._span).to(self.hidden.device)

    @cached_property
    def _text(self) -> Tensor:
        """Positions of the text after the image, long [T]."""
        prefill = self._prefill
        spans = [one.span for one in prefill.images if one.row == self._image.row and one.span is not None]
        return prefill.text_after(self._image.row, self._span, spans, prefill.mask)

    @cached_property
    def text_hidden(self) -> Tensor:
        return self._here(self._prefill.now.hidden[self._image.row], self._text)

    @cached_property
    def text_keys(self) -> Tensor:
        return self._here(self._prefill.keys[0][self._image.row].transpose(0, 1), self._text).flatten(1)

    @cached_property
    def final_norm(self) -> Callable[[Tensor], Tensor]:
        norm = final_norm(self._prefill.decoder)
        assert norm is not None, "checked when the context was made"
        return self._as_called(norm)

    @cached_property
    def embeddings(self) -> Tensor:
        return self._shown(self._all_embeddings)

    @property
    def _all_embeddings(self) -> Tensor:
        """[N, d], of the whole image, including tokens that the mask hides."""
        first = self._first("embeddings")
        return self._here(first.hidden[self._image.row], self._image.original.positions())

    @cached_property
    def text_embeddings(self) -> Tensor:
        first, row = self._first("text_embeddings"), self._image.row
        spans = [one.original for one in self._prefill.images if one.row == row]
        mask = first.mask(self._prefill.past, prompts_of(first, self._prefill.decoder.config._attn_implementation))
        return self._here(first.hidden[row], self._prefill.text_after(row, self._image.original, spans, mask))

    @cached_property
    def attend(self) -> AttentionRows:
        before, mask = self._prefill.before, self._prefill.mask
        if before is None:
            raise self.missing("attend")
        keys = self._prefill.keys[1][self._image.row]

        def rows(positions: Tensor) -> Tensor:
            with self._prefill.as_called():
                own = before.mask(mask.past, mask.prompts)
                return rows_before(before, own, self._image.row, positions, keys)

        return self._attention(rows)

    @cached_property
    def attend_next(self) -> AttentionRows:
        prefill = self._prefill
        if "attend_next" not in prefill.method.needs:
            raise self.missing("attend_next")
        if prefill.mask.past:
            raise PruningError(
                "this method reads the attention of a layer that has not run yet, which works for fresh caches only: "
                "give the whole conversation in one prompt"
            )

        def rows(positions: Tensor) -> Tensor:
            with prefill.as_called():
                own = prefill.now.mask(prefill.mask.past, prefill.mask.prompts)  # calibrated by an earlier stage
                return rows_now(prefill.now, own, self._image.row, positions)

        return self._attention(rows)

    def _attention(self, rows: Callable[[Tensor], Tensor]) -> AttentionRows:
        """Attention of text tokens, by index, to the image. rows: computes it from positions, long [Q], to all keys."""
        positions, past = self._span.positions(), self._prefill.mask.past

        def attention(queries: Tensor) -> Tensor:
            if not len(self._text):
                raise PruningError(
                    "the prompt ends with the image: this method needs text after it that attends to the image"
                )
            found = rows(self._text[queries.cpu()])
            return found[..., (positions + past).to(found.device)].to(self._prefill.now.hidden.device)

        return attention

    # From the vision tower

    @cached_property
    def cls_attention(self) -> Tensor:
        return self._shown(self._picture.cls_attention().T).T

    @cached_property
    def patch_features(self) -> Tensor:
        return self._shown(self._picture.states[1:])

    @cached_property
    def patch_keys(self) -> Tensor:
        return self._shown(self._picture.patch_keys())

    @cached_property
    def last_layer(self) -> tuple[Tensor, Tensor]:
        query, keys = self._picture.last_layer()
        return query.to(self.hidden.device), torch.cat([keys[:1].to(self.hidden.device), self._shown(keys[1:])])

    @cached_property
    def project(self) -> Callable[[Tensor], Tensor]:
        picture = self._picture
        project = self._as_called(picture.tower.projector)
        return lambda features: project(features.to(picture.states)).to(self.hidden)

    @cached_property
    def _picture(self) -> TowerOutput:
        if self._prefill.tower is None:
            raise self.missing("features of a vision tower")
        with self._prefill.as_called():
            return self._prefill.tower.find(self._all_embeddings)

    # Helpers

    def _first(self, field: str) -> LayerCall:
        if self._prefill.first is None:
            raise self.missing(field)
        return self._prefill.first

    def _here(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """The rows of `tokens` at `positions`, on the hidden states' device."""
        return tokens[positions.to(tokens.device)].to(self.hidden.device)

    def _shown(self, tokens: Tensor) -> Tensor:
        """Restricts rows of all the image's tokens to those that the mask does not hide."""
        tokens = tokens.to(self.hidden.device)
        return tokens if self._image.shown is None else tokens[self._image.shown.to(tokens.device)]

    def _as_called(self, module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Any]:
        def run(tokens: Tensor) -> Any:
            with self._prefill.as_called():
                return module(tokens)

        return run
