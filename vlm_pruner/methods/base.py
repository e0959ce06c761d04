"""What a pruning method is: a frozen dataclass that chooses tokens. Knows nothing of models or transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.view import View

_LAYER_BEFORE = {"attend", "text_keys"}  # needs that the layer before the pruned one meets


@dataclass(frozen=True)
class Selection:
    """The R tokens of one image's N that stay.

    indices:    long [R], ascending. order: long [R], the same tokens in order of selection.
    nearest:    long [N], position in `indices` of the kept token that each token is most similar to (a kept token
                points to itself); None for methods that fold nothing.
    similarity: float [N], similarity of each token to that kept token; None likewise.
    pivots:     long [P], tokens that selection started from, in order; None for methods without pivots.
    """

    indices: Tensor
    order: Tensor
    nearest: Tensor | None = None
    similarity: Tensor | None = None
    pivots: Tensor | None = None


@dataclass(frozen=True)
class Pruner:
    """Base of all methods. A subclass writes `select`, and `merge` if it folds dropped tokens into kept ones.

    A method to which the image's own hidden states and keys are not enough writes `choose` in place of `select`, and
    lists in `needs` which further fields of the View it reads; whoever runs the method fills in those, and no others.

    reduction_ratio: share of each image's visual tokens to remove, in [0, 1).
    keep_tokens:     or the number of visual tokens to keep, per image. Exactly one of the two.
    layer:           the first decoder layer (counted from 0) that runs on the short sequence; 0 prunes the input.
    per_frame:       of a video, whether every frame has that budget and is pruned by itself, instead of the whole.
    renumber:        whether the tokens that are left get consecutive positions. By default they keep their own, so that
                     where a token was in the picture is not lost; several methods' published code renumbers.
    """

    reduction_ratio: float | None = None
    keep_tokens: int | None = None
    layer: int = 2
    per_frame: bool = field(default=False, kw_only=True)
    renumber: bool = field(default=False, kw_only=True)

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        _check_budget(self.reduction_ratio, self.keep_tokens)
        if self.layer < 0:
            raise PruningError(f"layer={self.layer} must be 0 or more: decoder layers are counted from 0")
        if self.layer == 0 and self.released:
            raise PruningError(
                "layer=0: the released code cannot prune before the first decoder layer; use layer=1 or up"
            )
        if self.layer == 0 and self.needs & _LAYER_BEFORE:
            raise PruningError(
                f"layer=0: {type(self).__name__} looks at the layer before the pruned one, and there is none; "
                "use layer=1 or higher"
            )

    @property
    def least_tokens(self) -> int:
        """The smallest budget that the method can work with."""
        return 1

    @property
    def released(self) -> bool:
        """Whether the released code is reproduced, with its limits: first image of each row, its rounding and grid."""
        return False

    def budget(self, tokens: int, released_rounding: str = "round") -> int:
        """Number of visual tokens to keep of an image's `tokens`.

        released_rounding: how the released code rounds for the model at hand, "round" or "floor"; the adapter
        says which. It matters only to methods that can reproduce the released code.
        Raises PruningError if `keep_tokens` is more than the image has.
        """
        if self.keep_tokens is not None:
            if self.keep_tokens > tokens:
                raise PruningError(
                    f"keep_tokens={self.keep_tokens}, but the image has only {tokens} visual tokens; "
                    f"use keep_tokens={tokens} or less, or reduction_ratio"
                )
            return self.keep_tokens
        assert self.reduction_ratio is not None
        share = tokens * (1 - self.reduction_ratio)
        wanted = int(share) if self.released and released_rounding == "floor" else round(share)
        return min(tokens, max(self.least_tokens, wanted))

    def layers(self, depth: int) -> tuple[int, ...]:
        """The layers before which tokens are dropped, ascending, in a decoder of `depth` layers. Most methods: one."""
        return (self.layer,)

    def budgets(self, tokens: int, depth: int, released_rounding: str = "round") -> tuple[int, ...]:
        """Visual tokens to keep, of an image's `tokens`, from each of `layers(depth)` on."""
        return (self.budget(tokens, released_rounding),)

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        """Choose `budget` of one image's N tokens.

        hidden: [N, d], residual stream that enters `layer`. keys: [N, k], keys of the layer before (after rotary
        embedding, heads concatenated), with layer=0 the hidden states again. layout: the tokens' places in the picture.
        """
        raise PruningError(
            f"{type(self).__name__} cannot choose by hidden states and keys alone: it needs "
            f"{', '.join(sorted(self.needs))}; use choose(View(...)), or prune a model"
        )

    def choose(self, view: View) -> Selection:
        """As `select`, from everything that the method needs."""
        return self.select(view.hidden, view.keys, view.layout, view.budget)

    def choose_all(self, views: Iterable[View]) -> list[Selection]:
        """As `choose`, for the images of a batch, each by itself. For methods that can work on several at once."""
        return [self.choose(view) for view in views]

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        """[R, d]: what enters `layer`, in the order of `selection.indices`. By default the kept rows as they are."""
        return hidden[selection.indices]

    def merge_all(self, images: Iterable[tuple[Tensor, Selection]]) -> list[Tensor]:
        """As `merge`, for the images of a batch."""
        return [self.merge(hidden, selection) for hidden, selection in images]

    def config(self) -> dict[str, Any]:
        """The method's fields, ready for JSON."""
        return asdict(self)


def _check_budget(reduction_ratio: float | None, keep_tokens: int | None) -> None:
    if (reduction_ratio is None) == (keep_tokens is None):
        raise PruningError(
            f"give exactly one of reduction_ratio and keep_tokens, not reduction_ratio={reduction_ratio} "
            f"and keep_tokens={keep_tokens}"
        )
    if reduction_ratio is not None and not 0 <= reduction_ratio < 1:
        raise PruningError(
            f"reduction_ratio={reduction_ratio} must be at least 0 and below 1: it is the share of tokens removed"
        )
    if keep_tokens is not None and (not isinstance(keep_tokens, int) or keep_tokens < 1):
        raise PruningError(f"keep_tokens={keep_tokens!r} must be a whole number of at least 1")


_METHODS: dict[str, type[Pruner]] = {}
_MISSING: dict[str, str] = {}  # methods whose mathematics is here and which no model can run: name -> reason
_UNLISTED: set[str] = set()
_P = TypeVar("_P", bound=type[Pruner])


def register(name: str, *, listed: bool = True) -> Callable[[_P], _P]:
    """Class decorator: makes a method known under `name`.

    listed: whether `names` tells of it; not for a method that needs more than settings, and so cannot be run by name.
    """

    def add(cls: _P) -> _P:
        if name in _METHODS:
            raise ValueError(f"two methods are called {name!r}: {_METHODS[name].__name__} and {cls.__name__}")
        cls.name = name
        _METHODS[name] = cls
        if not listed:
            _UNLISTED.add(name)
        return cls

    return add


def explain_missing(name: str, reason: str) -> None:
    """Makes `get(name)` say why there is no such method."""
    _MISSING[name] = reason


def get(name: str) -> type[Pruner]:
    """The method class called `name`. Raises PruningError that lists the names, and may give the reason, if none is."""
    if name in _MISSING:
        raise PruningError(f"{name} cannot be run: {_MISSING[name]}; known methods: {', '.join(names())}")
    if name not in _METHODS:
        raise PruningError(f"unknown method {name!r}; known methods: {', '.join(names())}")
    return _METHODS[name]


def names() -> list[str]:
    """The names of all methods that run with settings alone, sorted."""
    return sorted(set(_METHODS) - _UNLISTED)
