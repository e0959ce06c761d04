"""Ablations as a table: what a change did here, and what it did in the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_pruner.console import COLUMNS
from vlm_pruner.experiments.ablations import Variation
from vlm_pruner.experiments.bootstrap import Interval
from vlm_pruner.report.table import render


@dataclass(frozen=True)
class AblationRow:
    """accuracy, difference (from the default): shares, means over kinds. variation: None for what the paper has not."""

    label: str
    variation: Variation | None
    accuracy: Interval
    difference: Interval
    settings: dict[str, Any]

    @property
    def verdict(self) -> str:
        """Of our difference alone: better, worse, or not distinguishable at this n."""
        if not self.difference.excludes_zero:
            return "not distinguishable"
        return "better" if self.difference.mean > 0 else "worse"

    @property
    def with_paper(self) -> str:
        """Whether the direction is the paper's: "agrees", "contradicts", or "" where one of the two shows none."""
        sign = self.variation.paper_sign if self.variation else 0
        if not sign or not self.difference.excludes_zero:
            return ""
        return "agrees" if (self.difference.mean > 0) == (sign > 0) else "contradicts"

    def describe(self) -> dict[str, Any]:
        """Ready for JSON."""
        paper: dict[str, Any] = {"percent_of_dense": None, "difference": None, "says": "nothing"}
        if self.variation is not None:
            says = {-1: "worse", 0: "nothing", 1: "better"}[self.variation.paper_sign]
            paper = {
                "percent_of_dense": self.variation.paper,
                "difference": self.variation.paper_difference,
                "says": says,
            }
        return {
            "change": self.label, "settings": self.settings, "accuracy": asdict(self.accuracy),
            "difference": asdict(self.difference), "verdict": self.verdict, "paper": paper,
            "with_paper": self.with_paper or "not distinguishable",
        }  # fmt: skip


def ablation_table(rows: Sequence[AblationRow]) -> str:
    """At most 80 columns. Differences in points, with their 95 % intervals; the paper's in points of % of dense."""
    lines = [
        [
            row.label,
            f"{100 * row.accuracy.mean:.1f}",
            f"{100 * row.difference.mean:+.1f}",
            f"[{100 * row.difference.low:+.1f}, {100 * row.difference.high:+.1f}]",
            _paper(row.variation),
            "" if row.variation is None or not row.variation.paper_sign else row.with_paper or "n.d.",
        ]
        for row in rows
    ]
    return render(["change", "accuracy", "minus", "default, 95 %", "paper", ""], lines, width=COLUMNS)


def _paper(variation: Variation | None) -> str:
    if variation is None or not variation.paper_sign:
        return ""
    return "worse" if variation.paper_difference is None else f"{variation.paper_difference:+.2f}"
