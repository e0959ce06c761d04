"""The bootstrap over pictures: against a slow, obvious version, and in cases with known answers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vlm_pruner.experiments.bootstrap import DIFFERENCE, SHARE, PictureBootstrap, holm


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


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_equal_answers_have_the_exact_interval_of_their_pictures(share):
    """At 0 and 100 %: the share that would give such an outcome with a probability of 2.5 %."""
    made = PictureBootstrap([p // 2 for p in range(80)], ["a", "b"] * 40, resamples=100)
    for found in (made.over_kinds([share] * 80, SHARE), *made.by_kind([share] * 80, SHARE).values()):
        far = found.low if share else found.high
        assert (found.high if share else found.low) == found.mean == share
        assert (far if share else 1 - far) ** 40 == pytest.approx(0.025)  # 40 pictures, whatever the questions


def test_no_changed_answer_does_not_mean_that_none_could_change():
    made = PictureBootstrap(range(100), ["a"] * 100, resamples=100)
    found = made.over_kinds([0.0] * 100, DIFFERENCE)
    assert found.mean == 0 and found.high == -found.low == pytest.approx(1 - 0.025**0.01)
    assert not found.excludes_zero
    assert made.over_kinds([1.0] * 100, DIFFERENCE).excludes_zero  # always better is better


def test_the_interval_is_continuous_at_the_end():
    """One wrong answer of 80 does not make the interval wider than none does, and the bootstrap takes over there."""
    made = PictureBootstrap(range(80), ["a"] * 80)
    all_right, one_wrong = (made.over_kinds([1.0] * (80 - n) + [0.0] * n, SHARE) for n in (0, 1))
    assert one_wrong.high == 1.0 and all_right.low == pytest.approx(one_wrong.low, abs=0.01)
    assert made.over_kinds([1.0] * 79 + [0.0]) == one_wrong
