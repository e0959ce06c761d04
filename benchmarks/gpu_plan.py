"""What the GPU checks share: a line with its bar, what is run at which size, and the choice of kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from vlm_pruner import CentrifugalPruner, kernels
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.speed import models

TEXT = 60  # words beside the picture


@dataclass(frozen=True)
class Check:
    """One line. value: None for an error or where nothing was checked. at_least: the bar's sense."""

    name: str
    value: float | None
    unit: str = ""
    bar: float | None = None
    at_least: bool = False
    note: str = ""
    error: bool = False

    @property
    def verdict(self) -> str:
        if self.error:
            return "ERROR"
        if self.bar is None or self.value is None:
            return "-"
        return "PASS" if (self.value >= self.bar if self.at_least else self.value <= self.bar) else "FAIL"

    def __str__(self) -> str:
        figure = "" if self.value is None else f"{self.value:.3f} {self.unit}"
        bar = "" if self.bar is None else f"{'at least' if self.at_least else 'at most'} {self.bar:g}"
        return f"{self.verdict:<6}{self.name:<58}{figure:>14}  {bar:<15}{self.note}"


@dataclass(frozen=True)
class Plan:
    """What is run: the whole, or a tiny share of it on a CPU, without bars of speed."""

    device: str
    pictures: tuple[tuple[int, int, int, int], ...]  # height, width, channels, kept: for agreement
    sizes: tuple[tuple[int, int, int, int, float], ...]  # the same and the bar in ms: for timing
    model: str
    next_model: str
    layers: int | None
    rounds: int

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    def bar(self, value: float) -> float | None:
        return None if self.dry else value


WHOLE = Plan(
    "cuda",
    ((5, 3, 64, 6), (13, 11, 300, 20), (24, 24, 4096, 64)),
    ((24, 24, 4096, 64, 0.30), (48, 60, 4096, 320, 1.0), (128, 128, 4096, 1820, 10.0)),
    "llava-1.5-7b",
    "llava-next-7b",
    None,
    10,
)
DRY = Plan("cpu", ((5, 3, 32, 6),), ((5, 4, 32, 7, 1.0),), "tiny", "tiny", 3, 1)


@contextmanager
def kernels_set(choice: str) -> Iterator[None]:
    before = os.environ.get(kernels.VARIABLE)
    os.environ[kernels.VARIABLE] = choice
    try:
        yield
    finally:
        del os.environ[kernels.VARIABLE]
        if before is not None:
            os.environ[kernels.VARIABLE] = before


def arms(visual: int, keep: int) -> list[Arm]:
    return [Arm("dense", visual), Arm("vlm-pruner", keep, CentrifugalPruner(keep_tokens=keep))]


def model_of(plan: Plan, name: str) -> Any:
    dtype = torch.float32 if plan.dry else torch.bfloat16
    return models.build(name, device=plan.device, dtype=dtype, layers=plan.layers)
