"""One stage of pruning: the layer before which tokens are dropped, and the layers that then run on the short sequence.

    layer K-1     its keys are read on their way into the cache; with the hidden states entering layer K they decide
    layer K       chosen visual tokens stay, are merged, and the sequence is packed; mask and rotary phases follow
    layers K+1..  get the short mask and phases in place of the decoder's own

With K = 0 there is no layer before; the hidden states stand in for its keys.

A method with several stages has one Stage for each. Their hooks run in order, so what is said here of the decoder's
sequence, mask and phases means, for a later stage, those that the stage before has made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.attention_rows import LayerCall
from vlm_pruner.decoder.cache_names import cache_argument, cache_of, with_cache
from vlm_pruner.decoder.packing import Packing, join_keys, visible_keys
from vlm_pruner.decoder.refusals import check_room_is_hidden
from vlm_pruner.decoder.short_caches import ShortCache, ShortCaches
from vlm_pruner.decoder.shortening import Task, check_inside, shorten
from vlm_pruner.decoder.towers import TowerTap
from vlm_pruner.decoder.views import Scene
from vlm_pruner.methods.base import Pruner

Hook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any]


class _KeyTap:
    """Stands in for a cache (or for none) during one layer, and notes the keys that the layer adds.

    They are the cache's entries (after rotary embedding), but whole and in order for every kind of cache, static or
    quantised, and there without a cache too.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.keys: Tensor | None = None  # [B, key heads, T, head size]
        self.all_keys: Tensor | None = None  # the same behind those of earlier calls, maybe with unused room behind

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        held = (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)
        self.all_keys = held[0]
        return held

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


@dataclass(frozen=True)
class Cut:
    """What a stage made of a forward call.

    tasks: what is left of each image. prefill: whether this was one, and not a step of decoding.
    rows: batch size. before, after: tokens that entered and that are left in each row, padding included.
    packing: how the sequence was packed; None if it stayed as it was.
    """

    tasks: list[Task]
    prefill: bool
    rows: int
    before: int
    after: int
    packing: Packing | None


class Stage(threading.local):
    """Drops tokens before decoder layer `layer`. `tasks` are those of the next forward call; `report` gets each Cut.

    caches, tower: shared by all threads. What belongs to a forward call is every thread's own, so that several may run
    the model at once. (A threading.local is initialised anew, with the same arguments, in every thread.)
    """

    def __init__(
        self,
        decoder: nn.Module,
        method: Pruner,
        layer: int,
        report: Callable[[Cut], None],
        caches: ShortCaches,
        earlier: Stage | None = None,
        tower: TowerTap | None = None,
    ) -> None:
        self.decoder = decoder
        self.method = method
        self.layer = layer
        self.tasks: list[Task] = []
        self.tower = tower  # for methods that ask what the vision tower has seen
        self.first: LayerCall | None = None  # the call of decoder layer 0, for methods that ask to see it
        self._report = report
        self._earlier = earlier
        self._positions: Tensor | None = None  # long [B or 1, L], of the call that is running, for `renumber`
        self.caches = caches
        self._tap: _KeyTap | None = None
        self._before: LayerCall | None = None  # the call of the layer before
        self._replacements: dict[str, Any] | None = None  # layer arguments, in the forward call that is running

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Decoder layers and what is to run before each, in order."""
        layers = list(self.decoder.get_submodule("layers").children())
        hooks = [(layers[self.layer - 1], self._before_last_long_layer)] if self.layer else []
        hooks.append((layers[self.layer], self._before_first_short))
        return hooks + [(layer, self._before_short_layer) for layer in layers[self.layer + 1 :]]

    def forget(self) -> None:
        """Drop what belongs to the forward call that is running, or was to come."""
        self.tasks = []
        self.first = self._tap = self._before = self._replacements = self._positions = None

    # Hooks, in the order in which they run. Each gets a layer's arguments and may return others.

    def _before_last_long_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._tap = self._replacements = self._before = None
        if all(task.keeps_all for task in self.tasks):
            return None
        self._tap = _KeyTap(cache_of(kwargs))
        if "attend" in self.method.needs:
            self._before = layer_call(layer, args, kwargs, self.layer - 1)
        return args, with_cache(kwargs, self._tap)

    def _before_first_short(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tasks, self.tasks = self.tasks, []
        hidden, cache = hidden_states(args, kwargs), cache_of(kwargs)
        tap = self._take_tap(hidden, tasks)
        rows, length = hidden.shape[:2]
        check_inside(tasks, rows, length)
        full, held = self._cached_tokens(cache, length)
        state = self.caches.recall(cache, rows=rows, full=full, held=held)
        gap = full - held
        prefill = bool(tasks) or full == 0
        self._replacements = None
        if tap is None and state is None:  # nothing to drop, nothing was dropped: the decoder is left alone
            left = [task.keep_all(self.layer) for task in tasks]
            self._report(Cut(left, prefill, rows, length, length, None))
            return None
        check_room_is_hidden(cache, kwargs.get("attention_mask"), self.decoder.config._attn_implementation)
        full = full if self.layer else held  # what the mask that came with this call counts by
        visible = visible_keys(kwargs.get("attention_mask"), rows, full + length)
        past, new = (None, None) if visible is None else (visible[:, :full], visible[:, full:])
        self._replacements, packing = {}, None
        if tap is not None:
            scene = self._scene(LayerCall(layer, hidden, kwargs["position_embeddings"], visible), tap, full, tasks)
            short = shorten(hidden, new, tasks, self.method, self.layer, scene.view)
            hidden, packing, tasks = short.hidden, short.packing, short.tasks
            new = packing.valid
            phases = tuple(packing.gather(part) for part in kwargs["position_embeddings"])
            self._replacements["position_embeddings"] = phases
        else:
            tasks = [task.keep_all(self.layer) for task in tasks]
        keys = join_keys(state.visible if state else past, new, rows, held, hidden.shape[1])
        lost = self._renumber(hidden, kwargs, packing, state) if self.method.renumber else None
        self._see(cache, hidden, ShortCache(keys, gap + length - hidden.shape[1], lost))
        self._report(Cut(tasks, prefill, rows, length, hidden.shape[1], packing))
        return with_hidden(args, {**kwargs, **self._replacements}, hidden)

    def _before_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self._replacements is None else (args, {**kwargs, **self._replacements})

    def _take_tap(self, hidden: Tensor, tasks: list[Task]) -> _KeyTap | None:
        """The keys of the layer before; None if no token is to be dropped."""
        tap, self._tap = self._tap, None
        if self.layer == 0 and not all(task.keeps_all for task in tasks):
            tap = _KeyTap(None)
            tap.update(hidden[:, None], hidden[:, None])
        return tap

    def _cached_tokens(self, cache: Any, new: int) -> tuple[int, int]:
        """Tokens in the cache before this call: in the layers before K, which have added its `new` ones, and from K."""
        if cache is None:
            return 0, 0
        if self.layer == 0:
            held, state = int(cache.get_seq_length(0)), self.caches.get(cache)
            return held + (0 if state is None else state.gap), held
        return int(cache.get_seq_length(self.layer - 1)) - new, int(cache.get_seq_length(self.layer))

    def _scene(self, now: LayerCall, tap: _KeyTap, past: int, tasks: list[Task]) -> Scene:
        assert tap.keys is not None and tap.all_keys is not None, "the layer before the pruned one handed on no keys"
        before, self._before = self._before, None
        first, self.first = self.first, None
        return Scene(
            self.decoder, self.method.needs, tasks, now, tap.keys, tap.all_keys, past, before, first, self.tower
        )

    def _renumber(
        self, hidden: Tensor, kwargs: dict[str, Any], packing: Packing | None, state: ShortCache | None
    ) -> Tensor:
        """Sets phases for consecutive positions; returns how many visual tokens each row has lost by now, [B]."""
        assert self._replacements is not None
        earlier = None if self._earlier is None else self._earlier._positions
        positions = kwargs["position_ids"] if earlier is None else earlier
        positions = positions.expand(hidden.shape[0], -1)
        lost = positions.new_zeros(hidden.shape[0])
        if state is not None:
            lost = lost + (state.gap if state.lost is None else state.lost.to(lost))
        if packing is not None:
            kept = packing.gather(positions[..., None])[..., 0]
            padding = 0 if packing.valid is None else (~packing.valid).sum(dim=1, keepdim=True).to(kept)
            rank = torch.arange(kept.shape[1], device=kept.device) - padding  # below 0 for padding, which nobody sees
            first = kept.gather(1, kept.new_zeros(kept.shape[0], 1) + padding)
            ranked, last = first + rank, positions[:, -1]
            lost, positions = lost + (last - ranked[:, -1]), ranked - lost[:, None]
        else:
            positions = positions - lost[:, None]
        self._positions = positions
        phases = self.decoder.get_submodule("rotary_emb")(hidden, position_ids=positions.clamp(min=0))
        self._replacements["position_embeddings"] = phases
        return lost

    def _see(self, cache: Any, hidden: Tensor, state: ShortCache) -> None:
        """Sets what the layers from K on may look at, in this call and (noted for the cache) in later ones."""
        assert self._replacements is not None
        self.caches.remember(cache, state)
        self._replacements["attention_mask"] = self._causal_mask(hidden, state.visible, cache)
        # With gaps in them, FlashAttention takes position ids for several packed sequences and attends wrongly.
        # The rotary phases, which stay those of the long sequence, are in position_embeddings.
        self._replacements["position_ids"] = None

    def _causal_mask(self, hidden: Tensor, keys: Tensor | None, cache: Any) -> Any:
        """Mask for the layers from K on, sized against their own cache. keys: bool [B, keys]; None: all visible."""
        from transformers.masking_utils import create_causal_mask

        if keys is None and getattr(cache, "is_compileable", False):
            # A static cache hands on its unused room too. FlashAttention is told by the mask alone where that begins.
            keys = hidden.new_ones(len(hidden), int(cache.get_seq_length(self.layer)) + hidden.shape[1]).bool()
        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=keys,
            position_ids=None,
            layer_idx=self.layer,
            **cache_argument(cache),
        )


def hidden_states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The hidden states among a layer's arguments, [B, T, d]."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with other hidden states, wherever they stood."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def layer_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> LayerCall:
    """What the layer numbered `index` is about to run on; its cache has not got the new tokens yet."""
    hidden, cache = hidden_states(args, kwargs), cache_of(kwargs)
    past = 0 if cache is None else int(cache.get_seq_length(index))
    visible = visible_keys(kwargs.get("attention_mask"), hidden.shape[0], past + hidden.shape[1])
    return LayerCall(layer, hidden, kwargs["position_embeddings"], visible)
