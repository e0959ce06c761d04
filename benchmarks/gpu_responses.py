"""Sections of `gpu_check.py` on whole responses: decoding, memory, throughput, and FlashAttention beside SDPA."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import torch_flash
from benchmarks.gpu_plan import TEXT, Check, Plan, arms, kernels_set, model_of
from vlm_pruner import CentrifugalPruner
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.speed.timing import Run, run_once
from vlm_pruner.speed.workload import Workload, make_workload


def responses(plan: Plan) -> Iterator[Check]:
    """32 new tokens at batch 1, 8 and 32: seconds in all, per step of decoding, peak memory, bytes of the cache."""
    model, visual, keep = model_of(plan, plan.model), 16 if plan.dry else 576, 8 if plan.dry else 64
    for batch in (1,) if plan.dry else (1, 8, 32):
        work = make_workload(model, visual, 8 if plan.dry else TEXT, batch)
        long, short = _in_turns(model, work, arms(work.visual, keep), plan)
        title = f"{plan.model}, batch {batch}"
        for part, name in (("end_to_end", "whole response"), ("per_token", "step of decoding")):
            dense, pruned = (statistics.median(run.seconds[part] for run in runs) for runs in (long, short))
            bar = plan.bar(1.0) if batch == 1 and part == "per_token" else None
            yield _ratio(f"{title}: {name}", dense, pruned, "s", bar)
        long, short = long[0], short[0]
        yield _ratio(f"{title}: bytes of the cache", long.kv_bytes, short.kv_bytes, "bytes")
        if long.peak_bytes and short.peak_bytes:
            yield _ratio(f"{title}: peak memory", long.peak_bytes, short.peak_bytes, "bytes")


def largest_batch(plan: Plan) -> Iterator[Check]:
    """The largest power of two of prompts that fits, and its prompts per second, dense and pruned."""
    model, visual, keep = model_of(plan, plan.model), 16 if plan.dry else 576, 8 if plan.dry else 64
    for arm in arms(visual, keep):
        best, batch = (0, 0.0), 1
        while batch <= (2 if plan.dry else 512):
            try:
                run = run_once(model, make_workload(model, visual, TEXT, batch), arm, 2 if plan.dry else 8)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                break
            best, batch = (batch, batch / run.seconds["end_to_end"]), 2 * batch
        yield Check(
            f"{plan.model}, {arm.name}: prompts per second", best[1], "/s", note=f"batch {best[0]}, 8 tokens each"
        )


def flash_attention(plan: Plan) -> Iterator[Check]:
    """FlashAttention-2 and -3, where installed, answer as SDPA does, on a ragged batch of the embedded model."""
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    yield _flash(plan, "eager")  # the check itself, checked
    if not plan.dry and not is_flash_attn_2_available():
        with torch_flash.installed():
            yield _flash(plan, "flash_attention_2", "with PyTorch's own FlashAttention-2 kernel")
    for name, there in (
        ("flash_attention_2", is_flash_attn_2_available()),
        ("flash_attention_3", is_flash_attn_3_available()),
    ):
        yield _flash(plan, name) if there and not plan.dry else Check(name, None, note="not installed, or no GPU here")


def _flash(plan: Plan, name: str, note: str = "") -> Check:
    """Largest difference of logits to SDPA's in bf16, over twice what bf16 itself changes in SDPA's."""
    exact = _ragged_logits(plan.device, "sdpa", torch.float32)
    plain, other = _ragged_logits(plan.device, "sdpa"), _ragged_logits(plan.device, name)
    share = float((other - plain).abs().max()) / (2 * float((plain - exact).abs().max()))
    return Check(f"{name}: pruned logits of a ragged batch, of SDPA's rounding", share, "x", 1, note=note)


def _ragged_logits(device: str, attention: str, dtype: torch.dtype | None = None) -> Tensor:
    """Last logits of two prompts of unlike length, padded on the left, float32 [2, vocabulary]."""
    from llava.model.builder import load_model
    from vlm_pruner.experiments.mini import CHECKPOINT

    model = load_model(CHECKPOINT, dtype=dtype or torch.bfloat16, device=device, attn_implementation="sdpa")
    model.model.config._attn_implementation = attention  # not while loading, which asks for the package
    model.method = CentrifugalPruner(keep_tokens=64)
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(2, 3, 336, 336, generator=generator).to(device, model.dtype)
    long = [1, *range(20, 32), -200, *range(40, 60)]
    short = [1, -200, *range(40, 50)]
    rows = torch.tensor([long, [0] * (len(long) - len(short)) + short], device=device)
    mask = torch.ones_like(rows)
    mask[1, : len(long) - len(short)] = 0
    with torch.no_grad():
        return model(input_ids=rows, attention_mask=mask, images=pictures).logits[:, -1].float()


def _in_turns(model: Any, work: Workload, turns: list[Arm], plan: Plan) -> list[list[Run]]:
    """Runs of each arm, by the kernels, taking turns after one of each that does not count."""
    runs: list[list[Run]] = [[] for _ in turns]
    with kernels_set("on"), torch.no_grad():
        for turn in range(1 if plan.dry else 4):
            for number, arm in enumerate(turns):
                run = run_once(model, work, arm, 3 if plan.dry else 32)
                if turn or plan.dry:
                    runs[number].append(run)
    return runs


def _ratio(title: str, dense: float, pruned: float, unit: str, bar: float | None = None) -> Check:
    return Check(title, dense / pruned, "x", bar, True, f"dense {dense:.4g}, pruned {pruned:.4g} {unit}")
