"""Checks the GPU kernels and measures selection and prefills on this machine's GPU, in one call of at most 8 minutes.

    python benchmarks/gpu_check.py --out gpu_check.json    # needs a GPU, torch >= 2.11, transformers, Triton
    python benchmarks/gpu_check.py --cpu-dry-run           # every section at a tiny size in Triton's interpreter

Each section stands alone: one that fails says so, and the others run. A line of the table is a figure with its bar:
PASS, FAIL, ERROR, or `-` where there is no bar or nothing to check. Ends with 0 if nothing failed, 1 if something
did, 2 without a GPU. Models have random weights at the published shapes, which decide the speed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if "--cpu-dry-run" in sys.argv:  # Triton reads it when it is imported
    os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from transformers import LlamaConfig

import vlm_pruner as vp
from benchmarks.gpu_graphs import graph_prefills, layer_graphs
from benchmarks.gpu_plan import DRY, TEXT, WHOLE, Check, Plan, arms, kernels_set, model_of
from benchmarks.gpu_responses import flash_attention, largest_batch, responses
from benchmarks.selection_speed import picture
from vlm_pruner import CentrifugalPruner, TokenLayout
from vlm_pruner.decoder.image_states import plan as planned
from vlm_pruner.decoder.layer_call import KeyTap, LayerCall
from vlm_pruner.decoder.short_caches import ShortCaches
from vlm_pruner.decoder.stage import Run, Stage
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import VisualSpan
from vlm_pruner.methods.view import View
from vlm_pruner.provenance import environment
from vlm_pruner.speed import models
from vlm_pruner.speed.timing import run_once
from vlm_pruner.speed.workload import make_workload

SECONDS = 420  # by default no section starts later, so that the whole stays under 8 minutes
KIT = Path(__file__).resolve().parents[2] / "shared" / "conformance"


def choose(
    method: CentrifugalPruner, hidden: Tensor, keys: Tensor, layout: TokenLayout, path: str = "on"
) -> tuple[Tensor, Tensor]:
    """Order and merged rows, by the kernels or, with path="off", by the torch path on the same device."""
    assert method.keep_tokens is not None
    with kernels_set(path):
        selection = method.select(hidden, keys, layout, method.keep_tokens)
        return selection.order, method.merge(hidden, selection)


def agreement(plan: Plan) -> Iterator[Check]:
    """The same tokens in the same order as the torch path on the CPU, and merged rows within the dtype's rounding."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for height, width, channels, keep in plan.pictures:
            for token_batch in (1, 16):
                yield _agreement(plan, (height, width, channels), keep, token_batch, dtype)


def _agreement(plan: Plan, size: tuple[int, int, int], keep: int, token_batch: int, dtype: torch.dtype) -> Check:
    states, keys, layout = picture(*size, seed=0)
    states, keys = states.to(dtype), keys.to(dtype)
    method = CentrifugalPruner(keep_tokens=keep, token_batch=token_batch)
    with kernels_set("off"):
        plain = method.select(states, keys, layout, keep)
        wanted = method.merge(states, plain)
    order, rows = choose(method, states.to(plan.device), keys.to(plan.device), layout)
    same = order.cpu() == plain.order
    differs = "" if same.all() else f"differs first at position {int((~same).nonzero()[0])}"
    error = float((rows.cpu().float() - wanted.float()).abs().max() / wanted.float().abs().max())
    if not differs and error > 4 * torch.finfo(dtype).eps + 1e-5:
        differs = f"merged rows differ by {error:.1e} of the largest"
    name = f"as on the CPU: {size[0] * size[1]} tokens, batch {token_batch}, {str(dtype).removeprefix('torch.')}"
    return Check(name, float(not differs), "", 1, True, differs)


def goldens(plan: Plan) -> Iterator[Check]:
    """The released code's selections in the conformance kit, wherever it meets its own budget."""
    folder = Path(os.environ.get("VLM_PRUNER_CONFORMANCE", KIT)) / "selection"
    if not folder.is_dir():
        yield Check("goldens", None, note="no conformance kit here; VLM_PRUNER_CONFORMANCE names its folder")
        return
    from safetensors.torch import load_file

    tensors = load_file(folder / "selection.safetensors")
    cases = json.loads((folder / "selection.json").read_text())["cases"]
    if plan.dry:
        cases = [min(cases, key=lambda case: case["grid"][0] * case["grid"][1])]
    same = total = 0
    for case in cases:
        hidden, keys = (tensors[f"case{case['case']}.{part}"].float().to(plan.device) for part in ("hidden", "keys"))
        for config in [config for config in case["configs"] if not config["underfilled"]]:
            method = CentrifugalPruner(
                keep_tokens=config["budget"],
                **{name: config[name] for name in ("threshold", "token_batch", "pivots")},
            )
            order, _ = choose(method, hidden, keys, TokenLayout.grid(*case["grid"]))
            same += order.sort().values.tolist() == config["retained"]
            total += 1
    yield Check("goldens: share of configurations with the same tokens", same / total, "", 1, True, f"{total} of them")


def repeated(plan: Plan) -> Iterator[Check]:
    """Three runs on the same input give the same bits."""
    method, inputs = example(plan)
    (order, rows), *others = [choose(method, *inputs) for _ in range(3)]
    same = all(order.equal(other) and rows.equal(merged) for other, merged in others)
    yield Check("three runs: the same bits", float(same), "", 1, True)


def example(plan: Plan, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> tuple[CentrifugalPruner, Any]:
    height, width, channels, keep = plan.sizes[0][:4]
    states, keys, layout = picture(height, width, channels, seed)
    return CentrifugalPruner(keep_tokens=keep), (states.to(plan.device, dtype), keys.to(plan.device, dtype), layout)


def together(plan: Plan) -> Iterator[Check]:
    """Images of a batch, chosen from and merged in one launch each: the same as one by one, bit by bit."""
    method, images = _batch(plan, 3)
    pairs = zip(*choose_batch(method, images), images, strict=True)
    same = [
        order.equal(alone) and rows.equal(merged)
        for order, rows, image in pairs
        for alone, merged in [choose(method, *image)]
    ]
    yield Check("images of a batch: the same together as alone", sum(same) / len(same), "", 1, True, f"{len(same)}")


def _batch(plan: Plan, images: int) -> tuple[CentrifugalPruner, list[tuple[Tensor, Tensor, TokenLayout]]]:
    examples = [example(plan, seed) for seed in range(images)]
    return examples[0][0], [inputs for _, inputs in examples]


def choose_batch(
    method: CentrifugalPruner, images: list[tuple[Tensor, Tensor, TokenLayout]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Orders and merged rows of all images."""
    assert method.keep_tokens is not None
    with kernels_set("on"):
        selections = method.choose_all([View(*image, method.keep_tokens) for image in images])
        rows = [method.merge(image[0], chosen) for image, chosen in zip(images, selections, strict=True)]
    return [chosen.order for chosen in selections], rows


def no_wait(plan: Plan) -> Iterator[Check]:
    """Nothing between a layer's output and the short sequence makes the host wait for the device: torch would raise."""
    method, images = _batch(plan, 2)
    text, text_keys = images[0][0][:5], images[0][1][:5]
    hidden = torch.stack([torch.cat([text, states, text]) for states, _, _ in images])
    keys = torch.stack([torch.cat([text_keys, keys, text_keys]) for _, keys, _ in images])[:, None]
    spans = [[VisualSpan(len(text), len(layout), layout)] for _, _, layout in images]
    decoder: Any = SimpleNamespace(config=LlamaConfig(attn_implementation="sdpa"))
    stage = Stage(decoder, method, 2, ShortCaches(object()), None)
    phases = tuple(hidden.new_zeros(1, hidden.shape[1], 128) for _ in range(2))
    call = LayerCall(torch.nn.Identity(), 2, (hidden,), {"position_embeddings": phases})

    def run() -> None:
        tap = KeyTap(None)
        tap.update(keys, keys)
        with kernels_set("on"):
            stage.cut(call, Run(planned(spans, method, 8), tap=tap))

    run()
    if plan.dry:
        yield Check("the host never waits", None, note="nothing to wait for on a CPU")
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    yield Check("the host never waits", 1, "", 1, True)


def graph(plan: Plan) -> Iterator[Check]:
    """Captured once and replayed on another picture: the same as run anew."""
    method, (hidden, keys, layout) = example(plan)
    _, (other, other_keys, _) = example(plan, seed=1)
    choose(method, hidden, keys, layout)  # what is compiled or copied once is not for the graph
    wanted, wanted_rows = choose(method, other, other_keys, layout)
    if plan.dry:
        yield Check("CUDA graph", None, note="no graphs on a CPU; the selection to compare with ran")
        return
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        order, rows = choose(method, hidden, keys, layout)
    hidden.copy_(other)
    keys.copy_(other_keys)
    captured.replay()
    torch.cuda.synchronize()
    yield Check("CUDA graph: replay equals run", float(order.equal(wanted) and rows.equal(wanted_rows)), "", 1, True)


def compiled(plan: Plan) -> Iterator[Check]:
    """A compiled model is refused by name; layers with a compiled `forward` are pruned as without."""
    backend = "eager" if plan.dry else "inductor"
    model: Any = models.build("tiny", device=plan.device, layers=3)
    work = make_workload(model, 16 if plan.dry else 576, 8, 1)
    method = CentrifugalPruner(keep_tokens=8)

    def kept() -> list[int]:
        with kernels_set("on"), torch.no_grad(), vp.prune(model, method) as pruning:
            model(**work.inputs)
        return list(pruning.receipts[-1].images[0].indices)

    wanted = kept()
    try:
        with vp.prune(torch.compile(model, backend=backend), method):
            refused = False
    except PruningError:
        refused = True
    yield Check("torch.compile of the model is refused by name", float(refused), "", 1, True)
    for layer in model.model.language_model.layers:
        layer.mlp.forward = torch.compile(layer.mlp.forward, backend=backend)
    yield Check("parts of layers compiled: the same tokens", float(kept() == wanted), "", 1, True)


def milliseconds(run: Callable[[], object], plan: Plan, repeats: int) -> list[float]:
    """Sorted. Device events around single runs that were all queued before the first is waited for."""
    for _ in range(1 if plan.dry else 5):
        run()
    if plan.dry:
        start = time.perf_counter()
        run()
        return [1000 * (time.perf_counter() - start)]
    torch.cuda.synchronize()
    marks = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return sorted(begin.elapsed_time(end) for begin, end in marks)


def selection(plan: Plan) -> Iterator[Check]:
    """Selection and SWA together, bf16: as called from Python, and as a captured graph, without the host's share."""
    for height, width, channels, keep, bar in plan.sizes:
        states, keys, layout = picture(height, width, channels, seed=0)
        inputs = states.to(plan.device, torch.bfloat16), keys.to(plan.device, torch.bfloat16), layout
        method = CentrifugalPruner(keep_tokens=keep)
        run = lambda method=method, inputs=inputs: choose(method, *inputs)  # noqa: E731
        title = f"selection + SWA, {height * width} to {keep} tokens, d = {channels}"
        yield _median(title, milliseconds(run, plan, 50), plan.bar(bar))
        plain = lambda method=method, inputs=inputs: choose(method, *inputs, path="off")  # noqa: E731
        yield _median(title + ", torch path", milliseconds(plain, plan, 5), None)
        if not plan.dry:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                run()
            yield _median(title + ", graph", milliseconds(captured.replay, plan, 50), None)


def selection_in_batches(plan: Plan) -> Iterator[Check]:
    """The same for several images at once, by the time that one image takes."""
    method, images = _batch(plan, 2 if plan.dry else 8)
    alone = statistics.median(milliseconds(lambda: choose_batch(method, images[:1]), plan, 50))
    times = milliseconds(lambda: choose_batch(method, images), plan, 50)
    yield _median(f"selection + SWA, {len(images)} images at once", times, None)
    yield Check("... in times of one image", statistics.median(times) / alone, "x")


def _median(title: str, times: list[float], bar: float | None) -> Check:
    note = f"min {times[0]:.3f}, p95 {times[int(0.95 * len(times))]:.3f}"
    return Check(title, statistics.median(times), "ms", bar, False, note)


def llava(plan: Plan) -> Iterator[Check]:
    """LLaVA-1.5-7B, 576 to 64 tokens: prefill at batch 1 and 8, and the share of choosing in the dense prefill."""
    model = model_of(plan, plan.model)
    visual, keep = (16, 8) if plan.dry else (576, 64)
    for batch, bar in ((1, 2.6), (8, 3.5)):
        dense, pruned, chosen = _prefills(plan, model, visual, keep, 1 if plan.dry else batch)
        yield _speedup(f"{plan.model} prefill, {keep} of {visual} tokens, batch {batch}", dense, pruned, plan.bar(bar))
        if batch == 1:
            share = 100 * statistics.median(chosen) / statistics.median(dense)
            yield Check(f"{plan.model}: choosing, of the dense prefill", share, "%", plan.bar(3))
    yield _busy(plan, model, visual, keep)


def _busy(plan: Plan, model: Any, visual: int, keep: int) -> Check:
    """What the device itself works for a prompt's first token: says whether a short prefill waits for its launches."""
    name = f"{plan.model}: device busy, dense over pruned, batch 1"
    if plan.dry:
        return Check(name, None, note="no device to look at")
    from torch.profiler import ProfilerActivity, profile

    work, busy = make_workload(model, visual, TEXT, 1), []
    with kernels_set("on"), torch.no_grad():
        for arm in arms(work.visual, keep):
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                run_once(model, work, arm, 1)
                torch.cuda.synchronize()
            busy.append(sum(event.self_device_time_total for event in profiler.key_averages()) / 1000)
    note = f"{busy[0]:.1f} and {busy[1]:.1f} ms, vision tower included"
    return Check(name, busy[0] / busy[1], "x", None, True, note)


def llava_next(plan: Plan) -> Iterator[Check]:
    """LLaVA-NeXT-7B: 320 tokens of one picture."""
    model = model_of(plan, plan.next_model)
    visual, keep = (25, 8) if plan.dry else (2880, 320)
    dense, pruned, _ = _prefills(plan, model, visual, keep, 1)
    yield _speedup(f"{plan.next_model} prefill, {keep} of about {visual} tokens", dense, pruned, plan.bar(4.5))


def _prefills(plan: Plan, model: Any, visual: int, keep: int, batch: int) -> tuple[list[float], ...]:
    """Seconds of dense prefills, of pruned ones and of choosing in these; taking turns, after two of each."""
    work = make_workload(model, visual, 8 if plan.dry else TEXT, batch)
    turns = arms(work.visual, keep)
    dense, pruned, chosen = [], [], []
    warm_up = 0 if plan.dry else 2
    with kernels_set("on"), torch.no_grad():
        for turn in range(-warm_up, plan.rounds):
            short, long = (run_once(model, work, arm, 1).seconds for arm in reversed(turns))
            if turn >= 0:
                dense.append(long["prefill"])
                pruned.append(short["prefill"])
                chosen.append(short["selection"])
    return dense, pruned, chosen


def _speedup(title: str, dense: list[float], pruned: list[float], bar: float | None) -> Check:
    ratios = sorted(long / short for long, short in zip(dense, pruned, strict=True))
    note = f"dense {1000 * statistics.median(dense):.1f} ms, pairs {ratios[0]:.2f} to {ratios[-1]:.2f}"
    return Check(title, statistics.median(dense) / statistics.median(pruned), "x", bar, True, note)


# What decides comes first: a call that runs out of time has the bars' lines.
SECTIONS = (
    *(agreement, goldens, together, repeated, no_wait, graph, compiled, selection, selection_in_batches, llava),
    *(graph_prefills, layer_graphs, flash_attention, responses, largest_batch),
)


def run_section(section: Callable[[Plan], Iterator[Check]], plan: Plan) -> Iterator[Check]:
    """The section's checks; what it raises becomes a line, with the traceback on stderr."""
    try:
        yield from section(plan)
    except Exception as error:
        traceback.print_exc()
        yield Check(section.__name__, None, note=f"{type(error).__name__}: {str(error)[:200]}", error=True)
    finally:
        if not plan.dry:
            torch.cuda.empty_cache()


def _too_late(section: Callable[[Plan], Iterator[Check]]) -> Callable[[Plan], Iterator[Check]]:
    """Stands in for a section that there is no time left for."""
    return lambda plan: iter([Check(section.__name__, None, note="not run: its time was over", error=True)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON with all lines and the environment")
    parser.add_argument("--sections", nargs="+", choices=[section.__name__ for section in SECTIONS])
    parser.add_argument("--cpu-dry-run", action="store_true")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="start no section later (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small pictures only, for compute-sanitizer")
    arguments = parser.parse_args()
    if not arguments.cpu_dry_run and not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False; --cpu-dry-run tries this script without one")
        return 2
    plan, began, checks = _plan(arguments), time.monotonic(), []
    made_with = environment()
    for section in SECTIONS:
        if arguments.sections and section.__name__ not in arguments.sections:
            continue
        for check in run_section(section if time.monotonic() - began < arguments.seconds else _too_late(section), plan):
            print(check, flush=True)
            checks.append(check)
            if arguments.out:  # after every line, so that a call that is cut off loses nothing
                write(arguments.out, plan, checks, made_with)
    failed = _failed(checks)
    print(f"{failed} of {len(checks)} lines failed; {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    if arguments.cpu_dry_run:
        return DRY
    return replace(WHOLE, pictures=WHOLE.pictures[:2]) if arguments.small else WHOLE


def write(path: Path, plan: Plan, checks: list[Check], made_with: dict[str, Any]) -> None:
    """All lines so far, as JSON. The file is whole at any moment."""
    lines = [asdict(check) | {"verdict": check.verdict} for check in checks]
    record = {"dry_run": plan.dry, "checks": lines, "failed": _failed(checks), "environment": made_with}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(path)


def _failed(checks: list[Check]) -> int:
    return sum(check.verdict in ("FAIL", "ERROR") for check in checks)


if __name__ == "__main__":
    sys.exit(main())
