"""The paper's ablations of VLM-Pruner: each change, and what the paper found for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from vlm_pruner.console import DENSE
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.methods.centrifugal import CentrifugalPruner
from vlm_pruner.methods.dart import largest_keys

DEFAULT = "default"
PAPER_DEFAULT = 95.30  # mean over nine benchmarks in % of the dense model, LLaVA-1.5-7B, 64 tokens, token batch 16
PAPER_BATCH = 16


@dataclass(frozen=True)
class LargestKeyPivots(CentrifugalPruner):
    """VLM-Pruner that starts from the tokens with the largest keys (L1), even if they are similar."""

    def _choose_pivots(self, keys: Tensor, count: int) -> Tensor:
        return largest_keys(keys, count)


@dataclass(frozen=True)
class Variation:
    """One change to the default. paper: the paper's mean in % of dense, or None if it prints none.

    paper_worse: the paper says in words that this is worse, without a number.
    paper_base: the paper's figure for the unchanged setting; None if it has none.
    """

    group: str
    label: str
    change: dict[str, Any] = field(default_factory=dict)
    paper: float | None = None
    paper_worse: bool = False
    paper_base: float | None = PAPER_DEFAULT
    method: type[CentrifugalPruner] = CentrifugalPruner

    @property
    def key(self) -> str:
        return f"{self.group}: {self.label}"

    @property
    def paper_difference(self) -> float | None:
        """Difference from the unchanged setting, in points of "% of dense"."""
        if self.paper is None or self.paper_base is None:
            return None
        return round(self.paper - self.paper_base, 2)

    @property
    def paper_sign(self) -> int:
        """-1 or 1 if the paper found it worse or better than its default; 0 if it says nothing."""
        difference = self.paper_difference
        if difference is None:
            return -1 if self.paper_worse else 0
        return (difference > 0) - (difference < 0)


def _series(group: str, name: str, values: dict[Any, float | None]) -> list[Variation]:
    return [Variation(group, str(value), {name: value}, paper) for value, paper in values.items()]


PAPER_BATCHES: dict[Any, float | None] = {1: 95.62, 2: 95.64, 4: 95.38, 8: 95.20, PAPER_BATCH: PAPER_DEFAULT}

# The embedded decoder is 320 wide, so the paper's 512 and 1,024 of 4,096 channels have no counterpart; "all" does.
VARIATIONS: tuple[Variation, ...] = (
    Variation("without", "SWA", {"self_weight": 1.0}, 95.07),
    Variation("without", "BSS", {"spatial_weight": 0.0}, PAPER_DEFAULT - 1.11),
    Variation("without", "max-min pivots (top L1)", {}, PAPER_DEFAULT - 1.27, method=LargestKeyPivots),
    *_series("pivots", "pivots", {1: 94.36, 2: 94.46, 3: 94.41, 5: 94.68, 6: 95.25, 7: 94.55, 8: 94.40}),
    *_series("channels", "channels", {64: None, 128: 95.25}),
    Variation("channels", "all", {"channels": 1_000_000}, 95.14),
    *_series("threshold", "threshold", {0.6: 94.64, 0.7: 94.60, 0.9: 92.99, 1.0: 91.00}),
    *_series("token batch", "token_batch", PAPER_BATCHES),
    *_series("spatial weight", "spatial_weight", {0.25: None, 1.0: None, 2.0: None}),
    *_series("self weight", "self_weight", {0.0: None, 0.6: None, 0.8: None}),
    *(Variation("layer", str(layer), {"layer": layer}, paper_worse=True) for layer in (1, 3, 4)),
)


def ablation_arms(budget: int, tokens: int, token_batch: int) -> list[Arm]:
    """The dense model, the default, and one arm per variation with an effect, all at `budget` visual tokens.

    tokens: a picture's visual tokens. token_batch: the default's; the paper's is 16. Variations with more pivots than
    the budget are left out.
    """
    default = CentrifugalPruner(keep_tokens=budget, token_batch=token_batch)
    arms = [Arm(DENSE, tokens), Arm(DEFAULT, budget, default)]
    for variation in VARIATIONS:
        settings = {**default.config(), **variation.change}
        if settings["pivots"] <= budget and (method := variation.method(**settings)) != default:
            arms.append(Arm(variation.key, budget, method))
    return arms


def by_key(token_batch: int = PAPER_BATCH) -> dict[str, Variation]:
    """The variations of a default with this token batch. The paper varied all but the batch at its own, 16."""
    based = (
        replace(variation, paper_base=PAPER_BATCHES.get(token_batch)) if variation.group == "token batch" else variation
        for variation in VARIATIONS
    )
    return {variation.key: variation for variation in based}
