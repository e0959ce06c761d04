"""One stage of pruning, in order: tap, choose, merge, pack, mask.

    layer K-1     tap its keys on their way into the cache
    layer K       choose visual tokens by these keys and the hidden states entering layer K, merge, pack the sequence,
                  and gather mask and rotary phases
    layers K+1..  replace the decoder's mask and phases by the short ones

With K = 0 there is no layer before, and the hidden states stand in for its keys. Each of several stages starts from the
sequence, mask and phases that the previous one made.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder import newlines
from vlm_pruner.decoder.autocast import Autocast, outside_autocast
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.decoder.calibration import (
    KeySizes,
    Sizes,
    added,
    causal,
    directions,
    distance_term,
    sections_of,
)
from vlm_pruner.decoder.deepstack import DeepStack
from vlm_pruner.decoder.image_states import ImageState, check_inside, tokens_of
from vlm_pruner.decoder.layer_call import KeyTap, LayerCall
from vlm_pruner.decoder.masks import Columns, LayerMask
from vlm_pruner.decoder.packing import Packing
from vlm_pruner.decoder.positions import offset_of, prompts_of, renumbered, restarted
from vlm_pruner.decoder.refusals import check_known_arguments, check_room_is_hidden
from vlm_pruner.decoder.short_caches import Cached, ShortCaches
from vlm_pruner.decoder.towers import TowerTap
from vlm_pruner.decoder.views import Prefill
from vlm_pruner.methods.base import Pruner, Selection

Choices = dict[int, Selection]  # image number -> the tokens that stay


@dataclass
class Run:
    """The state of one forward call of the decoder, shared by its hooks.

    images:    the prompt's, and what is left of each. prefill: whether this call is one, and not a decoding step.
    length:    tokens that entered the decoder, in each row, padding included; None before the first stage.
    past:      tokens that its first layer had cached before.
    tap:       keys of the layer before the next stage. before, first: the calls of that layer and of layer 0, for
               methods that need them.
    arguments: replacements for the decoder's arguments to its layers, by name.
    positions: long [B or 1, L], for methods that renumber.
    rotary:    long [3 or 1, B or 1, T], the decoder's position ids, if they have several axes.
    sizes:     what the call's own tokens stand for, once a stage has dropped some; None before.
    past_sizes: what cached tokens stand for, once a stage has calibrated. plain: the mask of that stage, uncalibrated.
    earlier:   the prompt's choices, stage by stage, if this call continues an answer without a cache.
    made:      this call's choices, stage by stage.
    """

    images: list[ImageState] = field(default_factory=list)
    prefill: bool = False
    length: int | None = None
    past: int = 0
    tap: KeyTap | None = None
    before: LayerCall | None = None
    first: LayerCall | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    positions: Tensor | None = None
    rotary: Tensor | None = None
    sizes: Sizes | None = None
    past_sizes: KeySizes | None = None
    plain: Tensor | None = None
    deepstack: DeepStack | None = None
    earlier: list[list[Selection]] | None = None
    made: list[list[Selection]] = field(default_factory=list)

    @property
    def drops(self) -> bool:
        """Whether the next stage drops tokens."""
        return not all(image.keeps_all for image in self.images)

    @property
    def drops_at_last(self) -> bool:
        """Whether any stage that is left drops tokens."""
        return not all(image.keeps_all_to_the_end for image in self.images)

    def start(self) -> None:
        """Before the first stage: the arguments of the call before are gone."""
        self.arguments, self.sizes, self.past_sizes, self.plain = {}, None, None, None


class Stage:
    """Drops tokens before decoder layer `layer`. The state of a forward call is in its Run."""

    def __init__(self, decoder: nn.Module, method: Pruner, layer: int, caches: ShortCaches, tower: TowerTap | None):
        self.decoder = decoder
        self.method = method
        self.layer = layer
        self.caches = caches
        self.tower = tower

    def tap(self, call: LayerCall, run: Run) -> LayerCall:
        """Before layer K-1: records its keys, if tokens are to be dropped."""
        run.tap = run.before = None
        if not run.drops:
            return call
        run.tap = KeyTap(call.cache)
        if {"attend", "hidden_before"} & self.method.needs:
            run.before = call
        return call.with_cache(run.tap)

    def cut(self, call: LayerCall, run: Run) -> LayerCall:
        """Before layer K: returns its call on the short sequence."""
        rows, length = call.hidden.shape[:2]
        check_inside(run.images, rows, length)
        long_past, short_past = self._cached_tokens(call.cache, length)
        state = self.caches.recall(call.cache, rows=rows, long_past=long_past, short_past=short_past)
        run.prefill = bool(run.images) or long_past == 0
        if run.length is None:
            run.length, run.past = length, long_past if self.layer else short_past
        tap = self._take_tap(call, run)
        if tap is None and state is None:  # nothing to drop now, nothing dropped before: leave the decoder alone
            if self.method.calibrate == "size+distance":
                self._directions(call, call.phases, short_past)
            run.images = [image.skipped(self.layer) for image in run.images]
            return call
        check_room_is_hidden(call.cache, call.kwargs.get("attention_mask"), self._attention)
        mask = call.mask(long_past if self.layer else short_past, prompts_of(call, self._attention))
        if run.past_sizes is not None:
            mask = replace(mask, given=run.plain)
        short, packing = call, None
        if tap is None:
            run.images = [image.skipped(self.layer) for image in run.images]
        else:
            check_known_arguments(call)
            short, packing = self._drop(call, mask, tap, run)
        run.arguments = self._arguments(short, call, mask, packing, Cached(state, long_past, short_past), run)
        return short.updated(run.arguments)

    @property
    def _attention(self) -> str:
        return self.decoder.config._attn_implementation or ""

    def _cached_tokens(self, cache: Any, new: int) -> tuple[int, int]:
        """Tokens cached before this call: (layers below K, layers from K). Those below already have the `new` ones."""
        if cache is None:
            return 0, 0
        short_past = int(cache.get_seq_length(self.layer))
        if self.layer:
            return int(cache.get_seq_length(self.layer - 1)) - new, short_past
        state = self.caches.get(cache) if short_past else None
        return short_past + (0 if state is None else state.dropped), short_past

    def _take_tap(self, call: LayerCall, run: Run) -> KeyTap | None:
        """The keys of the layer before; None if no token is to be dropped."""
        tap, run.tap = run.tap, None
        if self.layer == 0 and run.drops:
            tap = KeyTap(None)
            tap.update(call.hidden[:, None], call.hidden[:, None])
        return tap

    # Choose, merge, pack

    def _drop(self, call: LayerCall, mask: LayerMask, tap: KeyTap, run: Run) -> tuple[LayerCall, Packing]:
        """The call on the short sequence of merged hidden states, and its packing."""
        run.images = images = [image.without(mask.hidden_tokens(image.row)) for image in run.images]
        prefill = Prefill(
            self.decoder, self.method, images, call, mask, run.past, tap, run.before, run.first, self.tower
        )
        run.before = None
        sizes = (run.sizes or Sizes.ones(call.hidden)).copy() if self.method.calibrate else None
        with outside_autocast(call.hidden):
            chosen = self._choose(prefill, run)
            packing = pack(images, chosen, mask.leading_padding(), call.hidden)
            hidden, new_positions = packing.gather(call.hidden), packing.new_positions(call.hidden.shape[1])
            for number, selection in chosen.items():
                row, span = images[number].row, images[number].span
                assert span is not None
                tokens = tokens_of(call.hidden[row], span)
                merged = newlines.merge(self.method, tokens, selection)
                now = new_positions[row].index_select(0, span.positions_of(selection.indices))
                hidden[row].index_copy_(0, now, merged)
                if sizes is not None:
                    sizes.count(row, span, selection.indices, newlines.assigned(self.method, tokens, selection))
        run.images = [
            image.reduced(chosen.get(number), self.layer, new_positions) for number, image in enumerate(images)
        ]
        if run.deepstack is not None:
            run.deepstack.shorten(packing)
        if sizes is not None:
            run.sizes = sizes.packed(packing)
        return call.with_hidden(hidden), packing

    def _choose(self, prefill: Prefill, run: Run) -> Choices:
        asked = [number for number, image in enumerate(run.images) if not image.keeps_all]
        if run.earlier is None:
            selections = newlines.choose_all(self.method, [run.images[number] for number in asked], prefill.view)
        else:
            selections = run.earlier[len(run.made)]
        run.made.append(selections)
        return dict(zip(asked, selections, strict=True))

    # Mask

    def _arguments(
        self, short: LayerCall, call: LayerCall, mask: LayerMask, packing: Packing | None, cached: Cached, run: Run
    ) -> dict[str, Any]:
        """Replacements for the arguments of the layers from K on. Also stores the state that later calls need."""
        columns = cached.columns(packing, call.hidden)
        arguments: dict[str, Any] = {
            "attention_mask": self._short_mask(
                short, mask, packing, columns if self.layer else cached.in_short(columns)
            ),
            # FlashAttention takes position ids with gaps for several packed sequences and attends wrongly. The rotary
            # phases, still those of the long sequence, are in position_embeddings.
            "position_ids": None if mask.prompts is None else restarted(mask.prompts, packing),
        }
        lost = None
        if packing is not None:
            arguments["position_embeddings"] = tuple(packing.gather(part) for part in call.phases)
        if self.method.renumber:
            run.positions, lost = renumbered(call, mask, packing, cached.state, self._positions(call, run))
            positions = run.positions.clamp(min=0)
            if run.rotary is not None:
                positions = positions.expand(3, -1, -1)
            rotary = self.decoder.get_submodule("rotary_emb")
            arguments["position_embeddings"] = rotary(short.hidden, position_ids=positions)
        keys = None
        if self.method.calibrate:
            plain, phases = arguments["attention_mask"], arguments.get("position_embeddings", call.phases)
            arguments["attention_mask"], keys = self._calibrated(plain, short, phases, cached, run)
            run.plain = None if mask.given is None and columns.valid is None else plain
        if packing is not None:
            length = call.hidden.shape[1]
            offset = None if run.rotary is None else offset_of(run.rotary, cached.long_past + length)
            after = cached.after(columns, length - short.hidden.shape[1], lost=lost, offset=offset, sizes=keys)
            self.caches.remember(call.cache, after)
        elif run.sizes is not None and cached.state is not None:
            self.caches.remember(call.cache, replace(cached.state, sizes=keys))
        return arguments

    def _positions(self, call: LayerCall, run: Run) -> Tensor:
        """Position ids [B or 1, T] before this stage, of several axes the first."""
        if run.positions is not None:
            return run.positions
        positions: Tensor = call.kwargs["position_ids"] if run.rotary is None else run.rotary[0]
        return positions

    def _short_mask(self, call: LayerCall, mask: LayerMask, packing: Packing | None, columns: Columns) -> Any:
        static = getattr(call.cache, "is_compileable", False)
        width = int(call.cache.layers[self.layer].max_cache_len) if static else 0
        if mask.given is not None:
            return mask.gathered(packing, columns, width if mask.given.ndim == 4 else 0)
        if self.method.calibrate:
            return causal(columns.past, call.hidden, columns.valid, width)
        if columns.valid is None:  # the long sequence needed no mask, and all rows are still equally long
            return None
        return self._causal_mask(call.hidden, columns.valid, call.cache)

    # Calibration

    def _calibrated(
        self, plain: Tensor | None, short: LayerCall, phases: tuple[Tensor, ...], cached: Cached, run: Run
    ) -> tuple[Tensor, KeySizes]:
        """The mask `plain` with calibration's terms, and what the keys stand for."""
        past = run.past_sizes if cached.state is None else cached.state.sizes
        run.past_sizes = past = KeySizes.none(short.hidden) if past is None else past
        own = run.sizes or Sizes.ones(short.hidden)
        keys = past.with_own(cached.short_past, own, self.method.size_power)
        terms = keys.logs[:, None]
        if self.method.calibrate == "size+distance":
            every = self._directions(short, phases, cached.short_past)
            terms = terms + distance_term(every[:, cached.short_past :], every, own.behind | past.pruned[:, None])
        return added(plain, terms, Autocast(short.hidden).dtype), keys

    def _directions(self, call: LayerCall, phases: tuple[Tensor, ...], short_past: int) -> Tensor:
        own = directions(phases, sections_of(self.decoder.config))
        return self.caches.with_directions(call.cache, short_past, own)

    def _causal_mask(self, hidden: Tensor, keys: Tensor, cache: Any) -> Any:
        """Mask for the layers from K on, sized against their own cache. keys: bool [B, keys], False for hidden ones."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=keys,
            position_ids=None,
            layer_idx=self.layer,
            **cache_argument(cache),
        )


def pack(images: list[ImageState], chosen: Choices, padding: list[int], like: Tensor) -> Packing:
    """Keeps text and chosen tokens. Drops left padding too, so that rows are padded only to match each other.

    padding: number of tokens on each row's left that no token attends to. like: [B, T, d], the sequence.
    """
    rows, length = like.shape[:2]
    keep = torch.ones(rows, length, dtype=torch.bool, device=like.device)
    counts = [length - count for count in padding]
    for row, count in enumerate(padding):
        keep[row, :count] = False
    for number, image in enumerate(images):
        selection = chosen.get(number)
        if selection is not None or image.whole is not None:
            counts[image.row] -= _take_out(keep[image.row], image, selection, padding[image.row])
    return Packing.of(keep, counts)


def _take_out(keep: Tensor, image: ImageState, selection: Selection | None, padding: int) -> int:
    """Sets `keep` [T] to the chosen tokens of an image. Returns how many tokens go beside the row's padding."""
    whole = image.whole or image.span
    assert whole is not None
    keep[whole.index(keep.device)] = False
    gone = whole.length if not padding else int((whole.positions() >= padding).sum())
    if image.span is None:
        return gone
    if selection is None:
        keep[image.span.index(keep.device)] = True
        return gone - image.span.length
    keep.index_fill_(0, image.span.positions_of(selection.indices), True)
    return gone - len(selection.indices)
