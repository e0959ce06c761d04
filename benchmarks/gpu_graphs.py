"""Sections of `gpu_check.py`: prefills whose layers are replayed as one CUDA graph."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from transformers import DynamicCache

import vlm_pruner as vp
from benchmarks.gpu_plan import TEXT, Check, Plan, kernels_set, model_of
from vlm_pruner import CentrifugalPruner, TokenLayout
from vlm_pruner.decoder.cache_names import cache_argument, with_cache
from vlm_pruner.decoder.pruning import DecoderPruning
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.speed.stopwatch import Clock, Stopwatch
from vlm_pruner.speed.workload import Workload, make_workload


def graph_prefills(plan: Plan) -> Iterator[Check]:
    """Prefills without the vision tower: dense, pruned, and pruned with cuda_graphs=True, taking turns."""
    visual, keep = (16, 8) if plan.dry else (576, 64)
    model = model_of(plan, plan.model)
    for batch, bar in ((1, 2.6), (8, 3.5)):
        yield from _compared(plan, model, plan.model, visual, keep, 1 if plan.dry else batch, bar)
    del model
    visual, keep = (25, 8) if plan.dry else (2880, 320)
    yield from _compared(plan, model_of(plan, plan.next_model), plan.next_model, visual, keep, 1, 4.5)


def _compared(plan: Plan, model: Any, name: str, visual: int, keep: int, batch: int, bar: float) -> Iterator[Check]:
    work, method = make_workload(model, visual, 8 if plan.dry else TEXT, batch), CentrifugalPruner(keep_tokens=keep)
    with kernels_set("on"):
        contexts = [nullcontext(), vp.prune(model, method), vp.prune(model, method, cuda_graphs=not plan.dry)]
        times: list[list[dict[str, float]]] = [[], [], []]
        for turn in range(1 if plan.dry else 3 + plan.rounds):
            for number, context in enumerate(contexts):
                with context:
                    figures = _prefill(model, work)
                if plan.dry or turn >= 3:
                    times[number].append(figures)
    title = f"{name}, batch {batch}, {work.visual} to {keep}"
    for part, kind in (("prefill", "prefill"), ("first_token", "first token, vision tower included")):
        dense, pruned, graph = (1000 * statistics.median(figures[part] for figures in one) for one in times)
        note = f"dense {dense:.1f}, pruned {pruned:.1f}, graph {graph:.1f} ms"
        yield Check(f"{title}: {kind}, pruned", dense / pruned, "x", note=note)
        wanted = plan.bar(bar) if part == "prefill" else None
        yield Check(f"{title}: {kind}, pruned, cuda_graphs", dense / graph, "x", wanted, True)
    if not plan.dry:
        yield Check(f"{title}: replays", float(contexts[2].replays), "", 1.0 + plan.rounds, True)


def _prefill(model: Any, work: Workload) -> dict[str, float]:
    watch = Stopwatch(Clock(next(model.parameters()).device))
    with watch.watch(model), torch.no_grad():
        watch.clock.wait()
        start = watch.clock.now()
        model(**with_cache(work.inputs, DynamicCache()), use_cache=True, logits_to_keep=1)
        return watch.figures(start, watch.clock.now())


def layer_graphs(plan: Plan) -> Iterator[Check]:
    """The decoder's layers alone, run as usual and as a graph, dense and pruned: what both gain from a graph."""
    decoder = model_of(plan, plan.model).model.language_model
    whole = ((1, (24, 24), 64), (8, (24, 24), 64), (1, (48, 60), 320))
    for batch, grid, keep in ((1, (4, 4), 8),) if plan.dry else whole:
        layers = _Layers(plan, decoder, batch, TokenLayout.grid(*grid))
        with torch.no_grad(), kernels_set("on"):
            dense = layers.timed()
            with DecoderPruning(decoder, CentrifugalPruner(keep_tokens=keep)) as pruning:
                pruned = layers.timed(pruning)
        title = f"layers, batch {batch}, {math.prod(grid)} to {keep}"
        for kind in dense:
            note = f"dense {dense[kind]:.2f}, pruned {pruned[kind]:.2f} ms"
            yield Check(f"{title}: {kind}", dense[kind] / pruned[kind], "x", note=note)


class _Layers:
    """The decoder's layers on noise, with one picture among 60 words in each row."""

    def __init__(self, plan: Plan, decoder: Any, batch: int, layout: TokenLayout) -> None:
        self.plan, self.decoder = plan, decoder
        length = len(layout) + TEXT
        like = next(decoder.parameters())
        self.hidden = torch.randn(batch, length, decoder.config.hidden_size, device=plan.device).to(like.dtype)
        self.positions = torch.arange(length, device=plan.device)[None]
        self.phases = decoder.rotary_emb(self.hidden, self.positions)
        self.spans = [[VisualSpan(TEXT // 2, len(layout), layout)] for _ in range(batch)]

    def run(self, pruning: DecoderPruning | None = None) -> Any:
        if pruning is not None:
            pruning.expect(self.spans)
        hidden, cache = self.hidden, DynamicCache()
        for layer in self.decoder.layers:
            call = {"attention_mask": None, "position_ids": self.positions, "position_embeddings": self.phases}
            hidden = layer(hidden, **call, **cache_argument(cache), use_cache=True)
        return hidden, cache

    def timed(self, pruning: DecoderPruning | None = None) -> dict[str, float]:
        """Milliseconds: until the host has queued all, until all is done, and of a graph's replay."""
        wait = (lambda: None) if self.plan.dry else torch.cuda.synchronize
        run = partial(self.run, pruning)
        times: dict[str, list[float]] = {"queued by the host": [], "done": [], "as a graph": []}
        for _ in range(1 if self.plan.dry else 8):
            _time(run, wait, times["queued by the host"], times["done"])
        if self.plan.dry:
            del times["as a graph"]
        else:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                kept = run()
            for _ in range(10):
                _time(graph.replay, wait, [], times["as a graph"])
            del kept
        return {kind: statistics.median(found) for kind, found in times.items()}


def _time(run: Callable[[], object], wait: Callable[[], object], queued: list[float], done: list[float]) -> None:
    wait()
    start = time.perf_counter()
    run()
    queued.append(1000 * (time.perf_counter() - start))
    wait()
    done.append(1000 * (time.perf_counter() - start))
