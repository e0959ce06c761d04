"""Prunes a decoder while it runs. All entry points go through this module.

Forward pre-hooks on the decoder's layers do the work, so no transformers code is copied or replaced. `stage.py` defines
a stage, a layer at which tokens are dropped; most methods have one, some several. While decoding, the layers from a
stage on hold a shorter cache than those before, and get masks of that length.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from vlm_pruner import adapters
from vlm_pruner.adapters.base import check_videos, named_arguments
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.decoder.calibration import check_additive
from vlm_pruner.decoder.decoders import check_decoder, several_axes
from vlm_pruner.decoder.deepstack import DeepStack
from vlm_pruner.decoder.doors import Call, Hook, guard, refuse_copies, run_compiled_versions_eagerly, signature_of
from vlm_pruner.decoder.graphs import LayerGraphs, check_graphs
from vlm_pruner.decoder.image_states import ImageState, plan, too_small
from vlm_pruner.decoder.layer_call import LayerCall, tokens_in
from vlm_pruner.decoder.positions import offset_of, positions_after_padding, rotary_positions
from vlm_pruner.decoder.refusals import (
    check_heads_are_whole,
    check_not_checkpointed,
    check_not_compiled,
    check_not_packed,
    check_nothing_counts_positions,
    counting_positions,
)
from vlm_pruner.decoder.short_caches import ShortCache, ShortCaches, long_arguments
from vlm_pruner.decoder.stage import Run, Stage
from vlm_pruner.decoder.towers import TowerOutput, TowerTap
from vlm_pruner.decoder.views import FROM_FIRST_LAYER, FROM_QUESTION, FROM_TOWER, SUPPLIED
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner, Selection
from vlm_pruner.receipts import ImageReceipt, Receipt

_ACTIVE: WeakSet[nn.Module] = WeakSet()  # decoders being pruned now
_ACTIVE_LOCK = threading.Lock()

FitOf = Callable[[TokenLayout], Fit | None]


class PruningWarning(UserWarning):
    """Pruning was requested, and nothing was pruned, or less than requested."""


@dataclass
class _Answer:
    """A prompt that was prefilled without a cache, and the choices for it, stage by stage.

    embeddings: [B, T, d], inputs of the decoder. length: of the last call that continued the prompt.
    """

    embeddings: Tensor
    length: int
    choices: list[list[Selection]]


class _Thread(threading.local):
    """The state of one thread's forward calls. Python calls `__init__` again in every thread."""

    def __init__(self) -> None:
        self.run = Run()
        self.answer: _Answer | None = None
        self.by_position: str | None = None  # an argument of the call that counts positions in the long sequence


class DecoderPruning:
    """Context manager: while it is open, a transformers decoder drops visual tokens before layer `method.layer`.

    Announce each prefill's visual tokens with `expect`; `receipts` then records what was kept. All state of shortened
    caches lives here and none on the modules, so a context may be closed between forward calls and opened again.
    Several threads may run the decoder: each has its own state, and a call that still runs in another thread when the
    context closes finishes pruned.
    """

    _entered_at_decoder = False  # whether the decoder's own `forward` is where this is opened or announced

    def __init__(
        self,
        decoder: nn.Module,
        method: Pruner,
        *,
        tower: ClipTower | None = None,
        fit: FitOf | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        check_decoder(decoder, method, SUPPLIED | FROM_TOWER if tower else SUPPLIED)
        self.decoder = decoder
        self.method = method
        self._fit = fit
        self._depth = len(decoder.layers)
        self._several_axes = several_axes(decoder)
        self._tower_parts = tower if FROM_TOWER & method.needs else None
        self._cuda_graphs = cuda_graphs
        if cuda_graphs:
            check_graphs(decoder, method)
        self._set_up()

    def _set_up(self) -> None:
        """Sets up everything that copies do not share."""
        self.receipts: list[Receipt] = []
        self._tower = TowerTap(self._tower_parts) if self._tower_parts else None
        context, calibrate = object(), self.method.calibrate is not None
        self._stages = {
            layer: Stage(self.decoder, self.method, layer, ShortCaches(context, calibrate), self._tower)
            for layer in self.method.layers(self._depth)
        }
        self._config = self.method.config()
        self._thread = _Thread()
        self._lock = threading.RLock()
        self._open = False
        self._graphs = None
        if self._cuda_graphs:
            self._graphs = LayerGraphs(self.decoder, self._stages, self._thread, self._finish, self._warn_once)
        self._calling: set[int] = set()  # threads inside a call of the model
        self._undo: list[Call] = []
        self._warned: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        names = ("decoder", "method", "_fit", "_depth", "_several_axes", "_tower_parts", "_cuda_graphs")
        return {name: vars(self)[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._set_up()

    @property
    def replays(self) -> int:
        """Number of prefills that ran as a CUDA graph."""
        return self._graphs.replays if self._graphs else 0

    # Open and closed

    def __enter__(self) -> Any:
        with self._lock:
            self._install_or_undo()
            self._open = True
        return self

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._open = False
            self._end_of_thread()
            if not self._calling:
                self._remove()

    def running(self) -> AbstractContextManager[None]:
        """Wraps a call of the model; opens the context for its duration if it is not open."""
        inside_another = threading.get_ident() in self._calling
        return nullcontext() if inside_another else self._outermost_call()

    @contextmanager
    def _outermost_call(self) -> Iterator[None]:
        thread = threading.get_ident()
        with self._lock:
            if not self._undo:
                self._install_or_undo()
            self._calling.add(thread)
        try:
            yield
        finally:
            with self._lock:
                self._calling.discard(thread)
                self._thread.run = Run()
                if self._graphs:
                    self._graphs.begin()
                if not self._open and not self._calling:
                    self._end_of_thread()
                    self._remove()

    def _active(self) -> bool:
        """Whether this thread's calls are pruned."""
        return self._open or threading.get_ident() in self._calling

    def _end_of_thread(self) -> None:
        self._thread.run, self._thread.answer, self._thread.by_position = Run(), None, None
        if self._tower:
            self._tower.forget()

    def _install_or_undo(self) -> None:
        with _ACTIVE_LOCK:
            if self.decoder in _ACTIVE:
                raise RuntimeError(
                    "this decoder is being pruned already; leave the other pruning context first, and let calls that "
                    "still run in its threads end"
                )
            _ACTIVE.add(self.decoder)
        try:
            self._install()
        except BaseException:
            self._remove()
            raise

    def _install(self) -> None:
        """Installs all hooks; `_undo` removes them."""
        self._undo = [
            module.register_forward_pre_hook(hook, with_kwargs=True).remove for module, hook in self._needed_hooks()
        ]
        if self._tower:
            self._undo += self._tower.hooks(self._active)
        if self._graphs:
            self._undo += self._graphs.install(self._active)

    def _remove(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        _ACTIVE.discard(self.decoder)

    def _needed_hooks(self) -> list[tuple[nn.Module, Call]]:
        """(module, pre-hook) pairs. Only necessary ones: any hook makes its module slower to call."""
        first, layers = min(self._stages), list(self.decoder.layers)
        hooks: list[tuple[nn.Module, Call]] = []
        if not self._entered_at_decoder:
            hooks.append((self.decoder, self._before_decoder))
        if (FROM_FIRST_LAYER | FROM_QUESTION) & self.method.needs:
            hooks.append((layers[0], self._before_layer_0))
        deepstack = "deepstack_visual_embeds" in signature_of(type(self.decoder).forward).parameters
        if deepstack:
            hooks += [(layer, self._add_deepstack) for layer in layers[first + 1 :]]
        last = max(self._stages)
        hooks += [(layers[i], partial(self._before_layer, i)) for i in range(max(0, first - 1), last + 1)]
        return [(module, Hook(hook, self._active)) for module, hook in hooks] + [
            (layer, self._before_short_layer) for layer in layers[last + 1 :]
        ]

    # What is to be pruned

    def expect(
        self, spans: list[list[VisualSpan]], by_position: str | None = None, call: dict[str, Any] | None = None
    ) -> None:
        """Announces the visual spans of this thread's next forward call, one list per batch row, possibly empty.

        by_position: the name of an argument of that call that counts positions in the long sequence, if any. call: its
        arguments by name. Raises PruningError, before the model runs, if tokens are to be dropped and the call cannot
        follow: labels, packed sequences, layers that a backward pass would run again. Warns once if a span has fewer
        tokens than the budget, which keeps all of them.
        """
        self._thread.run = Run()
        if self._graphs:
            self._graphs.begin()
        images = plan(spans, self.method, self._depth)
        if not all(image.keeps_all_to_the_end for image in images):
            check_nothing_counts_positions(by_position)
            check_not_packed(call or {})
            check_not_checkpointed(self.decoder.layers)
        if not all(self.method.suits(image.original.layout) for image in images):
            self._warn_once(f"{self.method.name} compares the frames of videos, so pictures are kept whole")
        small = [image.original.length for image in images if too_small(image.original, self.method)]
        if small:
            self._warn_once(
                f"keep_tokens={self.method.keep_tokens}, but a picture has only {small[0]} visual tokens: all are kept "
                "of every picture that has no more; reduction_ratio is a share of each picture's own"
            )
        self._thread.run.images = images

    def provide(self, pictures: Sequence[TowerOutput]) -> None:
        """Provides pictures of the next prefill that the tower encoded before the context opened, from a TowerTap."""
        if self._tower:
            self._tower.provide(pictures)

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments, by name, for a call of the decoder while the context is open. Mostly unchanged.

        If the first layer's cache is short too, the decoder cannot count positions and padding by it. Also, a prompt's
        positions start after its padding, so that a row's keys do not depend on padding. With `prune`, a hook does
        this; code that opens the context inside the decoder's own forward calls `arguments` there.
        """
        if self.method.calibrate:  # a model may change its attention while the context is open
            check_additive(self.decoder.config._attn_implementation, self.method)
        cache, run = cache_of(kwargs), self._thread.run
        if run.drops_at_last:
            kwargs = {**kwargs, **positions_after_padding(kwargs, cache)}
        state = self._shortened_at_input(cache)
        if state is not None:
            kwargs = {**kwargs, **long_arguments(kwargs, state, int(cache.get_seq_length(0)))}
        if self._several_axes:
            run.rotary = rotary_positions(kwargs, cache)
            if state is not None:
                self._note_offset(run.rotary, state, cache)
        return kwargs

    def entry_arguments(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments, by name, for a call of the model around the decoder. Mostly unchanged.

        Models whose positions have several axes count them by the first layer's cache, before the decoder runs.
        """
        cache = cache_of(call)
        state = self._shortened_at_input(cache) if self._several_axes else None
        if state is None or call.get("position_ids") is not None:
            return call
        return {**call, "position_ids": state.next_positions(int(cache.get_seq_length(0)), tokens_in(call))}

    def _shortened_at_input(self, cache: Any) -> ShortCache | None:
        """The state of a cache that is short in its first layer too, if it is not empty."""
        stage = self._stages.get(0)
        state = stage.caches.get(cache) if stage else None
        return None if state is None or cache.get_seq_length(0) == 0 else state

    def _note_offset(self, positions: Tensor, state: ShortCache, cache: Any) -> None:
        """Positions after a further picture, which may be too small to be pruned, lie further behind their indices."""
        new = positions.shape[-1]
        if new > 1:
            length = int(cache.get_seq_length(0)) + state.dropped + new
            self._stages[0].caches.remember(cache, replace(state, offset=offset_of(positions, length)))

    # Hooks, in the order in which they run

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = (), self.arguments(named_arguments(decoder, args, kwargs))
        run, features = self._thread.run, kwargs.get("deepstack_visual_embeds")
        run.deepstack = None
        if features is None or not run.drops_at_last:
            return args, kwargs
        first = min(self._stages)
        run.deepstack = DeepStack(kwargs["visual_pos_masks"], features[first:])
        return args, {**kwargs, "deepstack_visual_embeds": features[:first]}

    def _before_layer_0(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        run = self._thread.run
        if run.images:
            run.first = LayerCall(layer, 0, args, kwargs)
            run.earlier = self._earlier_choices(run.first)

    def _add_deepstack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        deepstack = self._thread.run.deepstack
        if deepstack is None:
            return None
        call = LayerCall(layer, 0, args, kwargs)
        call = call.with_hidden(deepstack.add(call.hidden))
        return call.args, call.kwargs

    def _before_layer(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Takes a call through the layers, each stage once: tap before layer K-1, cut before layer K."""
        if self._graphs and self._graphs.replayed:
            return None
        run, first = self._thread.run, min(self._stages)
        if index <= first:
            run.start()
        call = LayerCall(layer, index, args, kwargs)
        if run.arguments:
            call = call.updated(run.arguments)
        if index in self._stages:
            call = self._stages[index].cut(call, run)
            if index == max(self._stages):
                self._finish(call, run)
        if index + 1 in self._stages:
            call = self._stages[index + 1].tap(call, run)
        return call.args, call.kwargs

    def _before_short_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The same for a layer after all stages; kept short, because there are many and every token passes them."""
        arguments = self._thread.run.arguments
        return (args, {**kwargs, **arguments}) if arguments else None

    def _finish(self, call: LayerCall, run: Run) -> None:
        """After the last stage."""
        if self._graphs and self._graphs.capturing:
            return
        rows, after = call.hidden.shape[:2]
        if run.prefill:
            if self._tower:
                self._tower.used()
            self._write_receipt(run, rows, after)
            self._note_answer(run)
        run.images, run.first, run.before, run.positions = [], None, None, None

    def _write_receipt(self, run: Run, rows: int, after: int) -> None:
        assert run.length is not None
        self.receipts.append(
            Receipt(
                method=self.method.name,
                config=dict(self._config),
                layer=min(self._stages),
                batch_size=rows,
                tokens_before=run.length,
                tokens_after=after,
                make_images=partial(_image_receipts, run.images, self.method, self._fit),
            )
        )
        if not run.images:
            self._warn_once(
                f"{type(self.method).__name__} is on, but no visual tokens in this prompt: nothing was pruned"
            )

    # Without a cache, every step of an answer is a prefill of everything so far

    def _earlier_choices(self, first: LayerCall) -> list[list[Selection]] | None:
        """The prompt's own choices, if this call without a cache continues its answer by one token."""
        answer = self._thread.answer
        if answer is None or first.cache is not None or not FROM_QUESTION & self.method.needs:
            self._thread.answer = None
            return None
        rows, length = first.hidden.shape[:2]
        before = answer.embeddings
        one_more = rows == len(before) and length == answer.length + 1
        if one_more and torch.equal(first.hidden[:, : before.shape[1]], before):
            answer.length = length
            return answer.choices
        self._thread.answer = None
        return None

    def _note_answer(self, run: Run) -> None:
        first = run.first
        if first is None or first.cache is not None or run.earlier is not None:
            return
        if run.images and FROM_QUESTION & self.method.needs:
            self._thread.answer = _Answer(first.hidden.detach(), first.hidden.shape[1], run.made)

    def _warn_once(self, message: str) -> None:
        kind = message.partition(",")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, PruningWarning, stacklevel=3)


def _image_receipts(images: list[ImageState], method: Pruner, fit: FitOf | None) -> list[ImageReceipt]:
    return [image.receipt(method, fit) for image in images]


class Pruning(DecoderPruning):
    """The result of `prune`: a context for a whole model, which finds its visual tokens itself.

    It can be opened again after it was closed, but not while it is open.
    """

    def __init__(self, model: nn.Module, method: Pruner, cuda_graphs: bool = False) -> None:
        adapter = adapters.find(model)
        tower = adapter.tower() if FROM_TOWER & getattr(method, "needs", frozenset()) else None
        super().__init__(adapter.decoder, method, tower=tower, fit=adapter.fit, cuda_graphs=cuda_graphs)
        check_videos(method, adapter.videos, type(model).__name__)
        adapter.check(method)
        self.model = model
        self._adapter = adapter
        self._entered_at_decoder = adapter.entry is self.decoder

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise PruningError("a pruning context cannot be copied or pickled: make one with vlm_pruner.prune")

    def _install(self) -> None:
        entry, decoder = self._adapter.entry, self._adapter.decoder
        check_not_compiled([self.model, entry, decoder], decoder.layers)
        check_heads_are_whole(self.model)
        super()._install()
        self._undo.append(run_compiled_versions_eagerly())
        self._undo.append(guard(entry, "forward", self._around_entry))
        if entry is not self.model:
            self._undo.append(guard(self.model, "forward", self._around_model))
        self._undo.append(guard(self.model, "__reduce_ex__", refuse_copies))
        if hasattr(self.model, "generate"):
            self._undo.append(guard(self.model, "generate", self._around_generate))

    def _around_entry(self, forward: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Finds the visual tokens of a call."""
        if not self._active():
            return forward(*args, **kwargs)
        by_position, self._thread.by_position = self._thread.by_position, None
        with self.running():
            self.expect(self._adapter.spans(args, kwargs), by_position, kwargs)
            if self._several_axes:
                args, kwargs = (), self.entry_arguments(named_arguments(self._adapter.entry, args, kwargs))
            if self._entered_at_decoder:
                args, kwargs = (), self.arguments(named_arguments(self.decoder, args, kwargs))
            return forward(*args, **kwargs)

    def _around_model(self, forward: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Records arguments that the entry does not see."""
        if not self._active():
            return forward(*args, **kwargs)
        self._thread.by_position = counting_positions(named_arguments(self.model, args, kwargs))
        try:
            with self.running():
                return forward(*args, **kwargs)
        finally:
            self._thread.by_position = None

    def _around_generate(self, generate: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Keeps the context's hooks until the last token, even if another thread closes it in between."""
        if not self._active():
            return generate(*args, **kwargs)
        with self.running():
            return generate(*args, **kwargs)


def prune(model: nn.Module, method: Pruner, *, cuda_graphs: bool = False) -> Pruning:
    """Context in which `model`, a supported transformers vision-language model, runs pruned.

        with prune(model, CentrifugalPruner(keep_tokens=64)) as pruning:
            out = model.generate(**inputs)
        pruning.receipts[-1].images[0].indices

    cuda_graphs: whether prefills of a size that came before replay their layers as one CUDA graph (`graphs.py`), which
    frees a short prefill from waiting for its launches. For prompts without padding in a fresh cache; others run as
    usual. `pruning.replays` counts the replays. Graphs belong to the context: keep it, open or not.

    Raises UnsupportedModelError for a model that no adapter supports, and PruningError for a setting that does not suit
    the model; both before anything changes.
    """
    return Pruning(model, method, cuda_graphs)
