"""Odd inputs for pruning methods, drawn by hypothesis: shapes, dtypes, memory layouts, and unlikely numbers.

`cases(method)` draws a View with everything that any method reads, and a budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import vlm_pruner as vp
from vlm_pruner.methods import Pruner, View

HEADS = 2
KINDS = (
    "normal",
    "constant",
    "equal rows",
    "one-hot",
    "huge",
    "tiny",
    "zero",
    "common direction",
    "denormal",
    "sparse",
)
UNFIT = ("nan", "inf", "-inf")  # numbers with which no choice is right
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("plain", "strided", "transposed", "expanded")


@dataclass(frozen=True)
class Case:
    """One call of a method. described: for the message of a failure."""

    method: Pruner
    view: View
    described: str


def numbers(kind: str, rows: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    """[rows, columns] of a kind."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, columns, generator=generator)
    made = {
        "normal": lambda: drawn,
        "constant": lambda: torch.full_like(drawn, 0.5),
        "equal rows": lambda: drawn[:1].expand(rows, columns).clone(),
        "one-hot": lambda: torch.eye(max(rows, columns))[:rows, :columns],
        "huge": lambda: drawn * (1e4 if dtype == torch.float16 else 1e18),
        "tiny": lambda: drawn * 1e-6,
        "zero": lambda: torch.zeros_like(drawn),
        "common direction": lambda: drawn * 1e-2 + 30,
        "denormal": lambda: drawn * 1e-39,
        "sparse": lambda: drawn * (drawn > 1),
    }[kind if kind in KINDS else "normal"]()
    if kind in UNFIT:
        made = made.clone()
        made[seed % rows, seed % columns] = float(kind)
    return made.to(dtype)


def laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same numbers in another order of memory."""
    if layout == "strided":
        wide = tensor.new_zeros(tensor.shape[0], 2 * tensor.shape[1])
        wide[:, ::2] = tensor
        return wide[:, ::2]
    if layout == "transposed":
        return tensor.t().contiguous().t()
    return tensor[:, None].expand(-1, 2, -1)[:, 1] if layout == "expanded" else tensor


def view_of(
    kind: str, layout: vp.TokenLayout, budget: int, width: int, seed: int, dtype: torch.dtype, order: str
) -> View:
    n, text = layout.coords.shape[0], 1 + seed % 3

    def make(place: int, rows: int) -> Tensor:
        return laid_out(numbers(kind, rows, width, seed + place, dtype), order)

    def rows_of(place: int, queries: int) -> Tensor:
        scores = numbers("normal" if kind in UNFIT else kind, HEADS * queries, n, seed + place, torch.float32)
        return torch.softmax(scores, -1).reshape(HEADS, queries, n)

    return View(
        make(0, n), make(1, n), layout, budget,
        hidden_before=make(2, n), text_hidden=make(3, text), text_keys=make(4, text), embeddings=make(5, n),
        text_embeddings=make(6, text), final_norm=lambda rows: rows, attend=lambda asked: rows_of(7, len(asked)),
        attend_next=lambda asked: rows_of(8, len(asked)), cls_attention=rows_of(9, 1)[:, 0], patch_features=make(10, n),
        patch_keys=make(11, n), last_layer=(make(12, 1)[0], make(13, 1 + n)), project=lambda rows: rows.to(dtype),
    )  # fmt: skip


@st.composite
def cases(draw: Any, name: str, unfit: bool = False) -> Case:
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    frames = draw(st.sampled_from([0, 0, 0, 2]))
    layout = vp.TokenLayout.video(frames, height, width) if frames else vp.TokenLayout.grid(height, width)
    n = layout.coords.shape[0]
    budget = draw(st.one_of(st.just(1), st.just(n), st.integers(1, n)))
    kind, dtype = draw(st.sampled_from(UNFIT if unfit else KINDS)), draw(st.sampled_from(DTYPES))
    channels, seed = draw(st.sampled_from([2, 6, 32])), draw(st.integers(0, 10_000))
    order = draw(st.sampled_from(LAYOUTS))
    method = vp.methods.get(name)(reduction_ratio=min(0.999, 1 - budget / n))
    view = view_of(kind, layout, max(budget, min(n, method.least_tokens)), channels, seed, dtype, order)
    shape = f"{frames or 1} x {height} x {width}"
    return Case(method, view, f"{kind}, {dtype}, {order}, {shape}, {view.budget} of {n}, seed {seed}")


def is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else math.nan
