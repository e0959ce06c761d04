"""The arms of an experiment: the dense model, methods at several budgets, and what a sceptic puts beside them.

`resize` shrinks the picture, so that the dense model makes no more visual tokens of it than the budget has: on one grid
for all pictures, or, in families that take pictures of any size, each picture in its own shape. `blind` shows no
picture: what the model answers from the question alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlm_pruner.console import DENSE
from vlm_pruner.cost import accounting, budgets
from vlm_pruner.cost.accounting import Accounting
from vlm_pruner.cost.budgets import Budget
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.llava.sights import BLIND, RESIZE, Grid, Sight, largest_grid
from vlm_pruner.methods import Pruner, maker
from vlm_pruner.methods.words import Make, printed_name

DRAWS = 1_000_000  # more than the batches of any run, so that runs with neighbouring seeds share no draw
LABELS = {DENSE: "dense", RESIZE: "resize", BLIND: "blind"}  # of arms that are no methods

NO_PICTURE: Grid = (0, 0)


@dataclass(frozen=True)
class ModelFacts:
    """What a budget depends on: a picture's visual tokens and, if known, the decoder and the text's length.

    bytes_per_number: of a key or value in the cache. any_size: whether a picture's tokens follow from its size
    (Qwen-VL); `visual` is then the median picture's.
    """

    visual: int
    shape: DecoderShape | None = None
    text: int = budgets.TEXT
    bytes_per_number: int = 2
    any_size: bool = False

    def account(self, method: Pruner | None) -> Accounting | None:
        if self.shape is None:
            return None
        return accounting.of_method(method, self.visual, self.text, self.shape, self.bytes_per_number)

    def account_resized(self, tokens: int) -> Accounting | None:
        """The cost with `tokens` visual tokens in every layer."""
        if self.shape is None:
            return None
        steps = [(self.visual, [(0, tokens)])]
        return accounting.of_steps(steps, self.text, self.shape, self.bytes_per_number)


@dataclass(frozen=True)
class Arm:
    """One line of the comparison. `tokens` are the visual tokens per picture.

    method: None for an arm without pruning. budget: as requested, if not in tokens, or if `tokens` differ from it.
    chosen: the setting that meets it. accounting: a prompt's cost, if known. grid: of a resized picture, the same for
    all; sight: how pictures of any size are shrunk instead.
    """

    name: str
    tokens: int
    method: Pruner | None = None
    budget: str = ""
    chosen: str = ""
    accounting: Accounting | None = None
    grid: Grid | None = None
    sight: Sight | None = None

    @property
    def shown(self) -> Grid | Sight | None:
        """How pictures are shown; None if whole."""
        return self.grid if self.sight is None else self.sight

    @property
    def is_dense(self) -> bool:
        """Whether it prunes nothing and shows the whole picture."""
        return self.method is None and self.shown is None

    @property
    def has_budget(self) -> bool:
        """Whether it is one of several arms of its name; dense and blind are alone."""
        return self.name not in (DENSE, BLIND)

    @property
    def key(self) -> str:
        """Name and budget, unique within a run."""
        return f"{self.name}@{self.budget or self.tokens}"

    @property
    def label(self) -> str:
        """As tables print it. An arm of the ablations is named by what it changes, not by a method's words."""
        try:
            return LABELS.get(self.name) or printed_name(self.name)
        except PruningError:
            return self.name

    def method_for(self, draw: int) -> Pruner | None:
        """The method for the `draw`-th batch. One with a seed gets a new seed per batch: a single random pattern for a
        whole run would be one draw, however many the questions."""
        seed = getattr(self.method, "seed", None)
        return self.method if self.method is None or seed is None else replace(self.method, **{"seed": seed + draw})

    def describe(self) -> dict[str, Any]:
        """The arm with all of its method's settings, ready for JSON."""
        settings = None if self.method is None else self.method.config()
        if self.grid is not None:
            settings = {"grid": list(self.grid)}
        elif self.sight is not None:
            settings = {"reduction_ratio": self.sight.reduction_ratio, "keep_tokens": self.sight.keep_tokens}
        described = {"name": self.name, "label": self.label, "tokens": self.tokens, "settings": settings}
        source = None if self.method is None else self.method.source
        return {
            **described,
            **({"budget": self.budget} if self.budget else {}),
            **({"source": dict(source)} if source else {}),
        }


@dataclass(frozen=True)
class NotRun:
    """An arm that the model or the method refuses. Reports show it with the reason."""

    name: str
    label: str
    budget: str
    reason: str


def make_arms(
    names: Iterable[str], wanted: Sequence[int | str | Budget], model: int | ModelFacts, seed: int = 0
) -> list[Arm]:
    """The dense model and the blind one first, if requested, then budget by budget one arm per method.

    model: its facts, or just a picture's visual tokens before pruning. seed: for methods that draw.
    Raises ValueError for an unknown name and for a budget that cannot be met. For names see `methods.words`.
    """
    arms, not_run = possible_arms(names, wanted, model, seed)
    if not_run:
        raise PruningError(not_run[0].reason)
    return arms


def possible_arms(
    names: Iterable[str], wanted: Sequence[int | str | Budget], model: int | ModelFacts, seed: int = 0,
    refusal: Callable[[Arm], str | None] = lambda arm: None,
) -> tuple[list[Arm], list[NotRun]]:  # fmt: skip
    """Like `make_arms`, but separates arms that cannot run. refusal: why this model cannot run an arm, or None.

    Raises ValueError for a name or budget that does not exist, and if no arm is left.
    """
    facts = ModelFacts(model) if isinstance(model, int) else model
    names = list(dict.fromkeys(names))
    for name in names:
        _ = name in LABELS or maker(name)
    arms, not_run = [dense_arm(facts)] if DENSE in names else [], []
    arms += [blind_arm(facts)] if BLIND in names else []
    for budget in [read_budget(word, facts.visual) for word in wanted]:
        for name in (name for name in names if name not in (DENSE, BLIND)):
            try:
                arm = make_arm(name, budget, facts, seed)
                reason = refusal(arm)
            except PruningError as error:
                arm, reason = Arm(name, 0), str(error)
            if reason is None:
                arms.append(arm)
            else:
                not_run.append(NotRun(name, arm.label, str(budget), reason))
    if not arms and not_run:
        raise ValueError(f"no arm can be run; the first reason: {not_run[0].label}: {not_run[0].reason}")
    if not arms:
        raise ValueError("no method to run; name at least one, for example --methods dense,vlm-pruner")
    return arms, not_run


def turned(arms: Sequence[Arm], turn: int) -> list[Arm]:
    """All arms, rotated so that a different one comes first at each turn."""
    return [arms[(turn + index) % len(arms)] for index in range(len(arms))]


def read_budget(word: int | str | Budget, visual: int) -> Budget:
    """Parses a budget. Raises ValueError for anything else, and for more than a picture's `visual` tokens."""
    if isinstance(word, Budget):
        return word
    if str(word) == "0":
        raise ValueError(f"budget 0 is impossible: use 1 to {visual}, or leave the budget out and name dense alone")
    budget = Budget.parse(str(word))
    if budget.kind == "tokens" and budget.value > visual:
        raise ValueError(f"budget {word} is impossible: a picture has {visual} visual tokens; use 1 to {visual}")
    return budget


def tokens_kept(budget: Budget, make: Make, facts: ModelFacts) -> int:
    """Visual tokens that the method `make` builds keeps of a picture at a budget. Raises PruningError if it cannot."""
    if facts.shape is None:
        return budgets.plain(budget, make).budget(facts.visual)
    return budgets.solve(budget, make, facts.visual, facts.shape, facts.text).method.budget(facts.visual)


def dense_arm(facts: ModelFacts) -> Arm:
    return Arm(DENSE, facts.visual, accounting=facts.account(None))


def blind_arm(facts: ModelFacts) -> Arm:
    return Arm(BLIND, 0, accounting=facts.account_resized(0), grid=NO_PICTURE)


def resize_arm(budget: Budget, facts: ModelFacts) -> Arm:
    """The largest picture that stays within the budget: a nearly square grid, or of any size each in its own shape."""
    if facts.any_size:
        return _any_size_arm(budget, facts)
    side = math.isqrt(facts.visual)
    for most in range(facts.visual, 0, -1):
        rows, columns = largest_grid(most, side)
        tokens, account = rows * columns, facts.account_resized(rows * columns)
        if tokens <= _resized_limit(budget, facts, account):
            exact = budget.kind == "tokens" and tokens == budget.value
            chosen = f"{budget}: {rows} x {columns} tokens in every layer"
            return Arm(RESIZE, tokens, None, "" if exact else str(budget), chosen, account, (rows, columns))
    raise PruningError(f"budget {budget} cannot be met by a smaller picture: it has at least one token")


def _any_size_arm(budget: Budget, facts: ModelFacts) -> Arm:
    """A ratio is of each picture's own tokens, as it is for methods; a number holds for every picture."""
    fits = (n for n in range(facts.visual, 0, -1) if n <= _resized_limit(budget, facts, facts.account_resized(n)))
    tokens = next(fits, None)
    if tokens is None:
        raise PruningError(f"budget {budget} cannot be met by a smaller picture: it has at least one token")
    of_each = {"reduction_ratio": budget.value} if budget.kind == "ratio" else {"keep_tokens": tokens}
    exact = budget.kind == "tokens" and tokens == budget.value
    chosen = f"{budget}: pictures of at most {tokens} tokens in every layer"
    account = facts.account_resized(tokens)
    return Arm(RESIZE, tokens, None, "" if exact else str(budget), chosen, account, sight=Sight(RESIZE, **of_each))


def _resized_limit(budget: Budget, facts: ModelFacts, account: Accounting | None) -> float:
    """The most tokens that the budget allows, given the cost of some number of them."""
    if budget.kind == "ratio":
        return round(facts.visual * (1 - budget.value))
    if budget.kind in ("tokens", "avg"):
        return budget.value
    if account is None:
        raise PruningError(f"budget {budget} depends on the model's layers, which are not known here")
    return math.inf if account.flops_share <= budget.value else 0


def make_arm(name: str, budget: Budget, facts: ModelFacts, seed: int = 0) -> Arm:
    """The method called `name`, or the smaller picture, at a budget. Raises PruningError if it cannot meet it."""
    if name == RESIZE:
        return resize_arm(budget, facts)
    make = maker(name, seed=seed * DRAWS)
    shown = "" if budget.kind == "tokens" else str(budget)
    if facts.shape is None:
        method = budgets.plain(budget, make)
        return Arm(name, method.budget(facts.visual), method, shown)
    setting = budgets.solve(budget, make, facts.visual, facts.shape, facts.text)
    account = facts.account(setting.method)
    return Arm(name, setting.method.budget(facts.visual), setting.method, shown, setting.chosen, account)
