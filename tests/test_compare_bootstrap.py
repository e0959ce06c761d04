"""The bootstrap over pictures: against a slow, obvious version, and in cases with known answers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlm_pruner.experiments.bootstrap import PictureBootstrap, holm


def questions(pictures: int, each: int, seed: int = 0):
    """Pictures and kinds of questions, some pictures with one less, and differences -1, 0, 1."""
    rng = random.Random(seed)
    places = [(p, k) for p in range(pictures) for k in range(each - p % 2)]
    return [p for p, _ in places], [f"kind {k}" for _, k in places], [rng.choice([-1, 0, 0, 1, 1]) for _ in places]


def test_it_is_the_plain_bootstrap_over_pictures():
    """Picture by picture and question by question, with the same draws."""
    pictures, kinds, values = questions(11, 3)
    made = PictureBootstrap(pictures, kinds, resamples=200, seed=5)
    drawn = np.random.default_rng(5).multinomial(11, [1 / 11] * 11, size=200)
    means = []
    for counts in drawn:
        sums, sizes = {}, {}
        for picture, times in enumerate(counts):
            for p, kind, value in zip(pictures, kinds, values, strict=True):
                if p == picture and times:
                    sums[kind] = sums.get(kind, 0) + times * value
                    sizes[kind] = sizes.get(kind, 0) + times
        means.append(np.mean([sums[kind] / sizes[kind] for kind in sums]))
    found = made.over_kinds(values)
    assert found.n == len(values)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    of_kinds = [np.mean([v for v, k in zip(values, kinds, strict=True) if k == kind]) for kind in dict.fromkeys(kinds)]
    assert found.mean == pytest.approx(np.mean(of_kinds))
    assert [interval.mean for interval in made.by_kind(values).values()] == pytest.approx(of_kinds)
    assert found == PictureBootstrap(pictures, kinds, resamples=200, seed=5).over_kinds(values)


def test_pictures_that_answer_as_one_make_the_interval_wider():
    """Six questions with one outcome per picture say as much as one question: the width of a picture's mean."""
    rng = random.Random(1)
    outcome = [rng.choice([0.0, 1.0]) for _ in range(60)]
    pictures = [p for p in range(60) for _ in range(6)]
    values = [outcome[p] for p in pictures]
    together = PictureBootstrap(pictures, ["k"] * 360).over_kinds(values)
    alone = PictureBootstrap(range(360), ["k"] * 360).over_kinds(values)
    spread = np.std(outcome) / 60**0.5
    assert (together.high - together.low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert (together.high - together.low) / (alone.high - alone.low) == pytest.approx(6**0.5, rel=0.1)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """400 experiments with a mean of 0.1 and two correlated questions per picture; 95 % +- 3 standard errors."""
    rng = np.random.default_rng(0)
    pictures = [p for p in range(40) for _ in range(2)]
    covered, significant = 0, 0
    for number in range(400):
        shared, own = rng.normal(size=40), rng.normal(size=80)
        values = 0.1 + shared[pictures] + own
        found = PictureBootstrap(pictures, ["a", "b"] * 40, resamples=400, seed=number).over_kinds(list(values))
        covered += found.low <= 0.1 <= found.high
        significant += found.excludes_zero == (found.p < 0.05)
    assert 0.90 < covered / 400 < 0.98
    assert significant > 385, "verdicts by interval and by p agree but for rounding"


def test_no_difference_is_no_difference():
    found = PictureBootstrap(range(9), ["k"] * 9).over_kinds([0.0] * 9)
    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1) and not found.excludes_zero


def test_a_kind_that_a_resample_lacks_does_not_spoil_it():
    found = PictureBootstrap(range(9), ["rare"] + ["k"] * 8).over_kinds([1.0] + [0.0] * 8)
    assert found.mean == 0.5 and 0 <= found.low <= found.high <= 0.5


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.parametrize(("pictures", "kinds"), [([], []), ([1], ["a", "b"])])
def test_questions_are_checked(pictures, kinds):
    with pytest.raises(ValueError, match="give one of each per question"):
        PictureBootstrap(pictures, kinds)
    with pytest.raises(ValueError, match="2 values for 1 questions"):
        PictureBootstrap([1], ["a"]).over_kinds([1, 2])
