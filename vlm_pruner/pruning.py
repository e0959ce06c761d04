"""What happens inside a running decoder. The only code that prunes one, whichever door it is reached through.

Forward pre-hooks do it all, so no transformers code is copied or replaced:

    layer K-1     its keys are read on their way into the cache; with the hidden states entering layer K they decide
    layer K       chosen visual tokens stay, are merged, and the sequence is packed; mask and rotary phases follow
    layers K+1..  get the short mask and phases in place of the decoder's own (and DeepStack's features, if there are)

While decoding, the layers from K on hold a shorter cache than the ones before, and get masks of that length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from vlm_pruner import adapters
from vlm_pruner.deepstack import DeepStack
from vlm_pruner.errors import PruningError
from vlm_pruner.layout import VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.packing import join_keys, visible_keys
from vlm_pruner.receipts import Receipt
from vlm_pruner.short_caches import ShortCache, ShortCaches
from vlm_pruner.shortening import Task, check_inside, image_receipt, plan, shorten

_ACTIVE: WeakSet[nn.Module] = WeakSet()  # decoders being pruned now


class PruningWarning(UserWarning):
    """Pruning was asked for and did nothing."""


class _KeyTap:
    """Stands in for a cache (or for none) during one layer, and notes the keys that the layer adds.

    They are the cache's entries (after rotary embedding), but whole and in order for every kind of cache, static or
    quantised, and there without a cache too.
    """

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self.keys: Tensor | None = None  # [B, key heads, T, head size]

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.keys = keys
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class DecoderPruning:
    """Context manager: while it is open, a transformers decoder drops visual tokens before layer `method.layer`.

    Announce each prefill's visual tokens with `expect`; `receipts` then says what was kept. It may be closed and
    opened again around single forward calls, also from inside the decoder's own forward: what decoding must know of
    a shortened cache is kept here, and nothing on the modules.
    """

    def __init__(self, decoder: nn.Module, method: Pruner, *, released_rounding: str = "round") -> None:
        _check_decoder(decoder, method)
        self.decoder = decoder
        self.method = method
        self.released_rounding = released_rounding
        self.receipts: list[Receipt] = []
        self._hooks: list[Any] = []
        self._caches = ShortCaches()
        self._expected: list[Task] = []
        self._tap: _KeyTap | None = None
        self._replacements: dict[str, Any] | None = None  # layer arguments, in the forward call that is running
        self._deepstack: DeepStack | None = None
        self._warned = False

    def __enter__(self) -> DecoderPruning:
        if self.decoder in _ACTIVE:
            raise RuntimeError("this decoder is being pruned already; leave the other pruning context first")
        _ACTIVE.add(self.decoder)
        k, layers = self.method.layer, self.decoder.layers
        hooks: list[tuple[nn.Module, Callable[..., Any]]] = [
            (self.decoder, self._before_decoder),  # not called if this is opened in the decoder's own forward
            (layers[k - 1], self._before_last_long_layer),
            (layers[k], self._before_first_short_layer),
        ]
        hooks += [(layer, self._before_short_layer) for layer in layers[k + 1 :]]
        self._hooks = [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hooks]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._expected = []
        self._tap = self._replacements = self._deepstack = None
        _ACTIVE.discard(self.decoder)

    def expect(self, spans: list[list[VisualSpan]]) -> None:
        """Visual spans of the next forward call, one list per batch row; empty lists where there are none.

        Raises PruningError, before the model runs, if a span has fewer tokens than are to be kept.
        """
        self._expected = plan(spans, self.method, self.released_rounding)

    # Hooks, in the order in which they run. Each gets a module's arguments and may return others.

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._deepstack = None
        features = kwargs.get("deepstack_visual_embeds")
        if features is None or all(task.keeps_all for task in self._expected):
            return None
        k = self.method.layer
        self._deepstack = DeepStack(kwargs["visual_pos_masks"], features[k:])
        return args, {**kwargs, "deepstack_visual_embeds": features[:k]}

    def _before_last_long_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._tap = self._replacements = None
        if all(task.keeps_all for task in self._expected):
            return None
        self._tap = _KeyTap(kwargs.get("past_key_values"))
        return args, {**kwargs, "past_key_values": self._tap}

    def _before_first_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tasks, self._expected = self._expected, []
        tap, self._tap = self._tap, None
        hidden = args[0] if args else kwargs["hidden_states"]
        rows, length = hidden.shape[:2]
        check_inside(tasks, rows, length)
        full, held = self._cached_tokens(kwargs.get("past_key_values"), length)
        state = self._caches.recall(kwargs.get("past_key_values"), rows=rows, full=full, held=held)
        dense = tap is None and state is None  # nothing to drop, nothing was dropped: the decoder is left alone
        selections: list[Selection | None] = [None] * len(tasks)
        if not dense:
            visible = visible_keys(kwargs.get("attention_mask"), rows, full + length)
            past, new = (None, None) if visible is None else (visible[:, :full], visible[:, full:])
            self._replacements = {}
            if tap is not None:
                assert tap.keys is not None, "the layer before the pruned one did not hand its keys to the cache"
                short = shorten(hidden, tap.keys, new, tasks, self.method)
                hidden, new, selections = short.hidden, short.packing.valid, short.selections
                phases = tuple(short.packing.gather(part) for part in kwargs["position_embeddings"])
                self._replacements["position_embeddings"] = phases
                if self._deepstack is not None:
                    self._deepstack.shorten(short.packing)
            keys = join_keys(state.visible if state else past, new, rows, held, hidden.shape[1])
            self._see(kwargs.get("past_key_values"), hidden, keys, full + length - held - hidden.shape[1])
        if tasks or full == 0:  # a prefill
            self._write_receipt(tasks, selections, rows, length, hidden.shape[1])
        return None if dense else _with(args, {**kwargs, **(self._replacements or {})}, hidden)

    def _cached_tokens(self, cache: Any, new: int) -> tuple[int, int]:
        """Tokens in the cache before this call: in the layers before K, which have added its `new` ones, and from K."""
        if cache is None:
            return 0, 0
        return int(cache.get_seq_length(self.method.layer - 1)) - new, int(cache.get_seq_length(self.method.layer))

    def _see(self, cache: Any, hidden: Tensor, keys: Tensor | None, gap: int) -> None:
        """Sets what the layers from K on may look at, in this call and (noted for the cache) in later ones."""
        assert self._replacements is not None
        self._caches.remember(cache, ShortCache(keys, gap))
        self._replacements["attention_mask"] = self._causal_mask(hidden, keys, cache)
        # With gaps in them, FlashAttention takes position ids for several packed sequences and attends wrongly.
        # The rotary phases, which stay those of the long sequence, are in position_embeddings.
        self._replacements["position_ids"] = None

    def _before_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._replacements is None:
            return None
        kwargs = {**kwargs, **self._replacements}
        if self._deepstack is None:
            return args, kwargs
        return _with(args, kwargs, self._deepstack.add(args[0] if args else kwargs["hidden_states"]))

    def _causal_mask(self, hidden: Tensor, keys: Tensor | None, cache: Any) -> Any:
        """Mask for the layers from K on, sized against their own cache. keys: bool [B, keys]; None: all visible."""
        from transformers.masking_utils import create_causal_mask

        return create_causal_mask(
            config=self.decoder.config,
            inputs_embeds=hidden,
            attention_mask=keys,
            past_key_values=cache,
            position_ids=None,
            layer_idx=self.method.layer,
        )

    def _write_receipt(
        self, tasks: list[Task], selections: list[Selection | None], rows: int, before: int, after: int
    ) -> None:
        method = self.method
        images = [image_receipt(task, chosen, method) for task, chosen in zip(tasks, selections, strict=True)]
        self.receipts.append(Receipt(method.name, method.config(), method.layer, rows, before, after, images))
        if not images and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(method).__name__} is on, but no visual tokens were found in this prompt: nothing was pruned",
                PruningWarning,
                stacklevel=2,
            )


def _with(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's arguments with other hidden states, wherever they stood."""
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})


def _check_decoder(decoder: nn.Module, method: Pruner) -> None:
    if not isinstance(method, Pruner):
        raise PruningError(
            f"method={method!r} is not a pruning method; use for example CentrifugalPruner(keep_tokens=64)"
        )
    layers = len(decoder.layers)
    if method.layer >= layers:
        raise PruningError(
            f"layer={method.layer}, but the decoder's last layer is {layers - 1}; use layer=1 to layer={layers - 1}"
        )
    config = decoder.config
    kinds = getattr(config, "layer_types", None)
    windowed = kinds[method.layer :] if kinds else ["sliding_attention"] * bool(getattr(config, "sliding_window", None))
    if any(kind != "full_attention" for kind in windowed):
        raise PruningError(
            f"{type(decoder).__name__} uses attention other than full attention from layer {method.layer} on; "
            "a window over a pruned sequence is not supported"
        )


class Pruning:
    """What `prune` gives. Open it with `with`; it can be opened again after it was closed, but not inside itself."""

    def __init__(self, model: nn.Module, method: Pruner) -> None:
        self.model = model
        self.method = method
        self._adapter = adapters.find(model)
        self._decoder_pruning = DecoderPruning(
            self._adapter.decoder, method, released_rounding=self._adapter.released_rounding
        )
        self._adapter.check(method)
        self._hook: Any = None

    @property
    def receipts(self) -> list[Receipt]:
        """One receipt per prefill, oldest first."""
        return self._decoder_pruning.receipts

    def __enter__(self) -> Pruning:
        self._decoder_pruning.__enter__()
        self._hook = self._adapter.entry.register_forward_pre_hook(self._announce, with_kwargs=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._hook.remove()
        self._decoder_pruning.__exit__(*exception)

    def _announce(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._decoder_pruning.expect(self._adapter.spans(args, kwargs))


def prune(model: nn.Module, method: Pruner) -> Pruning:
    """Context in which `model`, a supported transformers vision-language model, runs pruned.

        with prune(model, CentrifugalPruner(keep_tokens=64)) as pruning:
            out = model.generate(**inputs)
        pruning.receipts[-1].images[0].indices

    Raises UnsupportedModelError for a model that no adapter knows, and PruningError for a setting that does not fit
    the model; both before anything is changed.
    """
    return Pruning(model, method)
