"""What every method promises, whatever it is given: hypothesis looks for an input that breaks it.

2,000 cases in all; `VLM_PRUNER_CASES=50000 python -m pytest tests/test_properties.py` looks further.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vlm_pruner as vp
from tests import odd_tensors
from tests.every_method import of_videos
from tests.odd_tensors import Case
from vlm_pruner.methods import Selection

NAMES = [*vp.methods.names(), *of_videos()]
CASES = int(os.environ.get("VLM_PRUNER_CASES", "2000"))
EACH = max(1, CASES // (2 * len(NAMES)))
patient = settings(
    max_examples=EACH, deadline=None, derandomize=CASES <= 2000, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)  # fmt: skip


def choose(case: Case) -> Selection | None:
    """What the method chooses; None if it refuses, which takes a message."""
    try:
        return case.method.choose(case.view)
    except ValueError as error:  # PruningError among them
        assert len(str(error)) > 20, repr(error)
        return None


def check(case: Case, chosen: Selection) -> None:
    n = case.view.layout.coords.shape[0]
    indices, order = chosen.indices.tolist(), chosen.order.tolist()
    assert indices == sorted(set(indices)), f"not ascending or not unique: {case.described}"
    assert sorted(order) == indices, f"order is not a permutation of indices: {case.described}"
    assert 1 <= len(indices) <= n and indices[0] >= 0 and indices[-1] < n, case.described
    if chosen.nearest is not None:
        assert chosen.nearest.shape == (n,) and int(chosen.nearest.min()) >= 0, case.described
        assert int(chosen.nearest.max()) < len(indices), case.described
        assert chosen.nearest[chosen.indices].tolist() == list(range(len(indices))), case.described


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_is_a_choice(name: str) -> None:
    """Exactly the budget, each token once; the same again, and from contiguous memory; merged rows are finite."""

    @patient
    @given(odd_tensors.cases(name))
    def holds(case: Case) -> None:
        chosen = choose(case)
        if chosen is None:
            return
        check(case, chosen)
        assert len(chosen.indices) == case.view.budget, f"{len(chosen.indices)} kept: {case.described}"
        again = choose(case)
        assert again is not None and torch.equal(again.order, chosen.order), f"not repeatable: {case.described}"
        merged = case.method.merge(case.view.hidden, chosen)
        assert (
            merged.shape == (len(chosen.indices), case.view.hidden.shape[1]) and merged.dtype == case.view.hidden.dtype
        )
        assert odd_tensors.is_finite(merged) or not odd_tensors.is_finite(case.view.hidden), case.described

    holds()


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_are_none_do_not_break_a_choice(name: str) -> None:
    """NaN or infinity in one place: a whole choice or a refusal with a message, no crash and no token twice."""

    @patient
    @given(odd_tensors.cases(name, unfit=True))
    def holds(case: Case) -> None:
        chosen = choose(case)
        if chosen is not None:
            check(case, chosen)

    holds()


@settings(patient, max_examples=200)
@given(st.integers(1, 4000), st.floats(0, 1, exclude_max=True), st.sampled_from(NAMES))
def test_budgets_are_within_the_picture(tokens: int, ratio: float, name: str) -> None:
    method = vp.methods.get(name)(reduction_ratio=ratio)
    kept = method.budget(tokens)
    assert 1 <= kept <= tokens and (ratio > 0 or kept == tokens)
