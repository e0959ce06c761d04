"""Selection beside the slow reference: milliseconds at the sizes of LLaVA-1.5-7B. The last line is one JSON document.

    python benchmarks/selection_speed.py                   # N = 576, d = 4096, 64 tokens kept
    python benchmarks/selection_speed.py --grid 12 12 --hidden 512 --keep 16 --repeats 3

Both sides get the same made-up picture (patches of like tokens, a common direction, noise) and select and merge; the
kept tokens must be equal, or the command fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.reference import reference_prune
from vlm_pruner import CentrifugalPruner, TokenLayout, __version__


def picture(height: int, width: int, hidden: int, seed: int) -> tuple[Tensor, Tensor, TokenLayout]:
    generator = torch.Generator().manual_seed(seed)
    n = height * width
    objects = torch.randn(n // 8 + 1, hidden, generator=generator)
    owner = torch.randint(len(objects), (n,), generator=generator).sort().values
    common = 0.5 * torch.randn(hidden, generator=generator)
    states = objects[owner] + common + 0.6 * torch.randn(n, hidden, generator=generator)
    return states, torch.randn(n, hidden, generator=generator), TokenLayout.grid(height, width)


def milliseconds(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and standard deviation of `repeats` runs, after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), statistics.pstdev(times)


def measure(token_batch: int, arguments: argparse.Namespace) -> dict[str, Any]:
    states, keys, layout = picture(*arguments.grid, arguments.hidden, arguments.seed)
    method = CentrifugalPruner(keep_tokens=arguments.keep, token_batch=token_batch)

    def fast() -> list[int]:
        selection = method.select(states, keys, layout, arguments.keep)
        method.merge(states, selection)
        return selection.order.tolist()

    def slow() -> list[int]:
        result = reference_prune(states, keys, layout.coords, layout.diagonal, arguments.keep, token_batch=token_batch)
        return result.order

    if fast() != slow():
        raise SystemExit(f"token batch {token_batch}: fast and slow selection keep different tokens")
    fast_ms, fast_sd = milliseconds(fast, arguments.repeats)
    slow_ms, slow_sd = milliseconds(slow, max(1, arguments.repeats // 5))
    return {
        "token_batch": token_batch,
        "fast_ms": fast_ms,
        "fast_sd": fast_sd,
        "slow_ms": slow_ms,
        "slow_sd": slow_sd,
        "ratio": slow_ms / fast_ms,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs=2, default=[24, 24], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--hidden", type=int, default=4096, help="channels of hidden states and keys")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens to keep")
    parser.add_argument("--token-batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=15, help="runs of the fast side; the slow one runs a fifth")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    print(f"{'token batch':>11} {'slow ms':>10} {'fast ms':>10} {'ratio':>8}")
    rows = []
    for token_batch in arguments.token_batches:
        row = measure(token_batch, arguments)
        rows.append(row)
        print(f"{token_batch:>11} {row['slow_ms']:>10.1f} {row['fast_ms']:>10.2f} {row['ratio']:>7.1f}x", flush=True)
    environment = {
        "vlm_pruner": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    print(json.dumps({"config": vars(arguments), "rows": rows, "environment": environment}))


if __name__ == "__main__":
    main()
