"""What is compared: the dense model, and methods at several budgets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import vlm_pruner as vp
from vlm_pruner.methods import Pruner

DENSE = "dense"
DRAWS = 1_000_000  # more than any run has batches
PUBLISHED = "vlm-pruner-16"
LABELS = {DENSE: "dense", "random": "random", PUBLISHED: "VLM-Pruner B=16", "vlm-pruner": "VLM-Pruner"}


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. `method` is None for the dense model; `tokens` are the visual tokens per picture."""

    name: str
    tokens: int
    method: Pruner | None = None

    @property
    def key(self) -> str:
        """Name and budget, unique within a run."""
        return f"{self.name}@{self.tokens}"

    @property
    def label(self) -> str:
        return LABELS.get(self.name, self.name)

    def method_for(self, draw: int) -> Pruner | None:
        """The method for the `draw`-th batch. One with a seed gets a new seed per batch: a single random pattern for a
        whole run would be one draw, whatever the number of questions."""
        seed = getattr(self.method, "seed", None)
        return self.method if self.method is None or seed is None else replace(self.method, **{"seed": seed + draw})

    def describe(self) -> dict[str, Any]:
        """The arm with all of its method's settings, ready for JSON."""
        settings = None if self.method is None else self.method.config()
        return {"name": self.name, "label": self.label, "tokens": self.tokens, "settings": settings}


def make_arms(names: Iterable[str], budgets: Sequence[int], tokens: int, seed: int = 0) -> list[Arm]:
    """The dense model first, if it is wanted, then budget by budget one arm per method.

    `tokens` is the un-pruned number of a picture's visual tokens. `vlm-pruner-16` is VLM-Pruner with the token batch
    of the paper's tables, every other name is one that `vp.methods.get` knows. Raises ValueError for an unknown name
    and for a budget outside of 1 .. tokens. `seed` is for methods that draw.
    """
    for budget in budgets:
        if not 1 <= budget <= tokens:
            raise ValueError(f"budget {budget} is impossible: a picture has {tokens} visual tokens; use 1 to {tokens}")
    wanted = list(dict.fromkeys(names))
    arms = [Arm(DENSE, tokens)] if DENSE in wanted else []
    wanted = [name for name in wanted if name != DENSE]
    arms += [Arm(name, budget, make_method(name, budget, seed)) for budget in budgets for name in wanted]
    if not arms:
        raise ValueError("no method to run; name at least one, for example --methods dense,vlm-pruner")
    return arms


def make_method(name: str, budget: int, seed: int = 0) -> Pruner:
    """The method `name`, keeping `budget` visual tokens of every picture."""
    if name == PUBLISHED:
        return vp.CentrifugalPruner(keep_tokens=budget, token_batch=16)
    method = vp.methods.get(name)(keep_tokens=budget)
    # Runs with neighbouring seeds share no draw, though a run counts upwards from its seed.
    own: dict[str, Any] = {"seed": seed * DRAWS} if hasattr(method, "seed") else {}
    return replace(method, **own)
