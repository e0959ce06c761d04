"""Budgets in any convention that papers use, and the method setting that meets them.

    64, 64tok      keep_tokens as the method counts it: per picture, or the mean over its stages if it has several
    ratio:0.889    share of each picture's visual tokens that is removed
    avg:64         mean visual tokens over ALL decoder layers, including those before the pruned layer
    flops:0.3      share of the dense prefill's floating-point operations, text included; flops:0.3@40: of 40 tokens

The last two depend on the model. They resolve to the largest setting that stays within the budget, which the result
states.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter

from vlm_pruner.cost import accounting
from vlm_pruner.cost.accounting import Accounting
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner
from vlm_pruner.methods.words import Make

TEXT = 64  # text tokens of a prompt if neither the budget nor the caller gives them; LLaVA's prompts have 50 to 90
CONVENTIONS = "64 (tokens), ratio:0.889 (share removed), avg:64 (mean over layers) or flops:0.3 (share of the dense)"
_FORM = re.compile(r"(?:(?P<kind>ratio|avg|flops):)?(?P<value>\d+(?:\.\d+)?|\.\d+)(?P<tok>tok)?(?:@(?P<text>\d+))?")

_RULES: dict[str, tuple[Callable[[float], bool], str]] = {
    "tokens": (lambda n: n >= 1 and n.is_integer(), "tokens are a whole number of at least 1; a share is ratio:{:g}"),
    "ratio": (lambda share: share < 1, "the share removed must be at least 0 and below 1"),
    "avg": (lambda mean: mean > 0, "average tokens must be above 0"),
    "flops": (lambda share: 0 < share <= 1, "the share of the dense FLOPs must be above 0 and at most 1"),
}


@dataclass(frozen=True)
class Budget:
    """kind: "tokens", "ratio", "avg" or "flops". text: text tokens to count FLOPs with, if given."""

    kind: str
    value: float
    text: int | None = None

    @classmethod
    def parse(cls, word: str) -> Budget:
        """Raises PruningError if `word` is not a budget."""
        match = _FORM.fullmatch(word.strip())
        if match is None or (match["tok"] and match["kind"]) or (match["text"] and match["kind"] != "flops"):
            raise PruningError(f"budget {word!r} is not understood; write {CONVENTIONS}")
        kind, value = match["kind"] or "tokens", float(match["value"])
        allowed, rule = _RULES[kind]
        if not allowed(value):
            raise PruningError(f"budget {word!r}: {rule.format(value)}")
        return cls(kind, value, int(match["text"]) if match["text"] else None)

    @property
    def fixed(self) -> bool:
        """Whether it sets the method directly, independent of the model."""
        return self.kind in ("tokens", "ratio")

    def __str__(self) -> str:
        kind = "" if self.kind == "tokens" else f"{self.kind}:"
        text = "" if self.text is None else f"@{self.text}"
        return f"{kind}{self.value:g}{text}"


@dataclass(frozen=True)
class Setting:
    """A method that meets a budget. chosen: the setting in words. accounting: None if the model is unknown."""

    method: Pruner
    chosen: str
    accounting: Accounting | None = None


def plain(budget: Budget, make: Make) -> Pruner:
    """Builds the method for a budget that needs no model. Raises PruningError for one that does."""
    if budget.kind == "tokens":
        return make(keep_tokens=int(budget.value))
    if budget.kind == "ratio":
        return make(reduction_ratio=budget.value)
    raise PruningError(f"budget {budget} depends on the model's layers and visual tokens; use solve")


def solve(budget: Budget, make: Make, visual: int, shape: DecoderShape, text: int = TEXT) -> Setting:
    """Builds the most expensive method that stays within the budget, for pictures of `visual` tokens.

    make: builds the method from keep_tokens= or reduction_ratio=. text: text tokens of a prompt if the budget gives
    none.
    Raises PruningError, naming the smallest reachable budget, if even the smallest setting exceeds this one.
    """
    text = text if budget.text is None else budget.text

    def cost(method: Pruner) -> Accounting:
        return accounting.of_method(method, visual, text, shape)

    method = plain(budget, make) if budget.fixed else _nearest(budget, make, visual, cost)
    method.budget(visual)  # raises if it keeps more tokens than the picture has
    account = cost(method)
    return Setting(method, _setting_in_words(budget, method, account), account)


def _nearest(budget: Budget, make: Make, visual: int, cost: Callable[[Pruner], Accounting]) -> Pruner:
    """The method with the largest keep_tokens that stays within the budget."""
    spent = [(_measure(budget, cost(method)), method) for method in _settings(make, visual)]
    within = [method for share, method in spent if share <= budget.value * (1 + 1e-12)]
    if not within:
        raise PruningError(_unreachable(budget, min(spent, key=itemgetter(0)), cost))
    return within[-1]


def _settings(make: Make, visual: int) -> list[Pruner]:
    """The method with each keep_tokens that it accepts, ascending. Raises the method's own error if it accepts none."""
    found: list[Pruner] = []
    for tokens in range(1, visual + 1):
        try:
            found.append(make(keep_tokens=tokens))
        except PruningError:
            if tokens == visual and not found:
                raise
    return found


def _measure(budget: Budget, account: Accounting) -> float:
    return account.average_tokens if budget.kind == "avg" else account.flops_share


def _unreachable(budget: Budget, least: tuple[float, Pruner], cost: Callable[[Pruner], Accounting]) -> str:
    spent, method = least
    account = cost(method)
    return (
        f"budget {budget} cannot be met by {method.name or type(method).__name__} with layer={method.layer} of "
        f"{len(account.kept)} layers: keep_tokens={method.keep_tokens} still costs {_cost_in_words(budget, account)}; "
        f"ask for {budget.kind}:{_up(spent):g} or more, or for a smaller layer (layer=0 prunes the input)"
    )


def _up(value: float) -> float:
    """Rounds up to a value that can be typed in again: tokens to one decimal, a share to three."""
    scale = 1000 if value <= 1 else 10
    return -int(-value * scale // 1) / scale


def _cost_in_words(budget: Budget, account: Accounting) -> str:
    if budget.kind == "flops":
        return f"{100 * account.flops_share:.1f} % of the dense FLOPs ({account.text} text tokens)"
    return f"{account.average_tokens:.1f} tokens on average over the layers"


def _setting_in_words(budget: Budget, method: Pruner, account: Accounting) -> str:
    steps = accounting.planned_steps(method, account.visual, len(account.kept))
    where = ", ".join(f"{tokens} tokens from layer {layer}" for layer, tokens in steps)
    setting = f"keep_tokens={method.keep_tokens}" if method.keep_tokens else f"reduction_ratio={method.reduction_ratio}"
    average, flops = f"average {account.average_tokens:.1f} tokens", f"{100 * account.flops_share:.1f} % FLOPs"
    return f"{budget}: {setting}: {where}; {average} over {len(account.kept)} layers, {flops} of dense"
