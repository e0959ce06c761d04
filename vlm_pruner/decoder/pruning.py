"""What happens inside a running decoder. The only code that prunes one, whichever door it is reached through.

Forward pre-hooks do it all, so no transformers code is copied or replaced. What they do is said in `stage.py`: most
methods drop tokens before one layer, some before several, one Stage each. While decoding, the layers from a stage on
hold a shorter cache than the ones before, and get masks of that length.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import nn

from vlm_pruner import adapters
from vlm_pruner.adapters.base import named_arguments
from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.decoder.deepstack import DeepStack
from vlm_pruner.decoder.refusals import (
    check_not_checkpointed,
    check_not_compiled,
    check_not_counted,
    counting_positions,
)
from vlm_pruner.decoder.short_caches import ShortCaches, long_arguments
from vlm_pruner.decoder.shortening import Task, image_receipt, plan, too_small
from vlm_pruner.decoder.stage import Cut, Hook, Stage, hidden_states, layer_call, with_hidden
from vlm_pruner.decoder.towers import Picture, TowerTap
from vlm_pruner.decoder.views import FROM_FIRST_LAYER, FROM_TOWER, SUPPLIED
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan
from vlm_pruner.methods.base import Pruner
from vlm_pruner.receipts import ImageReceipt, Receipt

_ACTIVE: WeakSet[nn.Module] = WeakSet()  # decoders being pruned now
_ACTIVE_LOCK = threading.Lock()


class PruningWarning(UserWarning):
    """Pruning was asked for, and nothing was pruned, or less than was asked for."""


class _Call(threading.local):
    """What belongs to the forward call that is running: every thread that runs the model has its own."""

    tokens_before = 0
    deepstack: DeepStack | None = None
    by_position: str | None = None  # an argument that counts positions in the long sequence


class DecoderPruning:
    """Context manager: while it is open, a transformers decoder drops visual tokens before layer `method.layer`.

    Announce each prefill's visual tokens with `expect`; `receipts` then says what was kept. It may be closed and
    opened again around single forward calls, also from inside the decoder's own forward: what decoding must know of
    a shortened cache is kept here, and nothing on the modules. Several threads may run the decoder meanwhile.
    """

    def __init__(
        self,
        decoder: nn.Module,
        method: Pruner,
        *,
        tower: ClipTower | None = None,
        fit: Callable[[TokenLayout], Fit | None] | None = None,
    ) -> None:
        _check_decoder(decoder, method, SUPPLIED | FROM_TOWER if tower else SUPPLIED)
        self.decoder = decoder
        self.method = method
        self._fit = fit
        self.receipts: list[Receipt] = []
        self._depth = len(decoder.layers)
        self._tower = TowerTap(tower) if tower and FROM_TOWER & method.needs else None
        self._stages: list[Stage] = []
        for number, layer in enumerate(method.layers(self._depth)):
            earlier = self._stages[-1] if self._stages else None
            report = partial(self._after_stage, number)
            self._stages.append(Stage(decoder, method, layer, report, ShortCaches(), earlier, self._tower))
        self._hooks: list[Callable[[], Any]] = []  # each takes one hook off
        self._call = _Call()
        self._config = method.config()
        self._warned: set[str] = set()

    def __enter__(self) -> DecoderPruning:
        with _ACTIVE_LOCK:
            if self.decoder in _ACTIVE:
                raise RuntimeError("this decoder is being pruned already; leave the other pruning context first")
            _ACTIVE.add(self.decoder)
        self._hooks = [
            module.register_forward_pre_hook(hook, with_kwargs=True).remove for module, hook in self._needed_hooks()
        ]
        if self._tower:
            self._hooks += self._tower.hooks()
        return self

    def _needed_hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Modules and what is to run before each. A later stage finds the arguments as the earlier ones have made them.

        None without need: a module with hooks costs more to call, whatever they do.
        """
        first, *later = self._stages
        layers = self.decoder.layers
        deepstack = "deepstack_visual_embeds" in inspect.signature(self.decoder.forward).parameters
        hooks: list[tuple[nn.Module, Hook]] = []
        if first.layer == 0 or deepstack:  # not called if this is opened in the decoder's own forward
            hooks.append((self.decoder, self._before_decoder))
        if FROM_FIRST_LAYER & self.method.needs:
            hooks.append((layers[0], self._before_layer_0))
        hooks += first.hooks()
        if deepstack:
            hooks += [(layer, self._add_deepstack) for layer in layers[first.layer + 1 :]]
        return hooks + [hook for stage in later for hook in stage.hooks()]

    def __exit__(self, *exception: object) -> None:
        for remove in self._hooks:
            remove()
        self._hooks = []
        if self._tower:
            self._tower.forget()
        self._call.deepstack = None
        for stage in self._stages:
            stage.forget()
        _ACTIVE.discard(self.decoder)

    def expect(self, spans: list[list[VisualSpan]], by_position: str | None = None) -> None:
        """Visual spans of this thread's next forward call, one list per batch row; empty lists where there are none.

        by_position: the name of an argument of that call, if there is one, that counts positions in the long sequence.
        Raises PruningError, before the model runs, if there is one and tokens are to be dropped, and if a backward pass
        would run layers again. Warns, once, if a span has fewer tokens than are to be kept; all are kept then.
        """
        for stage in self._stages:
            stage.forget()
        tasks = plan(spans, self.method, self._depth)
        if not all(task.keeps_all_to_the_end for task in tasks):
            check_not_counted(by_position)
            check_not_checkpointed(self.decoder.layers)
        small = [task.image.length for task in tasks if too_small(task.image, self.method)]
        if small:
            self._warn_once(
                f"keep_tokens={self.method.keep_tokens}, but a picture has only {small[0]} visual tokens: all are kept "
                "of every picture that has no more; reduction_ratio is a share of each picture's own"
            )
        self._stages[0].tasks = tasks

    def show(self, pictures: Sequence[Picture]) -> None:
        """Pictures of the next prefill that the vision tower encoded before this was opened, read off by a TowerTap."""
        if self._tower:
            self._tower.show(pictures)

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's arguments, by name, as it must be called with them while this is open. Mostly as they are.

        If the first layer's cache is short too, the decoder cannot count positions and padding by it. With `prune` a
        hook sees to that; who opens this inside the decoder's own forward calls `arguments` there.
        """
        cache = cache_of(kwargs)
        state = self._stages[0].caches.get(cache) if self._stages[0].layer == 0 else None
        if state is None or cache.get_seq_length(0) == 0:
            return kwargs
        return {**kwargs, **long_arguments(kwargs, state, int(cache.get_seq_length(0)))}

    def _before_decoder(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._stages[0].layer == 0:
            args, kwargs = (), self.arguments(named_arguments(decoder, args, kwargs))
        return self._without_late_deepstack(args, kwargs)

    def _without_late_deepstack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._call.deepstack = None
        features = kwargs.get("deepstack_visual_embeds")
        if features is None or all(task.keeps_all for task in self._stages[0].tasks):
            return args, kwargs
        k = self._stages[0].layer
        self._call.deepstack = DeepStack(kwargs["visual_pos_masks"], features[k:])
        return args, {**kwargs, "deepstack_visual_embeds": features[:k]}

    def _before_layer_0(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._stages[0].tasks:
            call = layer_call(layer, args, kwargs, 0)
            for stage in self._stages:
                stage.first = call

    def _add_deepstack(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        deepstack = self._call.deepstack
        return None if deepstack is None else with_hidden(args, kwargs, deepstack.add(hidden_states(args, kwargs)))

    def _after_stage(self, number: int, cut: Cut) -> None:
        if cut.packing is not None and self._call.deepstack is not None:
            self._call.deepstack.shorten(cut.packing)
        if cut.prefill and self._tower:
            self._tower.used()
        if number == 0:
            self._call.tokens_before = cut.before
        if number + 1 < len(self._stages):
            self._stages[number + 1].tasks = cut.tasks
        elif cut.prefill:
            self._write_receipt(cut)

    def _write_receipt(self, cut: Cut) -> None:
        self.receipts.append(
            Receipt(
                method=self.method.name,
                config=dict(self._config),
                layer=self._stages[0].layer,
                batch_size=cut.rows,
                tokens_before=self._call.tokens_before,
                tokens_after=cut.after,
                make_images=partial(_image_receipts, cut.tasks, self.method, self._fit),
            )
        )
        if not cut.tasks:
            self._warn_once(
                f"{type(self.method).__name__} is on, but no visual tokens in this prompt: nothing was pruned"
            )

    def _warn_once(self, message: str) -> None:
        kind = message.partition(",")[0]
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, PruningWarning, stacklevel=3)


def _image_receipts(
    tasks: list[Task], method: Pruner, fit: Callable[[TokenLayout], Fit | None] | None
) -> list[ImageReceipt]:
    return [image_receipt(task, method, fit) for task in tasks]


def _check_decoder(decoder: nn.Module, method: Pruner, supplied: frozenset[str]) -> None:
    if not isinstance(method, Pruner):
        raise PruningError(
            f"method={method!r} is not a pruning method; use for example CentrifugalPruner(keep_tokens=64)"
        )
    depth = len(decoder.layers)
    layers = method.layers(depth)
    if layers[-1] >= depth:
        raise PruningError(
            f"layer={layers[-1]}, but the decoder's last layer is {depth - 1}; use layer=1 to layer={depth - 1}"
        )
    rotary = getattr(decoder.config, "rope_parameters", None) or {}
    if "llama_4_scaling_beta" in rotary:
        raise PruningError(
            f"{type(decoder).__name__} scales queries by position ids, which pruned layers are not given; "
            "models with this decoder are not supported"
        )
    three_axes = "mrope_section" in rotary
    if three_axes and (layers[0] == 0 or method.renumber):
        raise PruningError(
            f"{'renumber=True' if method.renumber else 'layer=0'}: {type(decoder).__name__} counts positions along "
            "three axes, and by the first layer's cache; use renumber=False, and layer=1 or higher"
        )
    if method.needs - supplied:
        raise PruningError(
            f"{type(method).__name__} needs {', '.join(sorted(method.needs - supplied))}, which is not to be had from "
            f"{type(decoder).__name__} alone; use vlm_pruner.prune(model, method) on a model with such a vision tower"
        )
    config = decoder.config
    kinds = getattr(config, "layer_types", None)
    windowed = kinds[layers[0] :] if kinds else ["sliding_attention"] * bool(getattr(config, "sliding_window", None))
    if any(kind != "full_attention" for kind in windowed):
        raise PruningError(
            f"{type(decoder).__name__} uses attention other than full attention from layer {layers[0]} on; "
            "a window over a pruned sequence is not supported"
        )


class Pruning:
    """What `prune` gives. Open it with `with`; it can be opened again after it was closed, but not inside itself."""

    def __init__(self, model: nn.Module, method: Pruner) -> None:
        self.model = model
        self.method = method
        self._adapter = adapters.find(model)
        self._decoder_pruning = DecoderPruning(
            self._adapter.decoder,
            method,
            tower=self._adapter.tower() if FROM_TOWER & getattr(method, "needs", frozenset()) else None,
            fit=self._adapter.fit,
        )
        self._adapter.check(method)
        self._call = _Call()
        self._hooks: list[Any] = []
        self._may_compile: Callable[[], None] = lambda: None

    @property
    def receipts(self) -> list[Receipt]:
        """One receipt per prefill, oldest first."""
        return self._decoder_pruning.receipts

    def show(self, pictures: Sequence[Picture]) -> None:
        """For prompts given as embeddings: what a `towers.TowerTap` read off when their pictures were encoded."""
        self._decoder_pruning.show(pictures)

    def __enter__(self) -> Pruning:
        entry, decoder = self._adapter.entry, self._adapter.decoder
        check_not_compiled([self.model, entry, decoder], decoder.layers)
        self._decoder_pruning.__enter__()
        self._may_compile = _forbid_compiling(self.model)
        self._hooks = [entry.register_forward_pre_hook(self._announce, with_kwargs=True)]
        if entry is not self.model:
            self._hooks.append(self.model.register_forward_pre_hook(self._before_model, with_kwargs=True))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._may_compile()
        self._decoder_pruning.__exit__(*exception)

    def _announce(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_position, self._call.by_position = self._call.by_position, None
        self._decoder_pruning.expect(self._adapter.spans(args, kwargs), by_position)

    def _before_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Notes what the entry does not see."""
        self._call.by_position = counting_positions(named_arguments(model, args, kwargs))


def _forbid_compiling(model: nn.Module) -> Callable[[], None]:
    """Keeps `generate` from compiling the model, as it does by itself on a GPU with a static cache; gives the undoing.

    What was compiled outside the context does not call pruning's hooks, and what is compiled inside keeps calling them.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None:
        return lambda: None
    before, settings.disable_compile = settings.disable_compile, True
    return partial(setattr, settings, "disable_compile", before)


def prune(model: nn.Module, method: Pruner) -> Pruning:
    """Context in which `model`, a supported transformers vision-language model, runs pruned.

        with prune(model, CentrifugalPruner(keep_tokens=64)) as pruning:
            out = model.generate(**inputs)
        pruning.receipts[-1].images[0].indices

    Raises UnsupportedModelError for a model that no adapter knows, and PruningError for a setting that does not fit
    the model; both before anything is changed.
    """
    return Pruning(model, method)
