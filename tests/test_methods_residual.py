"""Residual selection against an obvious version, and its own guarantees."""

from __future__ import annotations

import pytest
import torch

import vlm_pruner as vp
from tests.tiny_llava import inputs, prompt, tiny_llava
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import View
from vlm_pruner.selection.residual import order_by_residual

Residual, Question = vp.methods.get("residual"), vp.methods.get("residual-question")


def slow_order(rows: torch.Tensor, count: int) -> list[int]:
    """Each time the row farthest (L2) from the span of those chosen, by least squares, in float64."""
    order: list[int] = []
    for _ in range(count):
        apart = rows.norm(dim=1)
        if order:
            basis = rows[order].T
            apart = (rows.T - basis @ torch.linalg.lstsq(basis, rows.T).solution).norm(dim=0)
        apart[order] = -1
        order.append(int(apart.argmax()))
    return order


@pytest.mark.parametrize(("tokens", "channels", "count"), [(35, 17, 9), (7, 30, 6), (50, 13, 13)])
def test_order_is_that_of_least_squares(tokens, channels, count):
    rows = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(tokens), dtype=torch.float64)
    assert order_by_residual(rows, count).tolist() == slow_order(rows, count)


def test_after_the_rank_it_starts_anew():
    rows = torch.tensor([[3.0, 0], [2, 0], [0, 1], [1, 0], [0, 0.5]], dtype=torch.float64)
    assert order_by_residual(rows, 5).tolist() == [0, 2, 1, 4, 3]


def test_equal_rows_are_chosen_once_each():
    assert sorted(order_by_residual(torch.zeros(6, 4), 6).tolist()) == list(range(6))
    assert sorted(order_by_residual(torch.ones(6, 4), 6).tolist()) == list(range(6))


def view(budget: int, looked: torch.Tensor | None = None, **changes) -> View:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(30, 12, generator=generator)
    looked = torch.ones(30) if looked is None else looked
    fields = {"text_hidden": torch.zeros(4, 12), "attend_next": lambda queries: looked.expand(2, len(queries), 30)}
    return View(hidden, hidden, vp.TokenLayout.grid(5, 6), budget, **{**fields, **changes})


def test_a_common_part_of_all_states_does_not_matter():
    plain = view(9)
    shifted = View(**{**vars(plain), "hidden": plain.hidden + 50})
    method = Residual(keep_tokens=9)
    assert method.choose(plain).order.tolist() == method.choose(shifted).order.tolist()


def test_a_question_that_looks_everywhere_alike_changes_nothing_and_one_that_looks_brings_its_token_first():
    plain, method = Residual(keep_tokens=9).choose(view(9)), Question(keep_tokens=9, attention=4.0)
    assert method.choose(view(9)).order.tolist() == plain.order.tolist()
    last = int(plain.order[-1])
    looked = torch.full((30,), 0.01)
    looked[last] = 1.0
    assert int(method.choose(view(9, looked)).order[0]) == last
    assert Question(keep_tokens=9, attention=0.0).choose(view(9, looked)).order.tolist() == plain.order.tolist()


def test_spares_sign_is_the_opposite_of_ours():
    """Unattended tokens come first: the order is ours for the opposite attention, and no power makes it `residual`."""
    looked = torch.rand(30, generator=torch.Generator().manual_seed(5))
    looked[3], looked[7] = 0.0, 1.0
    ours, spares = Question(keep_tokens=30, attention=4.0), Question(keep_tokens=30, attention=4.0, favour="unattended")
    opposite = ours.choose(view(9, 1 - looked)).order.tolist()
    assert spares.choose(view(9, looked)).order.tolist() == opposite != ours.choose(view(9, looked)).order.tolist()
    whole = [method.choose(view(30, looked)).order.tolist() for method in (ours, spares)]
    assert whole[0].index(3) > whole[1].index(3) and whole[0].index(7) < whole[1].index(7)
    plain = Residual(keep_tokens=9).choose(view(9)).order.tolist()
    assert Question(keep_tokens=9, attention=0.0, favour="unattended").choose(view(9, looked)).order.tolist() == plain


def test_dropped_tokens_go_to_the_most_similar_kept_one():
    method, seen = Residual(keep_tokens=9, channels=7), view(9)
    selection = method.choose(seen)
    chosen = seen.hidden.var(dim=0).argsort(descending=True)[:7]
    unit = torch.nn.functional.normalize(seen.hidden[:, chosen], dim=1)
    expected = (unit @ unit[selection.indices].T).argmax(dim=1)
    assert selection.nearest.tolist() == expected.tolist()
    merged = method.merge(seen.hidden, selection)
    for place, kept in enumerate(selection.indices.tolist()):
        members = [i for i in range(30) if int(expected[i]) == place and i != kept and selection.similarity[i] > 0]
        weights = selection.similarity[members]
        row = seen.hidden[kept]
        if members:
            row = 0.7 * row + 0.3 * (weights[:, None] * seen.hidden[members]).sum(dim=0) / weights.sum()
        torch.testing.assert_close(merged[place], row)
    unmerged = Residual(keep_tokens=9, self_weight=1.0)
    assert torch.equal(unmerged.merge(seen.hidden, selection), seen.hidden[selection.indices])


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Residual, {"channels": 0}, "channels=0"),
        (Residual, {"self_weight": 1.2}, "self_weight=1.2"),
        (Question, {"attention": -1.0}, "attention=-1.0"),
        (Question, {"layer": -1}, "layer=-1"),
        (Question, {"favour": "all"}, "favour='all'"),
    ],
)
def test_bad_settings_are_named(method, settings, message):
    with pytest.raises(PruningError, match=message):
        method(keep_tokens=9, **settings)


def test_states_with_nan_are_refused():
    broken = view(9)
    broken.hidden[4, 2] = float("nan")
    with pytest.raises(PruningError, match="NaN"):
        Residual(keep_tokens=9).choose(broken)


def test_the_question_decides_inside_a_model():
    model, kept = tiny_llava(), []
    for seed in (0, 1):
        batch = inputs(prompt(), images=[0])
        if seed:
            batch["input_ids"][0, -4:] = batch["input_ids"][0, -4:].flip(0) % 5 + 3
        with torch.no_grad(), vp.prune(model, Question(keep_tokens=6, attention=8.0)) as pruning:
            model(**batch)
        kept.append(pruning.receipts[0].images[0].order)
    assert kept[0] != kept[1]
