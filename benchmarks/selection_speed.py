"""Compares selection with the slow reference in time and memory, against bars. The last line is JSON.

    python benchmarks/selection_speed.py                                # all sizes; the reference holds 3 GiB
    python benchmarks/selection_speed.py --sizes llava-1.5 --repeats 50
    python benchmarks/selection_speed.py --sizes tiny --repeats 3

Both sides get the same made-up picture (patches of like tokens, a common direction, noise) and select and merge; the
kept tokens must be equal, or the command fails. At 16,384 tokens the reference would need hundreds of gigabytes: there
only the library runs. Token batches take turns and are compared round by round. Memory is what a call holds at its peak
beside its inputs; the reference works in blocks from 1,024 tokens on (tests/reference.py), so the memory ratio at 2,880
is lower than in one piece. Ends with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import operator
import os
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference import reference_prune
from vlm_pruner import CentrifugalPruner, TokenLayout, __version__
from vlm_pruner.geometry.videos import video_layout

GIB = 2**30
TOKEN_BATCHES = (1, 16)


@dataclass(frozen=True)
class Size:
    """A picture of height x width tokens with `hidden` channels, of which `keep` stay, and the bars at this size.

    frames: of a video whose rows end with newline tokens, which `width` includes.
    faster: minimum ratio of the reference's time to the library's; None if the reference cannot run.
    leaner: the same for peak memory. seconds, gib: maximum for one call of the library.
    """

    height: int
    width: int
    hidden: int
    keep: int
    faster: float | None = None
    leaner: float | None = None
    seconds: float | None = None
    gib: float | None = None
    frames: int = 1

    @property
    def tokens(self) -> int:
        return self.frames * self.height * self.width


SIZES = {
    "tiny": Size(8, 9, 64, 12, faster=1.0),
    "llava-1.5": Size(24, 24, 4096, 64, faster=40),
    "llava-next": Size(48, 60, 4096, 320, faster=60, leaner=20),
    "large": Size(128, 128, 4096, 1820, seconds=2, gib=1),
    "llava-video": Size(14, 15, 3584, 1492, seconds=0.5, gib=0.3, frames=64),
}
STANDARD = ("llava-1.5", "llava-next", "large")


@dataclass(frozen=True)
class Gate:
    """One figure and its bar. at_least: whether the bar is a minimum rather than a maximum."""

    name: str
    value: float
    bar: float
    at_least: bool

    @property
    def met(self) -> bool:
        return self.value >= self.bar if self.at_least else self.value <= self.bar

    def __str__(self) -> str:
        sense = "at least" if self.at_least else "at most"
        return f"{self.name:<52} {self.value:>9.2f}   {sense} {self.bar:g}: {'met' if self.met else 'MISSED'}"


def picture(height: int, width: int, hidden: int, seed: int) -> tuple[Tensor, Tensor, TokenLayout]:
    generator = torch.Generator().manual_seed(seed)
    n = height * width
    objects = torch.randn(n // 8 + 1, hidden, generator=generator)
    owner = torch.randint(len(objects), (n,), generator=generator).sort().values
    common = 0.5 * torch.randn(hidden, generator=generator)
    states = torch.randn(n, hidden, generator=generator).mul_(0.6).add_(common)
    for start in range(0, n, 1024):  # no second matrix of this size, which would hide what a call holds
        states[start : start + 1024] += objects[owner[start : start + 1024]]
    return states, torch.randn(n, hidden, generator=generator), TokenLayout.grid(height, width)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak resident memory that `run` adds, sampled every millisecond."""
    ctypes.CDLL(None).malloc_trim(0)  # or glibc serves the run from freed memory, unseen
    before = peak = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        done.set()
        watcher.join()
    return peak - before


def milliseconds(calls: list[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Times of `repeats` runs of each of `calls`, round by round, after one warm-up round.

    The calls take turns, and each round starts with a different one, so that drift affects all of them alike.
    """
    times: list[list[float]] = [[] for _ in calls]
    for repeat in range(-1, repeats):
        for turn in range(len(calls)):
            which = (repeat + turn) % len(calls)
            start = time.perf_counter()
            calls[which]()
            if repeat >= 0:
                times[which].append(1000 * (time.perf_counter() - start))
    return times


def measure(size: Size, repeats: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    """One row per token batch: median times in ms with their spread, peak memory in bytes, and the ratios."""
    states, keys, layout = picture(size.frames * size.height, size.width, size.hidden, seed)
    if size.frames > 1:
        layout = video_layout(size.frames, size.height, "grid")
    states, keys = states.to(dtype), keys.to(dtype)

    def prepared(token_batch: int) -> Callable[[], list[int]]:
        method = CentrifugalPruner(keep_tokens=size.keep, token_batch=token_batch)

        def run() -> list[int]:
            selection = method.select(states, keys, layout, size.keep)
            method.merge(states, selection)
            return selection.order.tolist()

        return run

    calls = [prepared(token_batch) for token_batch in TOKEN_BATCHES]
    rows, taken = [], milliseconds(list(calls), repeats)
    for token_batch, call, times in zip(TOKEN_BATCHES, calls, map(sorted, taken), strict=True):
        row: dict[str, Any] = {"tokens": size.tokens, "token_batch": token_batch, "repeats": repeats}
        row |= {"fast_ms": statistics.median(times), "fast_min_ms": times[0], "fast_p95_ms": times[int(0.95 * repeats)]}
        row["over_largest_batch"] = statistics.median(map(operator.truediv, taken[len(rows)], taken[-1]))
        row["fast_bytes"] = peak_bytes(call)
        if size.faster is not None:
            row |= _beside_reference(states, keys, layout, size, token_batch, call())
            row["faster"] = row["slow_ms"] / row["fast_ms"]
            row["leaner"] = row["slow_bytes"] / max(1, row["fast_bytes"])
        rows.append(row)
    return rows


def _beside_reference(
    states: Tensor, keys: Tensor, layout: TokenLayout, size: Size, token_batch: int, order: list[int]
) -> dict[str, float]:
    """Median time and peak memory of the reference. Raises SystemExit if it keeps tokens other than `order`."""
    slow: list[list[int]] = []

    def run() -> None:
        result = reference_prune(states, keys, layout.coords, layout.diagonal, size.keep, token_batch=token_batch)
        slow.append(result.order)

    times = []
    runs = 3 if size.tokens < 1000 else 1
    for _ in range(runs):
        start = time.perf_counter()
        peak = peak_bytes(run)
        times.append(1000 * (time.perf_counter() - start))
    if slow[0] != order:
        raise SystemExit(f"{size}, token batch {token_batch}: fast and slow selection keep different tokens")
    return {"slow_ms": statistics.median(times), "slow_bytes": peak}


def gates(name: str, rows: list[dict[str, Any]]) -> list[Gate]:
    """The figures of one size, each with its bar."""
    size, made = SIZES[name], []
    for row in rows:
        title = f"{size.tokens} tokens, {size.keep} kept, token batch {row['token_batch']}: "
        for figure, value, bar, at_least in [
            ("times faster than the reference", row.get("faster"), size.faster, True),
            ("times leaner than the reference", row.get("leaner"), size.leaner, True),
            ("seconds", row["fast_ms"] / 1000, size.seconds, False),
            ("GiB beside the inputs", row["fast_bytes"] / GIB, size.gib, False),
        ]:
            if bar is not None:
                made.append(Gate(title + figure, value, bar, at_least))
    over = f"{size.tokens} tokens: token batch 1 over token batch 16"
    made.append(Gate(over, rows[0]["over_largest_batch"], 1.5, at_least=False))
    return made


def ratios(sizes: tuple[str, ...] = STANDARD, repeats: int = 15) -> list[Gate]:
    """Measures every figure that has a bar. Raises SystemExit if library and reference keep different tokens."""
    return [gate for name in sizes for gate in gates(name, measured(name, repeats))]


def measured(name: str, repeats: int, seed: int = 0) -> list[dict[str, Any]]:
    """Calls `measure` for the size called `name`, with fewer repeats for larger sizes."""
    return measure(SIZES[name], max(3, repeats * 4000 // max(4000, SIZES[name].tokens)), seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), default=list(STANDARD))
    parser.add_argument("--repeats", type=int, default=30, help="runs of the library at up to 4,000 tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    rows, passed = {}, []
    for name in arguments.sizes:
        rows[name] = measured(name, arguments.repeats, arguments.seed)
        for gate in gates(name, rows[name]):
            print(gate, flush=True)
            passed.append(gate)
    environment = {
        "vlm_pruner": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    figures = [asdict(gate) | {"met": gate.met} for gate in passed]
    print(json.dumps({"config": vars(arguments), "rows": rows, "gates": figures, "environment": environment}))
    if not all(gate.met for gate in passed):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
