"""Standard errors by small, exact formulas; no resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence


def ratio(part: float, whole: float) -> float:
    """``part / whole``, or 0 if ``whole`` is 0 (where official scorers crash)."""
    return part / whole if whole else 0.0


def binomial_stderr(share: float, n: int) -> float:
    """Standard error of a share of n independent items: sqrt(p (1 - p) / n)."""
    return math.sqrt(share * (1.0 - share) / n) if n else 0.0


def percent(hits: int, n: int) -> tuple[float, float]:
    """The share of n independent items and its standard error, both in percent."""
    share = ratio(hits, n)
    return 100 * share, 100 * binomial_stderr(share, n)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def mean_stderr(values: Sequence[float]) -> float:
    """Standard error of a mean from the items' own variance (n - 1 in the denominator)."""
    n = len(values)
    if n < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (n - 1) / n)


def f1_stderr(true_positive: int, false: int, n: int) -> float:
    """Standard error of F1 = 2 TP / (2 TP + FP + FN) by the delta method.

    With the shares p = TP/n and q = (FP + FN)/n of a multinomial, dF/dp = 2q/(2p+q)^2 and dF/dq = -2p/(2p+q)^2;
    the cross term vanishes because p dF/dp + q dF/dq = 0.
    """
    if not n or not true_positive + false:
        return 0.0
    p, q = true_positive / n, false / n
    return 2.0 * math.sqrt(p * q * (p + q) / n) / (2.0 * p + q) ** 2


def mean_of_independent(errors: Sequence[float]) -> float:
    """Standard error of the plain mean of independent estimates."""
    return math.sqrt(sum(error**2 for error in errors)) / len(errors) if errors else 0.0
