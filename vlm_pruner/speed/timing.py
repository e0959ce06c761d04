"""Times `generate`: round by round, the dense model and every method take turns on one prompt size after another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

import vlm_pruner as vp
from vlm_pruner.asking.answer import cache_bytes
from vlm_pruner.decoder.cache_names import with_cache
from vlm_pruner.experiments.arms import Arm, turned
from vlm_pruner.experiments.journal import Journal
from vlm_pruner.speed.stopwatch import Clock, Stopwatch, timed
from vlm_pruner.speed.workload import Workload, make_workload


@dataclass(frozen=True)
class Case:
    """One prompt size. `visual` is the requested number of tokens; the workload states the possible one."""

    batch: int
    visual: int
    text: int
    new_tokens: int
    purpose: str = ""

    @property
    def key(self) -> str:
        return f"{self.purpose}batch {self.batch}, {self.visual} visual, {self.text} text, {self.new_tokens} new"


@dataclass(frozen=True)
class Run:
    """One `generate`: seconds by name (see `Stopwatch.figures`), bytes, and the pruning steps."""

    seconds: dict[str, float]
    kv_bytes: int
    peak_bytes: int | None
    steps: list[list[int]]  # (layer, visual tokens from it on) of the first image; empty if dense


def check_cache(model: nn.Module) -> None:
    """Raises ValueError if the model would recompute the whole prompt for every token."""
    config: Any = model.config
    parts = {"config": config, "text_config": config.get_text_config(), "generation_config": model.generation_config}
    for name, part in parts.items():
        if getattr(part, "use_cache", None) is False:
            raise ValueError(
                f"the model's {name} has use_cache=False: every token would prefill the whole prompt again, and the "
                "timing would mean nothing; set it to true"
            )


def run_once(model: nn.Module, work: Workload, arm: Arm, new_tokens: int) -> Run:
    """Times one greedy `generate` of `new_tokens` tokens with a fresh cache."""
    device = next(model.parameters()).device
    watch = Stopwatch(Clock(device))
    cache = DynamicCache(config=model.config)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with ExitStack() as stack:
        stack.enter_context(watch.watch(model))
        pruning = stack.enter_context(vp.prune(model, _timed(arm, watch))) if arm.method else None
        watch.clock.wait()
        start = watch.clock.now()
        model.generate(
            **with_cache(work.inputs, cache),
            use_cache=True,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        end = watch.clock.now()
    seconds = watch.figures(start, end)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Run(seconds, cache_bytes(cache), peak, pruning.receipts[0].images[0].steps if pruning else [])


def _timed(arm: Arm, watch: Stopwatch) -> Any:
    assert arm.method is not None
    return timed(arm.method, lambda: watch.around(watch.selection))


def peak_cpu_bytes(run: Callable[[], object]) -> int:
    """Peak bytes of tensors that `run` allocates. Slow: not for timed runs."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # keeps the profiler from writing into the progress bar
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results = profiler.profiler.kineto_results
    events = sorted((e for e in results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    in_use = most = 0
    for event in events:
        in_use += event.nbytes()
        most = max(most, in_use)
    return most


def run_cases(
    model: nn.Module,
    plans: Sequence[tuple[Case, Sequence[Arm]]],
    rounds: int,
    journal: Journal,
    advance: Callable[[int], object],
    seed: int = 0,
) -> None:
    """Runs what the journal lacks and writes each run to it. Calls `advance(n)` after every n runs.

    Each case runs every arm once to warm up (and, on a CPU, to measure its memory), then `rounds` rounds of all arms in
    rotating order, so that a slow minute of the machine affects all arms alike.
    """
    done = {(record["case"], record["arm"], record["round"]) for record in journal.records}
    for case, arms in plans:
        wanted = [(case.key, arm.key, turn) for arm in arms for turn in range(rounds)]
        missing = [key for key in wanted if key not in done]
        advance(len(wanted) - len(missing))
        if missing:
            _run_case(model, case, arms, rounds, done, journal, advance, seed)


def _run_case(
    model: nn.Module,
    case: Case,
    arms: Sequence[Arm],
    rounds: int,
    done: set[tuple[str, str, int]],
    journal: Journal,
    advance: Callable[[int], object],
    seed: int,
) -> None:
    work = make_workload(model, case.visual, case.text, case.batch, seed)
    peaks = {arm.key: _warm_up(model, work, arm, case) for arm in arms}
    for turn, arm in [(number, arm) for number in range(rounds) for arm in turned(arms, number)]:
        if (case.key, arm.key, turn) not in done:
            run = run_once(model, work, arm, case.new_tokens)
            record = {"case": case.key, "arm": arm.key, "round": turn, "visual": work.visual, "text": work.text}
            record |= asdict(run) | {"peak_bytes": run.peak_bytes or peaks[arm.key]}
            journal.write([record])
            advance(1)


def _warm_up(model: nn.Module, work: Workload, arm: Arm, case: Case) -> int | None:
    """Absorbs first-call allocations and lazy set-up. Returns the peak memory on a CPU, weights included."""
    run_once(model, work, arm, case.new_tokens)
    if case.purpose or next(model.parameters()).device.type != "cpu":
        return None
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return weights + peak_cpu_bytes(lambda: run_once(model, work, arm, 1))
