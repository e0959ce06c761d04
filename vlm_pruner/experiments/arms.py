"""What is compared: the dense model, and methods at several budgets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import vlm_pruner as vp
from vlm_pruner.cost import accounting, budgets
from vlm_pruner.cost.accounting import Accounting
from vlm_pruner.cost.budgets import Budget
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner

DENSE = "dense"
DRAWS = 1_000_000  # more than any run has batches
PUBLISHED = "vlm-pruner-16"
LABELS = {
    DENSE: "dense",
    "random": "random",
    PUBLISHED: "VLM-Pruner B=16",
    "vlm-pruner": "VLM-Pruner",
    "cdpruner": "CDPruner",
    "dart": "DART",
    "divprune": "DivPrune",
    "fastervlm": "FasterVLM",
    "fastv": "FastV",
    "prumerge": "PruMerge+",
    "pyramiddrop": "PyramidDrop",
    "sparsevlm": "SparseVLM",
    "vispruner": "VisPruner",
    "visionzip": "VisionZip",
}


@dataclass(frozen=True)
class ModelFacts:
    """What a budget depends on: a picture's visual tokens, and where they are known the decoder and the text's length.

    bytes_per_number: of a key or value in the cache.
    """

    visual: int
    shape: DecoderShape | None = None
    text: int = budgets.TEXT
    bytes_per_number: int = 2

    def account(self, method: Pruner | None) -> Accounting | None:
        if self.shape is None:
            return None
        return accounting.of_method(method, self.visual, self.text, self.shape, self.bytes_per_number)


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. `method` is None for the dense model; `tokens` are the visual tokens per picture.

    budget: as it was asked for, if not as `tokens`. chosen: how it was met. accounting: what a prompt costs, if known.
    """

    name: str
    tokens: int
    method: Pruner | None = None
    budget: str = ""
    chosen: str = ""
    accounting: Accounting | None = None

    @property
    def key(self) -> str:
        """Name and budget, unique within a run."""
        return f"{self.name}@{self.budget or self.tokens}"

    @property
    def label(self) -> str:
        name, _, settings = self.name.partition(":")
        return LABELS.get(name, name) + (f" {settings}" if settings else "")

    def method_for(self, draw: int) -> Pruner | None:
        """The method for the `draw`-th batch. One with a seed gets a new seed per batch: a single random pattern for a
        whole run would be one draw, whatever the number of questions."""
        seed = getattr(self.method, "seed", None)
        return self.method if self.method is None or seed is None else replace(self.method, **{"seed": seed + draw})

    def describe(self) -> dict[str, Any]:
        """The arm with all of its method's settings, ready for JSON."""
        settings = None if self.method is None else self.method.config()
        described = {"name": self.name, "label": self.label, "tokens": self.tokens, "settings": settings}
        return {**described, **({"budget": self.budget} if self.budget else {})}


def make_arms(
    names: Iterable[str], wanted: Sequence[int | str | Budget], model: int | ModelFacts, seed: int = 0
) -> list[Arm]:
    """The dense model first, if it is wanted, then budget by budget one arm per method.

    model: what is known of it, or just the un-pruned number of a picture's visual tokens. Raises ValueError for an
    unknown name and for a budget that cannot be met. `seed` is for methods that draw. For names see `recipe`.
    """
    facts = ModelFacts(model) if isinstance(model, int) else model
    parsed = [read_budget(word, facts.visual) for word in wanted]
    names = list(dict.fromkeys(names))
    arms = [dense_arm(facts)] if DENSE in names else []
    arms += [make_arm(name, budget, facts, seed) for budget in parsed for name in names if name != DENSE]
    if not arms:
        raise ValueError("no method to run; name at least one, for example --methods dense,vlm-pruner")
    return arms


def read_budget(word: int | str | Budget, visual: int) -> Budget:
    """Raises ValueError for what is no budget, and for more tokens than the `visual` ones of a picture."""
    if isinstance(word, Budget):
        return word
    if str(word) == "0":
        raise ValueError(f"budget 0 is impossible: use 1 to {visual}, or leave the budget out and name dense alone")
    budget = Budget.parse(str(word))
    if budget.kind == "tokens" and budget.value > visual:
        raise ValueError(f"budget {word} is impossible: a picture has {visual} visual tokens; use 1 to {visual}")
    return budget


def dense_arm(facts: ModelFacts) -> Arm:
    return Arm(DENSE, facts.visual, accounting=facts.account(None))


def make_arm(name: str, budget: Budget, facts: ModelFacts, seed: int = 0) -> Arm:
    """The method called `name` at a budget. Raises PruningError where that cannot be."""
    make = partial(_seeded, name, seed)
    shown = "" if budget.kind == "tokens" else str(budget)
    if facts.shape is None:
        method = budgets.plain(budget, make)
        return Arm(name, method.budget(facts.visual), method, shown)
    setting = budgets.solve(budget, make, facts.visual, facts.shape, facts.text)
    account = facts.account(setting.method)
    return Arm(name, setting.method.budget(facts.visual), setting.method, shown, setting.chosen, account)


def _seeded(name: str, seed: int, **budget: Any) -> Pruner:
    cls, settings = recipe(name)
    method = cls(**budget, **settings)
    # Runs with neighbouring seeds share no draw, though a run counts upwards from its seed.
    own: dict[str, Any] = {"seed": seed * DRAWS} if hasattr(method, "seed") and "seed" not in settings else {}
    return replace(method, **own)


def recipe(name: str) -> tuple[type[Pruner], dict[str, Any]]:
    """A method's class and its settings beside the budget.

    A name that `vp.methods.get` knows; one with settings, vlm-pruner:spatial_weight=0:layer=1; or vlm-pruner-16, with
    the token batch of the paper's tables. Raises PruningError for a method or a setting that does not exist.
    """
    if name == PUBLISHED:
        return vp.CentrifugalPruner, {"token_batch": 16}
    base, *words = name.split(":")
    cls = vp.methods.get(base)
    known = [field.name for field in fields(cls) if field.name not in ("keep_tokens", "reduction_ratio")]
    settings = {}
    for word in words:
        field, equals, value = word.partition("=")
        if field not in known or not equals:
            raise PruningError(
                f"{word!r} in {name!r} is no setting of {base}; write one of {', '.join(known)} as NAME=VALUE"
            )
        settings[field] = _value(value)
    return cls, settings


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return {"True": True, "False": False, "None": None}.get(word, word)
