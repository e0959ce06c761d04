"""How much of the dense model's accuracy an arm keeps, with a one-sided lower bound.

The question is whether accuracy - keep_share * dense is at least 0. Its lower bound is the smaller of two:

- the bootstrap's over pictures (mean over kinds), which counts all variation but sees no loss that did not happen;
- (1 - keep_share) * dense + gains - U, where U is the upper bound of the share of questions that only the dense model
  answers right: Wilson's, and of no such question exactly 1 - alpha^(1/n). It is honest where answers hardly differ.

n is the number of questions divided by the design effect: losses come in clusters, because questions about one picture
fail together. It is estimated from the losses at hand, and at least as large as the caller knows it to be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vlm_pruner.experiments.bootstrap import RESAMPLES, PictureBootstrap
from vlm_pruner.experiments.questions import Question


@dataclass(frozen=True)
class Retention:
    """An arm beside the dense model on n questions. accuracy, dense: means over kinds.

    bound: lower bound of accuracy - keep_share * dense. losses: questions that only the dense model answers right.
    """

    n: int
    accuracy: float
    dense: float
    bound: float
    losses: int

    @property
    def holds(self) -> bool:
        """Whether the arm is shown to keep the share."""
        return self.bound >= 0

    def describe(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.accuracy / self.dense, "holds": self.holds}


class Judge:
    """Judges arms on fixed questions, given the dense model's verdicts on them.

    keep_share: the share of the dense accuracy to keep, in (0, 1). confidence: of the one-sided bound.
    Raises ValueError for a dense model that answers nothing right.
    """

    def __init__(
        self, questions: Sequence[Question], dense: Sequence[float], keep_share: float,
        confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0,
    ) -> None:  # fmt: skip
        self.keep_share, self.confidence = keep_share, confidence
        self._dense = np.asarray(dense, dtype=float)
        if not self._dense.any():
            raise ValueError(f"the dense model answers none of {len(questions)} questions right: nothing can be kept")
        pictures, kinds = [q.image for q in questions], [q.kind for q in questions]
        self._bootstrap = PictureBootstrap(pictures, kinds, resamples, seed, level=2 * confidence - 1)
        self._picture = np.unique([str(picture) for picture in pictures], return_inverse=True)[1]

    def judge(self, correct: Sequence[float], clustering: float = 1.0) -> Retention:
        """correct: the arm's verdicts. clustering: the least design effect to assume."""
        own, dense = np.asarray(correct, dtype=float), self._dense
        kept = self._bootstrap.over_kinds((own - self.keep_share * dense).tolist())
        lost = dense * (1 - own)
        gained = float((own * (1 - dense)).mean())
        n = len(own) / max(clustering, self.clustering(correct))
        unseen = upper_bound(float(lost.mean()), n, self.confidence)
        few = (1 - self.keep_share) * float(dense.mean()) + gained - unseen
        accuracy, whole = (self._bootstrap.over_kinds(values.tolist()).mean for values in (own, dense))
        return Retention(len(own), accuracy, whole, min(kept.low, few), int(lost.sum()))

    def clustering(self, correct: Sequence[float]) -> float:
        """The design effect of the losses: the variance of their share relative to independent questions; 1 or more."""
        lost = self._dense * (1 - np.asarray(correct, dtype=float))
        share = lost.mean()
        if not 0 < share < 1:
            return 1.0
        per_picture = np.bincount(self._picture, lost - share)
        return max(1.0, float((per_picture**2).sum() / (len(lost) * share * (1 - share))))

    @property
    def questions_needed(self) -> int:
        """How many of this accuracy show that an arm without any loss keeps the share."""
        room = (1 - self.keep_share) * float(self._dense.mean())
        return math.ceil(math.log(1 - self.confidence) / math.log(1 - room))

    def best_possible(self, clustering: float = 1.0) -> Retention:
        """An arm whose every answer is the dense model's. If even its bound is below 0, there are too few questions."""
        return self.judge(self._dense.tolist(), clustering)


def upper_bound(share: float, n: float, confidence: float) -> float:
    """One-sided upper bound of a share seen in n independent items: Wilson's; exact if the share is 0."""
    z = NormalDist().inv_cdf(confidence)
    centre = share + z**2 / (2 * n)
    wilson = (centre + z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))) / (1 + z**2 / n)
    return max(wilson, 1 - (1 - confidence) ** (1 / n)) if share == 0 else wilson
