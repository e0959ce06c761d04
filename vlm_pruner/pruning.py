"""What happens inside a running decoder. The only code that prunes one, whichever door it is reached through.

Forward pre-hooks do it all, so no transformers code is copied or replaced:

    layer K-1     its keys are read on their way into the cache; with the hidden states entering layer K they decide
    layer K       chosen visual tokens stay, are merged, and the sequence is packed; mask and rotary phases follow
    layers K+1..  get the short mask and phases in place of the decoder's own

While decoding, the layers from K on hold a shorter cache than the ones before, and get masks of that length.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vlm_pruner import adapters
from vlm_pruner.errors import PruningError
from vlm_pruner.layout import VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.packing import Packing, join_keys, visible_keys
from vlm_pruner.receipts import ImageReceipt, Receipt
from vlm_pruner.short_caches import ShortCache, ShortCaches

_ACTIVE: WeakSet[nn.Module] = WeakSet()  # decoders being pruned now


class PruningWarning(UserWarning):
    """Pruning was asked for and did nothing."""


@dataclass(frozen=True)
class _Task:
    """One visual span of a row, and the number of its tokens to keep."""

    row: int
    span: VisualSpan
    budget: int

    @property
    def keeps_all(self) -> bool:
        return self.budget == self.span.length


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
        self._expected: list[list[_Task]] | None = None
        self._tap: _KeyTap | None = None
        self._replacements: dict[str, Any] | None = None  # layer arguments, in the forward call that is running
        self._warned = False

    def __enter__(self) -> DecoderPruning:
        if self.decoder in _ACTIVE:
            raise RuntimeError("this decoder is being pruned already; leave the other pruning context first")
        _ACTIVE.add(self.decoder)
        k, layers = self.method.layer, self.decoder.layers
        hooks = [(layers[k - 1], self._before_last_long_layer), (layers[k], self._before_first_short_layer)]
        hooks += [(layer, self._before_short_layer) for layer in layers[k + 1 :]]
        self._hooks = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer, hook in hooks]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._expected = self._tap = self._replacements = None
        _ACTIVE.discard(self.decoder)

    def expect(self, spans: list[list[VisualSpan]]) -> None:
        """Visual spans of the next forward call, one list per batch row; empty lists where there are none.

        Raises PruningError, before the model runs, if a span has fewer tokens than are to be kept.
        """
        self._expected = [
            [self._task(row, number, span) for number, span in enumerate(row_spans)]
            for row, row_spans in enumerate(spans)
        ]

    def _task(self, row: int, number: int, span: VisualSpan) -> _Task:
        if number > 0 and self.method.first_image_only:
            return _Task(row, span, span.length)
        return _Task(row, span, self.method.budget(span.length, self.released_rounding))

    # Hooks, in the order in which they run. Each gets a decoder layer's arguments and may return others.

    def _before_last_long_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._tap = self._replacements = None
        if self._expected is None or all(task.keeps_all for row in self._expected for task in row):
            return None
        self._tap = _KeyTap(kwargs.get("past_key_values"))
        return args, {**kwargs, "past_key_values": self._tap}

    def _before_first_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        expected, self._expected = self._expected, None
        tap, self._tap = self._tap, None
        hidden = args[0] if args else kwargs["hidden_states"]
        rows, length = hidden.shape[:2]
        cache = kwargs.get("past_key_values")
        full = 0 if cache is None else int(cache.get_seq_length(self.method.layer - 1)) - length
        held = 0 if cache is None else int(cache.get_seq_length(self.method.layer))
        state = self._caches.recall(cache, rows=rows, full=full, held=held)
        tasks = self._checked_tasks(expected, rows, length)

        if tap is None and state is None:  # nothing to drop, nothing was dropped: the decoder is left alone
            if tasks or full == 0:
                self._write_receipt(tasks, [None] * len(tasks), rows, length, length)
            return None

        visible = visible_keys(kwargs.get("attention_mask"), rows, full + length)
        past = state.visible if state else None if visible is None else visible[:, :full]
        new = None if visible is None else visible[:, full:]
        replacements: dict[str, Any] = {}
        if tap is not None:
            assert tap.keys is not None, "the layer before the pruned one did not hand its keys to the cache"
            hidden, packing, selections = self._shorten(hidden, tap.keys, new, tasks)
            new = packing.valid
            replacements["position_embeddings"] = tuple(packing.gather(x) for x in kwargs["position_embeddings"])
            self._write_receipt(tasks, selections, rows, length, packing.length)
        elif tasks:
            self._write_receipt(tasks, [None] * len(tasks), rows, length, length)
        keys = join_keys(past, new, rows, held, hidden.shape[1])
        replacements["attention_mask"] = self._causal_mask(hidden, keys, cache)
        # With gaps in them, FlashAttention takes position ids for several packed sequences and attends wrongly.
        # The rotary phases, which stay those of the long sequence, are in position_embeddings.
        replacements["position_ids"] = None
        self._caches.remember(cache, ShortCache(keys, full + length - held - hidden.shape[1]))
        self._replacements = replacements
        if args:
            return (hidden, *args[1:]), {**kwargs, **replacements}
        return args, {**kwargs, **replacements, "hidden_states": hidden}

    def _before_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return None if self._replacements is None else (args, {**kwargs, **self._replacements})

    # Their parts.

    def _checked_tasks(self, expected: list[list[_Task]] | None, rows: int, length: int) -> list[_Task]:
        if expected is None:
            return []
        if len(expected) != rows:
            raise PruningError(f"visual spans were given for {len(expected)} rows, but the batch has {rows}")
        tasks = [task for row in expected for task in sorted(row, key=lambda task: task.span.start)]
        for task in tasks:
            if task.span.stop > length:
                raise PruningError(
                    f"row {task.row}: visual tokens {task.span.start}..{task.span.stop - 1} lie outside the sequence "
                    f"of {length} tokens; prefill the whole prompt in one forward call"
                )
        return tasks

    def _shorten(
        self, hidden: Tensor, keys: Tensor, visible: Tensor | None, tasks: list[_Task]
    ) -> tuple[Tensor, Packing, list[Selection | None]]:
        """Select, merge and pack. hidden: [B, T, d]; keys: [B, heads, T, head size]; visible: bool [B, T] or None."""
        keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if visible is not None:
            keep &= visible.to(keep.device)
        hidden = hidden.clone()
        selections: list[Selection | None] = []
        for task in tasks:
            selection = None
            if not task.keeps_all:
                part = slice(task.span.start, task.span.stop)
                tokens = hidden[task.row, part]
                token_keys = keys[task.row, :, part].transpose(0, 1).flatten(1).to(hidden.device)
                selection = self.method.select(tokens, token_keys, task.span.layout, task.budget)
                stays = selection.indices + task.span.start
                hidden[task.row, stays] = self.method.merge(tokens, selection)
                keep[task.row, part] = False
                keep[task.row, stays] = True
            selections.append(selection)
        packing = Packing.of(keep)
        return packing.gather(hidden), packing, selections

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
        self, tasks: list[_Task], selections: list[Selection | None], rows: int, before: int, after: int
    ) -> None:
        images = [self._image_receipt(*pair) for pair in zip(tasks, selections, strict=True)]
        method = self.method
        self.receipts.append(Receipt(method.name, method.config(), method.layer, rows, before, after, images))
        if not images and not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(method).__name__} is on, but no visual tokens were found in this prompt: nothing was pruned",
                PruningWarning,
                stacklevel=2,
            )

    def _image_receipt(self, task: _Task, selection: Selection | None) -> ImageReceipt:
        every = list(range(task.span.length))
        indices = every if selection is None else selection.indices.tolist()
        return ImageReceipt(
            row=task.row,
            span=(task.span.start, task.span.length),
            layer=self.method.layer,
            method=self.method.name,
            n_before=task.span.length,
            n_after=len(indices),
            indices=indices,
            order=every if selection is None else selection.order.tolist(),
            coords=task.span.layout.coords[indices].tolist(),
            pivots=[] if selection is None or selection.pivots is None else selection.pivots.tolist(),
            nearest=None if selection is None or selection.nearest is None else selection.nearest.tolist(),
        )


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
