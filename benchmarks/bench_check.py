"""Checks the CPU ratios that must not fall: `make bench-check`. Exits with 1 if one misses its bar.

    python benchmarks/bench_check.py

One process, under three minutes on two quiet cores. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import Qwen2VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import selection_speed
from benchmarks.prefill_overhead import overhead
from benchmarks.selection_speed import Gate
from vlm_pruner.cost.flops import DecoderShape, lengths, prefill_seconds
from vlm_pruner.cost.machine import measure
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.speed import models
from vlm_pruner.speed.summary import ratio
from vlm_pruner.speed.timing import Run, run_once
from vlm_pruner.speed.workload import make_workload

KIT = Path(os.environ.get("VLM_PRUNER_CONFORMANCE", Path(__file__).resolve().parents[2] / "shared" / "conformance"))
KEPT, ROUNDS, PAIRS = 64, 15, 600
SIZE = "llava-1.5"  # of those in benchmarks/selection_speed.py


def overhead_gate() -> Gate | None:
    """Overhead of keeping every token, as a share of a dense prefill; None without the model that the bar was set for.

    The added time hardly depends on the model, so a smaller model has a larger share: see docs/performance.md.
    """
    folder = KIT / "qwen2_vl" / "qwen2-vl-tiny"
    if not folder.is_dir():
        return None
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    return Gate("overhead, share of a dense prefill", overhead(model, PAIRS)["overhead"], 0.02, at_least=False)


def prefill_and_decode() -> Iterator[Gate]:
    """Measures `small`: the share of the predicted prefill speed-up that it reaches, and dense over pruned decoding."""
    model = models.build("small")
    work = make_workload(model, 576, 60, 1)
    arms = make_arms(["dense", "vlm-pruner"], [KEPT], 576)
    for arm in arms:
        run_once(model, work, arm, 2)
    runs: dict[str, list[Run]] = {arm.key: [] for arm in arms}
    for _ in range(ROUNDS):
        for arm in arms:
            runs[arm.key].append(run_once(model, work, arm, 12))
    dense, pruned = runs.values()

    def faster(name: str) -> float:
        return ratio([run.seconds[name] for run in dense], [run.seconds[name] for run in pruned])["value"]

    shape, machine = DecoderShape.of(model.config.get_text_config()), measure("cpu")
    long, short = (
        prefill_seconds(shape, lengths(shape, work.text, work.visual, steps), machine, bytes_per_number=4)
        for steps in ([], [(2, KEPT)])
    )
    yield Gate("prefill, share of the predicted speed-up", faster("prefill") * short / long, 0.85, at_least=True)
    yield Gate("decoding, dense over pruned", faster("per_token"), 1.0, at_least=True)


def _measured() -> Iterator[Gate]:
    gate = overhead_gate()
    if gate is None:
        print(f"overhead: not measured, {KIT}/qwen2_vl is not here; set VLM_PRUNER_CONFORMANCE", flush=True)
    else:
        yield gate
    yield from prefill_and_decode()
    yield from selection_speed.ratios((SIZE,), repeats=9)  # the larger sizes alone take longer than all of this may


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    started = time.perf_counter()
    gates = []
    for gate in _measured():
        print(gate, flush=True)
        gates.append(gate)
    record = {"gates": [asdict(gate) | {"met": gate.met} for gate in gates], "seconds": time.perf_counter() - started}
    print(json.dumps(record | {"threads": torch.get_num_threads(), "torch": torch.__version__}))
    sys.exit(not all(gate.met for gate in gates))


if __name__ == "__main__":
    main()
