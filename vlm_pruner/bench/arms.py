"""What is compared: the dense model, and methods at several budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import vlm_pruner as vp

DENSE = "dense"
PUBLISHED = "vlm-pruner-16"
LABELS = {DENSE: "dense", "random": "random", PUBLISHED: "VLM-Pruner B=16", "vlm-pruner": "VLM-Pruner"}


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. `method` is None for the dense model; `tokens` are the visual tokens per picture."""

    name: str
    tokens: int
    method: Any = None

    @property
    def key(self) -> str:
        """Name and budget, unique within a run."""
        return f"{self.name}@{self.tokens}"

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name)

    def describe(self) -> dict[str, Any]:
        """The arm with all of its method's settings, ready for JSON."""
        settings = asdict(self.method) if is_dataclass(self.method) and not isinstance(self.method, type) else None
        return {"name": self.name, "label": self.label, "tokens": self.tokens, "settings": settings}


def make_arms(names: Iterable[str], budgets: Sequence[int], tokens: int) -> list[Arm]:
    """One arm per method and budget, `tokens` being the un-pruned number; the dense model has one arm only.

    `vlm-pruner-16` is VLM-Pruner with the token batch of the paper's tables, every other name is one that
    `vp.methods.get` knows. Raises ValueError for an unknown name and for a budget outside 1 .. tokens.
    """
    for budget in budgets:
        if not 1 <= budget <= tokens:
            raise ValueError(f"budget {budget} is impossible: a picture has {tokens} visual tokens; use 1 to {tokens}")
    arms: list[Arm] = []
    for name in dict.fromkeys(names):
        arms += [Arm(DENSE, tokens)] if name == DENSE else [Arm(name, b, make_method(name, b)) for b in budgets]
    if not arms:
        raise ValueError("no method to run; name at least one, for example --methods dense,vlm-pruner")
    return arms


def make_method(name: str, budget: int) -> Any:
    """The method `name`, keeping `budget` visual tokens of every picture."""
    if name == PUBLISHED:
        return vp.CentrifugalPruner(keep_tokens=budget, token_batch=16)
    return vp.methods.get(name)(keep_tokens=budget)
