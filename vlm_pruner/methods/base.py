"""Defines a pruning method: a frozen dataclass that chooses tokens. Knows nothing about models or transformers."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from vlm_pruner import kernels
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.view import View
from vlm_pruner.selection.standing import nearest_kept

if TYPE_CHECKING:
    from typing_extensions import Self

NEWLINES = ("prunable", "of-kept-rows")
CALIBRATIONS = ("size", "size+distance")
COMPARED = 256  # channels on which a dropped token looks for its nearest kept one, as VLM-Pruner's default

_LAYER_BEFORE = {"attend", "hidden_before", "text_keys"}  # needs that only the layer before the pruned one can supply


@dataclass(frozen=True)
class Selection:
    """The R tokens of one image's N that stay.

    indices:    long [R], ascending. order: long [R], the same tokens in order of selection.
    nearest:    long [N], position in `indices` of the kept token that each token is most similar to (a kept token
                points to itself); None for methods that merge nothing.
    similarity: float [N], similarity of each token to that kept token; None for methods that merge nothing.
    pivots:     long [P], tokens that selection started from, in order; None for methods without pivots.
    into:       long [N], position in `indices` of the row that each token became a part of (a kept token: its own),
                or -1 for a token that is lost; None for methods that merge nothing, or into `nearest`.
    merged:     [c, d], rows that replace those of the last c tokens of `order`; None for methods that make no rows.

    `of(order)` builds one from the order alone.
    """

    indices: Tensor
    order: Tensor
    nearest: Tensor | None = None
    similarity: Tensor | None = None
    pivots: Tensor | None = None
    into: Tensor | None = None
    merged: Tensor | None = None

    @classmethod
    def of(cls, order: Tensor, **more: Any) -> Self:
        """Keeps the tokens `order` [R], given in order of selection. more: the other fields."""
        return cls(order.sort().values, order, **more)


@dataclass(frozen=True)
class Pruner:
    """Base of all methods. A subclass implements `select`, and `merge` if it merges dropped tokens into kept ones.

    Override `choose` instead of `select` if the method needs more than the image's hidden states and keys, and list in
    `needs` the further fields of the View that it reads: a running decoder gathers those and no others.

    reduction_ratio: share of each image's visual tokens to remove, in [0, 1).
    keep_tokens:     or the number of visual tokens to keep, per image. Exactly one of the two.
    layer:           the first decoder layer (counted from 0) that runs on the short sequence; 0 prunes the input.
    per_frame:       whether each frame of a video has that budget and is pruned on its own, instead of the whole video.
    renumber:        whether the remaining tokens get consecutive positions. By default they keep their own, which
                     preserves where a token was in the picture; several methods' published code renumbers.
    newlines:        how to treat newline tokens (LLaVA-NeXT, LLaVA-OneVision, LLaVA-Video). "prunable": like any other
                     token. "of-kept-rows": neither chosen nor counted, but kept on top of the budget if their line
                     keeps a token, as public ports of several methods do.
    calibrate:       what to add to attention in the layers from `layer` on, while prefilling and while decoding.
                     "size": log s for a kept token that stands for s tokens, itself and those merged into it (or, if
                     nothing merges, those most similar to it). "size+distance": also log(2 - D), where D is the mean
                     of cos(distance x frequency) over the rotary frequencies, from the first pruned picture on.
    size_power:      exponent on s.

    videos_only: whether the method compares frames: videos are pruned, pictures stay whole.
    by_settings: whether the method runs with nothing but a name and a budget; if not, requires: what else it takes.
    label: its printed name. arxiv: its paper's number. source: of a method from a file, the file and its hash.
    """

    reduction_ratio: float | None = None
    keep_tokens: int | None = None
    layer: int = 2
    per_frame: bool = field(default=False, kw_only=True)
    renumber: bool = field(default=False, kw_only=True)
    newlines: str = field(default="prunable", kw_only=True)
    calibrate: Literal["size", "size+distance"] | None = field(default=None, kw_only=True)
    size_power: float = field(default=1.0, kw_only=True)

    name: ClassVar[str] = ""
    label: ClassVar[str] = ""
    arxiv: ClassVar[str] = ""
    source: ClassVar[Mapping[str, str] | None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    videos_only: ClassVar[bool] = False
    by_settings: ClassVar[bool] = True
    requires: ClassVar[str] = ""

    def __post_init__(self) -> None:
        self._read_numbers()
        self._check_budget()
        if self.layer < 0:
            raise PruningError(f"layer={self.layer} must be 0 or more: decoder layers are counted from 0")
        self._check_choice("newlines", *NEWLINES)
        if self.videos_only and self.per_frame:
            raise PruningError(f"per_frame=True: {self.name} compares the frames of a video; use per_frame=False")
        if self.newlines != "prunable" and self.released:
            raise PruningError(f"newlines={self.newlines!r}: the released code counts newlines; leave one of them out")
        self._check_calibration()
        if self.layer == 0 and self.released:
            raise PruningError(
                "layer=0: the released code cannot prune before the first decoder layer; use layer=1 or up"
            )
        if self.layer == 0 and self.needs & _LAYER_BEFORE:
            raise PruningError(
                f"layer=0: {type(self).__name__} looks at the layer before the pruned one, and there is none; "
                "use layer=1 or higher"
            )

    def _read_numbers(self) -> None:
        """Turns numpy's numbers into Python's, and raises PruningError for a value that is not its field's kind."""
        for entry in fields(self):
            value, kind = getattr(self, entry.name), getattr(entry.type, "__name__", entry.type)
            if isinstance(value, Real) and not isinstance(value, int | float):
                value = int(value) if isinstance(value, Integral) else float(value)
                object.__setattr__(self, entry.name, value)
            if kind == "int" and not isinstance(value, int):
                raise PruningError(f"{entry.name}={value!r} must be a whole number")
            if kind == "float" and not isinstance(value, int | float):
                raise PruningError(f"{entry.name}={value!r} must be a number")

    def _check_budget(self) -> None:
        ratio, tokens = self.reduction_ratio, self.keep_tokens
        if (ratio is None) == (tokens is None):
            raise PruningError(
                f"give exactly one of reduction_ratio and keep_tokens, not reduction_ratio={ratio} and "
                f"keep_tokens={tokens}"
            )
        if ratio is not None and not (isinstance(ratio, int | float) and 0 <= ratio < 1):
            raise PruningError(
                f"reduction_ratio={ratio!r} must be at least 0 and below 1: it is the share of tokens removed"
            )
        if tokens is not None:
            self._check_whole("keep_tokens")

    def _check_calibration(self) -> None:
        self._check_choice("calibrate", None, *CALIBRATIONS)
        if not (math.isfinite(self.size_power) and self.size_power >= 0):
            raise PruningError(f"size_power={self.size_power} must be a finite number of at least 0; 0 ignores sizes")
        if self.calibrate is None and self.size_power != 1:
            raise PruningError(
                f"size_power={self.size_power} is an exponent on sizes, which count with calibrate='size' only; "
                "set calibrate, or leave size_power out"
            )
        if self.calibrate is not None and self.released:
            raise PruningError(
                f"calibrate={self.calibrate!r}: the released code calibrates nothing; leave one of them out"
            )

    def _check_choice(self, name: str, *choices: str | None) -> None:
        if getattr(self, name) not in choices:
            raise PruningError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, choices))}")

    def _check_whole(self, *names: str, least: int = 1) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise PruningError(f"{name}={value!r} must be a whole number of at least {least}")

    def _check_share(self, name: str, meaning: str) -> None:
        """meaning: completes the message."""
        if not 0 <= getattr(self, name) <= 1:
            raise PruningError(f"{name}={getattr(self, name)} must be between 0 and 1{meaning}")

    def suits(self, layout: TokenLayout) -> bool:
        """Whether the method prunes an image or a video of this layout; others stay whole."""
        return layout.coords.shape[1] == 3 or not self.videos_only

    @property
    def least_tokens(self) -> int:
        """The smallest budget that the method can work with."""
        return 1

    @property
    def released(self) -> bool:
        """Whether the method reproduces the released code with its limits: first image of each row, rounding, grid."""
        return False

    def budget(self, tokens: int, rounding: str = "round") -> int:
        """Number of visual tokens to keep out of an image's `tokens`.

        rounding: how the released code rounds for this model, "round" or "floor"; used only to reproduce it.
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
        wanted = int(share) if self.released and rounding == "floor" else round(share)
        return min(tokens, max(self.least_tokens, wanted))

    def layers(self, depth: int) -> tuple[int, ...]:
        """The layers before which tokens are dropped, ascending, in a decoder of `depth` layers. Most methods: one."""
        return (self.layer,)

    def budgets(self, tokens: int, depth: int, rounding: str = "round") -> tuple[int, ...]:
        """Visual tokens to keep, out of an image's `tokens`, from each of `layers(depth)` on."""
        return (self.budget(tokens, rounding),)

    def select(self, hidden: Tensor, keys: Tensor, layout: TokenLayout, budget: int) -> Selection:
        """Chooses `budget` of one image's N tokens.

        hidden: [N, d], the residual stream entering `layer`. keys: [N, k], keys of the layer before (after rotary
        embedding, heads concatenated); with layer=0, the hidden states again. layout: the tokens' coordinates.
        """
        raise PruningError(
            f"{type(self).__name__} cannot choose by hidden states and keys alone: it needs "
            f"{', '.join(sorted(self.needs))}; use choose(View(...)), or prune a model"
        )

    def choose(self, view: View) -> Selection:
        """Like `select`, with access to everything in `needs`."""
        return self.select(view.hidden, view.keys, view.layout, view.budget)

    def choose_all(self, views: Sequence[View]) -> list[Selection]:
        """Choices for all images of a forward call. Override it where choosing from several at once is faster."""
        return [self.choose(view) for view in views]

    def merge(self, hidden: Tensor, selection: Selection) -> Tensor:
        """Rows [R, d] that enter `layer`, in the order of `selection.indices`: of `hidden` [N, d], or `merged` ones."""
        rows = hidden[selection.indices]
        if selection.merged is not None:
            replaced = selection.order[len(selection.order) - len(selection.merged) :]
            rows[torch.searchsorted(selection.indices, replaced)] = selection.merged.to(rows.dtype)
        return rows

    def assigned(self, hidden: Tensor, selection: Selection) -> Tensor:
        """Long [N], position in `selection.indices` of the kept token that each of `hidden` [N, d] counts towards.

        -1 for a token that counts towards none. A method that merges nothing assigns a dropped token to the kept one
        most similar to it.
        """
        if selection.into is not None:
            return selection.into
        if selection.nearest is not None:
            return selection.nearest.long()
        unit = kernels.backend(hidden).screen_channels(hidden[None], COMPARED)[0]
        return nearest_kept(unit, selection.indices)[0]

    def config(self) -> dict[str, Any]:
        """The method's fields, ready for JSON."""
        return asdict(self)


def overriding(method: Pruner, **functions: Callable[..., Any]) -> Pruner:
    """The same method with other functions in place of its own of those names. They take `self` first."""
    kind: Any = type(method)
    other: Pruner = object.__new__(type(kind.__name__, (kind,), functions))
    other.__dict__.update(method.__dict__)
    return other


GROUP = "vlm_pruner.methods"  # entry points under which an installed package offers methods

_METHODS: dict[str, type[Pruner]] = {}
_P = TypeVar("_P", bound=type[Pruner])


def register(name: str, label: str = "", *, arxiv: str = "") -> Callable[[_P], _P]:
    """Class decorator: registers a method under `name`. label: its printed name. arxiv: the number of its paper."""

    def add(cls: _P) -> _P:
        if name in _METHODS:
            raise ValueError(f"two methods are called {name!r}: {_METHODS[name].__name__} and {cls.__name__}")
        cls.name, cls.label, cls.arxiv = name, label or name, arxiv
        _METHODS[name] = cls
        return cls

    return add


def is_registered(cls: type[Pruner]) -> bool:
    """Whether `cls` itself has a name, not just the class that it inherits from."""
    return _METHODS.get(cls.name) is cls


def get(name: str) -> type[Pruner]:
    """The method class called `name`. Raises a PruningError that lists the names if there is none."""
    if name not in _METHODS and name in _installed():
        _load(_installed()[name])
    if name not in _METHODS:
        near = difflib.get_close_matches(name, list(_METHODS), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise PruningError(f"unknown method {name!r}; known methods: {', '.join(names())}{hint}")
    return _METHODS[name]


def names(*, every: bool = False) -> list[str]:
    """Sorted names of all methods that prune pictures and need nothing but settings.

    every: also those that prune videos only, and those that need more.

    A method of an installed package that cannot be loaded is left out, with a warning.
    """
    for point in _installed().values():
        try:
            _load(point)
        except PruningError as error:
            warnings.warn(str(error), stacklevel=2)
    return sorted(name for name, method in _METHODS.items() if every or (method.by_settings and not method.videos_only))


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> None:
    """Registers an installed package's method. Raises PruningError if it cannot be loaded, or clashes."""
    said = f"the entry point {point.name!r} of {GROUP!r} ({point.value})"
    try:
        method = point.load()
    except Exception as error:
        raise PruningError(f"{said} cannot be loaded: {type(error).__name__}: {error}") from error
    if not (isinstance(method, type) and issubclass(method, Pruner)):
        raise PruningError(f"{said} is not a class that inherits from vlm_pruner.methods.Pruner")
    if not is_registered(method):
        if point.name in _METHODS:
            raise PruningError(f"{said} has the name of another method; rename the entry point")
        register(point.name)(method)
    elif method.name != point.name:
        raise PruningError(f"{said} registers itself as {method.name!r}; give both the same name")
