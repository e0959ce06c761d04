"""Replays the decoder layers of a prefill as one CUDA graph, for prompts of sizes that came before.

At batch 1 a fast GPU finishes a layer before the host has launched the next one, so a prefill of 100 tokens takes as
long as one of 600. A graph launches all layers, choosing and merging included, at once.

The first prefill of a size runs as usual. The second does too, is then captured, and the graph must give its result bit
for bit, or it is never used. Later ones replay the graph: inputs are copied in, and what a caller or a later call may
keep is copied out.
"""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from operator import methodcaller
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vlm_pruner import kernels
from vlm_pruner.decoder.cache_names import cache_of, with_cache
from vlm_pruner.decoder.doors import Call, Hook, guard
from vlm_pruner.decoder.image_states import ImageState
from vlm_pruner.decoder.layer_call import LayerCall
from vlm_pruner.decoder.short_caches import ShortCache
from vlm_pruner.decoder.stage import Run, Stage
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner
from vlm_pruner.methods.centrifugal import CentrifugalPruner

SHORT_LAYER_HOOK = "_before_short_layer"  # pruning's own, of the layers after all stages
KEPT = 16  # graphs at once; each holds the keys and values of one prefill
DEVICES = ("cuda",)


@dataclass(frozen=True)
class Captured:
    """What one run of all layers made.

    hidden: [B, L, d], the last layer's output. cache: keys and values of all layers. run: its state after the last
    stage. states: what each stage must know of the cache later, by layer.
    """

    hidden: Tensor
    cache: DynamicCache
    run: Run
    states: dict[int, ShortCache | None]


def record(run: Callable[[], Captured], pool: Any) -> tuple[Captured, Callable[[], None]]:
    """Captures `run`. Returns what it made, without contents, and a function that fills it in."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        made = run()
    return made, graph.replay


@dataclass
class _Graph:
    """One size of prefill.

    call, rotary: its inputs. state: of the layers when it was captured. usable: whether it gave the prefill's result.
    """

    call: LayerCall
    rotary: Tensor | None
    made: Captured
    replay: Callable[[], None]
    state: list[Any]
    usable: bool


@dataclass
class _Prefill:
    """A prefill that runs as usual, and what a capture needs of it afterwards."""

    key: Any
    call: LayerCall
    rotary: Tensor | None
    images: list[ImageState]
    state: list[Any]


class _Thread(threading.local):
    capturing = False
    replayed = False
    prefill: _Prefill | None = None


class _Layers:
    """What a graph of the layers depends on, beside its inputs: read before every replay, so quick to read.

    layers: guarded already.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        modules = [module for layer in layers for module in layer.modules()]
        self._own = {id(vars(layer)["forward"]) for layer in layers}
        self._after = [found for module in modules for found in (module._forward_hooks, module._backward_hooks)]
        self._before = [module._forward_pre_hooks for module in modules]
        self._attributes = [vars(module) for module in modules]
        self._children = [module._modules for module in modules if module._modules]
        self._weights = [module._parameters for module in modules if module._parameters]

    def now(self) -> list[Any] | None:
        """Changes when weights, modules or their `forward` are replaced. None if a graph would leave out a hook."""
        if any(self._after) or not all(map(_is_ours, (hook for found in self._before for hook in found.values()))):
            return None
        forwards = [found for found in map(_forward_of, self._attributes) if id(found) not in self._own]
        children = [id(child) for parts in self._children for child in parts.values()]
        weights = [weight.data_ptr() for parts in self._weights for weight in parts.values() if weight is not None]
        training = self._attributes[0]["training"]
        return [training, *forwards, *children, *weights]


_forward_of = methodcaller("get", "forward")


def _is_ours(hook: Any) -> bool:
    return isinstance(hook, Hook) or getattr(hook, "__name__", "") == SHORT_LAYER_HOOK


class HasRun(Protocol):
    run: Run


class LayerGraphs:
    """The graphs of one pruning context.

    current: its `run` is the state of this thread's forward call. finish: called with the last layer's call after a
    replay, as after the last stage. warn: warns once of each kind.
    """

    def __init__(
        self,
        decoder: nn.Module,
        stages: dict[int, Stage],
        current: HasRun,
        finish: Callable[[LayerCall, Run], None],
        warn: Callable[[str], None],
    ) -> None:
        self._decoder = decoder
        self._stages = stages
        self._current, self._finish, self._warn = current, finish, warn
        self._graphs: OrderedDict[Any, _Graph | None] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = _Thread()
        self._pools: dict[Any, Any] = {}
        self._layers: _Layers  # while the context is open
        self.replays = 0

    @property
    def capturing(self) -> bool:
        return self._thread.capturing

    @property
    def replayed(self) -> bool:
        """Whether the layers of this thread's call have run already, as a graph."""
        return self._thread.replayed

    def begin(self) -> None:
        """Clears this thread's state before a call of the decoder."""
        self._thread.replayed, self._thread.prefill = False, None

    def install(self, active: Callable[[], bool]) -> list[Call]:
        """Takes over layer 0's call and lets the other layers pass. Returns functions that undo it."""
        layers = list(self._decoder.layers)
        before = layers[0].register_forward_pre_hook(Hook(self._before_layer_0, active), with_kwargs=True, prepend=True)
        undo = [guard(layer, "forward", self._last if layer is layers[-1] else self._pass) for layer in layers]
        self._layers = _Layers(layers)
        return [before.remove, *undo]

    # Around the layers

    def _before_layer_0(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        run = self._current.run
        if self.capturing or not run.images:
            return None
        call = LayerCall(layer, 0, args, kwargs)
        if not _fits(call):
            return None
        state = self._layers.now()
        if state is None:
            self._warn("cuda_graphs=True, but the layers have hooks that a graph would leave out: no graph is used")
            return None
        key = _key(call, run)
        with self._lock:
            known, graph = key in self._graphs, self._graphs.get(key)
            if graph is not None and graph.state != state:
                del self._graphs[key]
                known, graph = False, None
            if graph is not None and graph.usable:
                self._graphs.move_to_end(key)
                hidden = self._replay(graph, call, run)
                self._thread.replayed = True
                call = call.with_hidden(hidden)
                return call.args, call.kwargs
            if not known:
                self._remember(key, None)
            elif graph is None:
                self._thread.prefill = _Prefill(key, call, run.rotary, list(run.images), state)
        return None

    def _pass(self, forward: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._thread.replayed:
            return args[0] if args else kwargs["hidden_states"]
        return forward(*args, **kwargs)

    def _last(self, forward: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = self._pass(forward, args, kwargs)
        prefill, self._thread.prefill = self._thread.prefill, None
        if prefill is not None and isinstance(out, Tensor):
            with self._lock:
                self._capture(prefill, out)
        return out

    def _remember(self, key: Any, graph: _Graph | None) -> None:
        self._graphs[key] = graph
        self._graphs.move_to_end(key)
        while len(self._graphs) > KEPT:
            self._graphs.popitem(last=False)

    # Capture and replay

    def _capture(self, prefill: _Prefill, wanted: Tensor) -> None:
        """Captures the prefill that has just run, and keeps the graph if its result is `wanted`, bit for bit."""
        call = _static(prefill.call)
        rotary = None if prefill.rotary is None else prefill.rotary.clone()
        try:
            made, replay = record(lambda: self._run_layers(call, rotary, prefill.images), self._pool(call.hidden))
        except RuntimeError as error:
            raise PruningError(
                f"cuda_graphs=True: this prefill cannot be captured ({error}); leave cuda_graphs out"
            ) from error
        replay()
        usable = made.hidden.shape == wanted.shape and torch.equal(made.hidden, wanted)
        if not usable:
            self._warn("cuda_graphs=True: the graph of a prefill gives another result, so such prefills run as usual")
        self._remember(prefill.key, _Graph(call, rotary, made, replay, prefill.state, usable))

    def _pool(self, like: Tensor) -> Any:
        """Memory that the graphs of one stream share: they run one after the other."""
        stream = _stream(like)
        if stream is not None and stream not in self._pools:
            self._pools[stream] = torch.cuda.graph_pool_handle()
        return self._pools.get(stream)

    def _run_layers(self, call: LayerCall, rotary: Tensor | None, images: list[ImageState]) -> Captured:
        own, run, cache = self._current.run, Run(images=list(images), rotary=rotary), DynamicCache()
        self._thread.capturing = True
        self._current.run = run
        try:
            hidden = call.hidden
            for layer in self._decoder.layers:
                here = replace(call, kwargs=with_cache(call.kwargs, cache)).with_hidden(hidden)
                hidden = layer(*here.args, **here.kwargs)
        finally:
            self._thread.capturing = False
            self._current.run = own
        states = {layer: stage.caches.get(cache) for layer, stage in self._stages.items()}
        return Captured(hidden, cache, run, states)

    def _replay(self, graph: _Graph, call: LayerCall, run: Run) -> Tensor:
        """Runs the layers on `call`, fills its cache, and completes `run`. Returns the last layer's output."""
        for mine, given in zip(_tensors(graph.call), _tensors(call), strict=True):
            mine.copy_(given)
        if graph.rotary is not None:
            graph.rotary.copy_(run.rotary)
        graph.replay()
        made = graph.made
        for index, layer in enumerate(made.cache.layers):
            call.cache.update(layer.keys, layer.values, index)
            shown = call.cache.layers[index]
            if shown.keys.data_ptr() == layer.keys.data_ptr():
                shown.keys, shown.values = shown.keys.clone(), shown.values.clone()
        for layer_index, stage in self._stages.items():
            state = made.states[layer_index]
            if state is not None:
                stage.caches.remember(call.cache, _cloned(state))
        run.prefill, run.length, run.past = True, made.run.length, 0
        run.images = [replace(image, kept=_cloned(image.kept)) for image in made.run.images]
        self._finish(call.with_hidden(made.hidden), run)
        self.replays += 1
        return made.hidden


def check_graphs(decoder: nn.Module, method: Pruner) -> None:
    """Raises PruningError if prefills of `decoder` under `method` cannot be captured in a CUDA graph."""
    device = next(decoder.parameters()).device
    if device.type not in DEVICES:
        raise PruningError(f"cuda_graphs=True: the model is on {device}; move it to a CUDA device, or leave it out")
    reason = None
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise PruningError(
            f"cuda_graphs=True: the model is on {device}; call torch.cuda.set_device({device.index}) first"
        )
    if not isinstance(method, CentrifugalPruner) or method.needs:
        reason = f"{type(method).__name__} may wait for the GPU while it chooses; use vlm-pruner"
    elif method.released or method.renumber or method.calibrate or method.newlines != "prunable":
        reason = "with compat, renumber, calibrate or newlines, pruning waits for the GPU; leave them out"
    elif not kernels.loaded(kernels.backend(torch.empty(0, device=device))):
        reason = f"it needs the GPU kernels: install triton, and set {kernels.VARIABLE} to auto or on"
    elif (decoder.config._attn_implementation or "sdpa") != "sdpa":
        reason = f'attn_implementation={decoder.config._attn_implementation!r}: load the model with "sdpa"'
    elif "deepstack_visual_embeds" in inspect.signature(decoder.forward).parameters:
        reason = f"{type(decoder).__name__} adds features of the picture between its layers; leave it out"
    elif any(hasattr(module, "_hf_hook") for module in decoder.modules()):
        reason = "Accelerate moves this model's layers or inputs between devices; load it onto one"
    if reason is not None:
        raise PruningError(f"cuda_graphs=True: {reason}")


def _fits(call: LayerCall) -> bool:
    """Whether a call can be captured: a fresh prefill without padding, gradients or autocast."""
    cache = call.cache
    return (
        type(cache) is DynamicCache
        and int(cache.get_seq_length()) == 0
        and call.kwargs.get("attention_mask") is None
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(call.hidden.device.type)
        and call.hidden.device.type in DEVICES
    )


def _key(call: LayerCall, run: Run) -> Any:
    """What decides a captured prefill, other than the contents of its inputs."""
    shape = None if run.rotary is None else tuple(run.rotary.shape)
    inputs = tuple((tuple(tensor.shape), tensor.dtype, tensor.device) for tensor in _tensors(call))
    others = tuple((name, value) for name, value in sorted(call.kwargs.items()) if isinstance(value, (bool, int, str)))
    return _stream(call.hidden), torch.is_inference_mode_enabled(), inputs, others, frozen(run.images), shape


def _stream(like: Tensor) -> int | None:
    return int(torch.cuda.current_stream(like.device).cuda_stream) if like.is_cuda else None


def frozen(value: Any) -> Any:
    """`value` as something hashable, equal for equal contents: tensors, dataclasses and containers of them."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
    if is_dataclass(value):
        return tuple(frozen(getattr(value, entry.name)) for entry in fields(value) if not entry.name.startswith("_"))
    if isinstance(value, (list, tuple)):
        return tuple(frozen(part) for part in value)
    return value


def _tensors(call: LayerCall) -> list[Tensor]:
    """The call's input tensors, the cache's excepted."""
    cache, found = cache_of(call.kwargs), []
    for value in (*call.args, *(call.kwargs[name] for name in sorted(call.kwargs))):
        if value is not cache:
            found += [part for part in (value if isinstance(value, tuple) else (value,)) if isinstance(part, Tensor)]
    return found


def _static(call: LayerCall) -> LayerCall:
    """The call with copies of its input tensors."""

    def copy(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(copy(part) for part in value)
        return value.clone() if isinstance(value, Tensor) else value

    return replace(call, args=copy(call.args), kwargs={name: copy(value) for name, value in call.kwargs.items()})


def _cloned(part: Any) -> Any:
    """A copy of a Selection or ShortCache, with tensors of its own."""
    if part is None:
        return None
    tensors = {entry.name: getattr(part, entry.name) for entry in fields(part)}
    return replace(part, **{name: value.clone() for name, value in tensors.items() if isinstance(value, Tensor)})
