"""What calibration costs: the time of a forward call with it, relative to the same method's without.

    python benchmarks/calibration_cost.py                                    # 12 layers, random weights, on the CPU
    python benchmarks/calibration_cost.py --model llava-1.5-7b --device cuda --dtype bfloat16 --rounds 40

The calls take turns, and each round's own ratio counts, so that a machine that changes its pace changes it for all. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vlm_pruner as vp
from vlm_pruner.console import words
from vlm_pruner.experiments.arms import DENSE, Arm, ModelFacts, make_arms, turned
from vlm_pruner.provenance import environment
from vlm_pruner.speed import models
from vlm_pruner.speed.stopwatch import Clock
from vlm_pruner.speed.summary import ratio
from vlm_pruner.speed.workload import Workload, make_workload

CALIBRATIONS = ("size", "size+distance")
WARM_UP = 2  # rounds


def arms_of(methods: list[str], keep: int, visual: int) -> list[Arm]:
    """Dense, then each method without calibration and with each kind of it."""
    names = [name + more for name in methods for more in ("", *(f":calibrate={kind}" for kind in CALIBRATIONS))]
    return make_arms([DENSE, *names], [str(keep)], ModelFacts(visual))


@torch.inference_mode()
def seconds_of(model: nn.Module, work: Workload, arms: list[Arm], rounds: int) -> dict[str, list[float]]:
    """Seconds of a forward call over the prompt, the vision tower included, by arm's name and round."""
    clock = Clock(next(model.parameters()).device)
    times: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for turn in range(WARM_UP + rounds):
        for arm in turned(arms, turn):
            seconds = _seconds(model, work, arm, clock)
            if turn >= WARM_UP:
                times[arm.name].append(seconds)
    return times


def _seconds(model: nn.Module, work: Workload, arm: Arm, clock: Clock) -> float:
    clock.wait()
    start = clock.now()
    if arm.method is None:
        model(**work.inputs)
    else:
        with vp.prune(model, arm.method):
            model(**work.inputs)
    end = clock.now()
    clock.wait()
    return clock.seconds(start, end)


def report(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row per calibrated arm: what it adds to the method's own time, in %, with the rounds' 95 % interval."""
    rows = []
    for name, own in times.items():
        method, calibrated, kind = name.partition(":calibrate=")
        if calibrated:
            found = ratio(own, times[method])
            rows.append({"method": method, "calibrate": kind, **{k: 100 * (v - 1) for k, v in found.items()}})
    return rows


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small", help=f"{', '.join(models.NAMES)} (%(default)s)")
    parser.add_argument("--methods", type=words, default=["vlm-pruner", "divprune:layer=2"], metavar="NAME,NAME")
    parser.add_argument("--visual", type=int, default=576, metavar="N", help="tokens (%(default)s)")
    parser.add_argument("--keep", type=int, default=64, metavar="N", help="tokens (%(default)s)")
    parser.add_argument("--text", type=int, default=60, metavar="N", help="tokens (%(default)s)")
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="(%(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args(argv)
    model = models.build(args.model, device=args.device, dtype=getattr(torch, args.dtype))
    work = make_workload(model, args.visual, args.text, 1)
    rows = report(seconds_of(model, work, arms_of(args.methods, args.keep, work.visual), args.rounds))
    for row in rows:
        print("{method:20} {calibrate:14} {value:+.1f} % [{low:+.1f}, {high:+.1f}]".format(**row))
    print(json.dumps({"model": args.model, "rounds": args.rounds, "rows": rows, "environment": environment()}))


if __name__ == "__main__":
    main()
