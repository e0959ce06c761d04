"""Intervals by resampling pictures, because several questions about one picture succeed or fail together.

A resample draws as many pictures as there are, with replacement, and takes all questions of each. All arms of a
comparison use the same resamples, so differences are paired. Accuracies and differences are plain means over kinds of
question, as everywhere in this project.

Resampling values that are all equal (every answer right, or no answer changed) gives an interval of no width, however
few there are. Such an interval is exact instead, Clopper and Pearson's, with pictures as the independent items: of m
pictures that all agree, a share of 1 - (alpha / 2)^(1/m) may still be otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

RESAMPLES, LEVEL = 10_000, 0.95

Range = tuple[float, float]
SHARE, DIFFERENCE = (0.0, 1.0), (-1.0, 1.0)  # of shares, and of differences between two


@dataclass(frozen=True)
class Interval:
    """A mean with its percentile interval, both in the unit of the data, over n questions.

    p: two-sided, for "the mean is 0": twice the share of resamples on the far side of 0. With S resamples it is never
    below 2 / (S + 1).
    """

    mean: float
    low: float
    high: float
    n: int
    p: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


class PictureBootstrap:
    """Resamples pictures. Takes the questions once, and values for them any number of times.

    pictures, kinds: one per question, in the order that all values follow. seed: equal seeds draw equal resamples.
    Raises ValueError if there is no question, or the two lists differ in length.
    """

    def __init__(
        self,
        pictures: Sequence[Hashable],
        kinds: Sequence[str],
        resamples: int = RESAMPLES,
        seed: int = 0,
        level: float = LEVEL,
    ) -> None:
        if not kinds or len(kinds) != len(pictures):
            raise ValueError(f"{len(pictures)} pictures and {len(kinds)} kinds: give one of each per question, and any")
        self.kinds = list(dict.fromkeys(kinds))
        self.level = level
        numbers = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
        self._picture = np.array([numbers[picture] for picture in pictures])
        self._kind = np.array([self.kinds.index(kind) for kind in kinds])
        count = len(numbers)
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self._drawn = drawn.astype(np.float64)  # [resamples, pictures], how often each occurs
        self._sizes = self._drawn @ self._by_picture(np.ones(len(kinds)))  # [resamples, kinds], questions

    def over_kinds(self, values: Sequence[float], possible: Range | None = None) -> Interval:
        """Mean over kinds of the kinds' means. values: one number per question.

        possible: their range, which makes the interval of equal values exact.
        """
        means, resampled = self._means(values)
        with np.errstate(all="ignore"):
            found = self._interval(float(means.mean()), np.nanmean(resampled, axis=1), len(values))
        return self._widened(found, np.asarray(values), self._picture, possible)

    def by_kind(self, values: Sequence[float], possible: Range | None = None) -> dict[str, Interval]:
        """Mean of each kind, in order of first appearance. possible: as for `over_kinds`."""
        means, resampled = self._means(values)
        sizes = np.bincount(self._kind, minlength=len(self.kinds))
        intervals = {}
        for k, kind in enumerate(self.kinds):
            own = self._kind == k
            found = self._interval(float(means[k]), resampled[:, k], int(sizes[k]))
            intervals[kind] = self._widened(found, np.asarray(values)[own], self._picture[own], possible)
        return intervals

    def _widened(self, found: Interval, values: np.ndarray, pictures: np.ndarray, possible: Range | None) -> Interval:
        if possible is None or (values != values[0]).any():
            return found
        unseen = 1 - ((1 - self.level) / 2) ** (1 / len(np.unique(pictures)))
        low, high = (found.mean + unseen * (end - found.mean) for end in possible)
        return replace(found, low=low, high=high)

    def calibration_error(self, confidence: Sequence[float], correct: Sequence[float], bins: int = 10) -> Interval:
        """Expected calibration error: mean over questions of |accuracy - confidence| of their bin of confidence.

        Bins have equal widths. A small sample overestimates it, because noise within a bin counts as error, and a
        resample adds noise of its own; the interval is shifted back by that much.
        """
        sure = np.asarray(confidence, dtype=np.float64)
        bin_of = np.minimum((sure * bins).astype(int), bins - 1)
        errors = np.zeros((self._drawn.shape[1], bins))  # by picture and bin
        np.add.at(errors, (self._picture, bin_of), np.asarray(correct, dtype=np.float64) - sure)
        sizes = np.bincount(self._picture, minlength=self._drawn.shape[1])
        resampled = np.abs(self._drawn @ errors).sum(axis=1) / (self._drawn @ sizes)
        found = float(np.abs(errors.sum(axis=0)).sum() / len(sure))
        return self._interval(found, np.maximum(0.0, resampled - (resampled.mean() - found)), len(sure))

    def _means(self, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
        """Means of kinds: [kinds], and [resamples, kinds] with NaN if a resample has no question of a kind."""
        given = np.asarray(values, dtype=np.float64)
        if given.shape != self._kind.shape:
            raise ValueError(f"{len(given)} values for {len(self._kind)} questions")
        whole = np.bincount(self._kind, given) / np.bincount(self._kind)
        with np.errstate(invalid="ignore"):
            return whole, self._drawn @ self._by_picture(given) / self._sizes

    def _by_picture(self, values: np.ndarray) -> np.ndarray:
        """[pictures, kinds], sums of the values."""
        cells = self._picture * len(self.kinds) + self._kind
        return np.bincount(cells, values, minlength=self._drawn.shape[1] * len(self.kinds)).reshape(-1, len(self.kinds))

    def _interval(self, mean: float, resampled: np.ndarray, n: int) -> Interval:
        seen = resampled[~np.isnan(resampled)]
        tail = (1 - self.level) / 2
        low, high = np.quantile(seen, [tail, 1 - tail])
        far = min((seen <= 1e-12).sum(), (seen >= -1e-12).sum())
        return Interval(mean, float(low), float(high), n, min(1.0, 2 * float(far + 1) / (len(seen) + 1)))


def holm(values: Sequence[float]) -> list[float]:
    """Corrects p values for multiple comparisons by Holm's method; each corrected value is at least the original."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, (len(values) - rank) * values[index])
        corrected[index] = min(1.0, largest)
    return corrected
