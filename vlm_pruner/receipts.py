"""Records what was kept, in which order, and from where in the picture. Plain Python values, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import vlm_pruner
from vlm_pruner.geometry.fit import Fit

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class Kept:
    """The kept tokens of one picture or video, for drawings. Token indices count from 0 within the visual span.

    fit:    how the picture maps to the grid. order: kept tokens in order of selection.
    pivots: those that selection started from.
    keeper: for every token, the kept token that it was merged into (itself if kept); None if nothing was merged.
    method: the name of the method that chose.
    """

    fit: Fit
    order: Sequence[int]
    pivots: Sequence[int] = ()
    keeper: Sequence[int] | None = None
    method: str = ""


@dataclass(frozen=True)
class ImageReceipt:
    """One visual span of one batch row. R tokens of N were kept; all indices count within the span.

    indices: the R kept tokens, ascending. order: the same tokens in order of selection.
    coords:  [R, 2] (x, y) of the kept tokens in token units, in the order of `indices`; of a video [R, 3] (t, x, y).
    pivots:  tokens that selection started from, in order of selection (empty for methods without pivots).
    nearest: [N] position in `indices` of the kept token that each token is most similar to, into which dropped tokens
             were merged; None for methods that merge nothing, and for those with several stages.
    offsets: [N] positions of the tokens in the span, if text stands between them; None if they are consecutive.
    steps:   [layer, visual tokens from it on] of each stage; the last is [layer, n_after].
    fit:     how the picture maps to its tokens' grid, which gives each token's box; None if unknown.
    """

    row: int
    span: tuple[int, int]  # start and length in the row's sequence, before pruning
    layer: int  # the first decoder layer (counted from 0) that runs on the short sequence
    method: str
    n_before: int
    n_after: int
    indices: list[int]
    order: list[int]
    coords: list[list[float]]
    pivots: list[int] = field(default_factory=list)
    nearest: list[int] | None = None
    offsets: list[int] | None = None
    steps: list[list[int]] = field(default_factory=list)
    fit: Fit | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "span": list(self.span)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ImageReceipt:
        """Rebuilds a receipt from `to_dict()`, also after a round trip through JSON."""
        start, length = values["span"]
        fit = Fit.from_dict(values["fit"]) if values.get("fit") else None
        return cls(**{**values, "span": (start, length), "fit": fit})

    def kept(self, fit: Fit | None = None) -> Kept:
        """The part that drawings need. fit: replaces the receipt's own. Raises ValueError if there is neither."""
        fit = fit or self.fit
        if fit is None:
            raise ValueError(
                f"the receipt of {self.method} does not say where its {self.n_before} tokens are in the picture; "
                "give fit=Fit(kind, rows, columns), or prune through vlm_pruner.prune(model, method)"
            )
        keeper = None if self.nearest is None else [self.indices[position] for position in self.nearest]
        return Kept(fit, self.order, self.pivots, keeper, self.method)

    def overlay(self, picture: Any, **style: Any) -> PIL.Image.Image:
        """The original picture (for a video, its list of frames) with the kept tokens drawn on it, RGB.

        style: fields of `vlm_pruner.drawing.Style`, such as first=16, folds="hue" or side=512.
        Raises ValueError if the receipt does not say where the tokens are, or the picture cannot be the one it is of.
        """
        return vlm_pruner.draw_prefill([self], [picture], **style)


@dataclass(frozen=True)
class Receipt:
    """One prefill. `images` is ordered by batch row, then by position; empty if there was no visual token.

    make_images: builds them on first access, so that a prefill does not wait for lists of Python numbers.
    """

    method: str
    config: dict[str, Any]  # the method's fields
    layer: int
    batch_size: int
    tokens_before: int  # padded sequence length that entered the decoder
    tokens_after: int  # padded sequence length from `layer` on
    make_images: Callable[[], list[ImageReceipt]] = field(repr=False, compare=False)

    @cached_property
    def images(self) -> list[ImageReceipt]:
        return self.make_images()

    def overlay(self, *pictures: Any, **style: Any) -> PIL.Image.Image:
        """The prefill's pictures side by side, with the kept tokens drawn on them; see `ImageReceipt.overlay`.

        pictures: one per entry of `images`, in order; a video is a list of frames.
        """
        return vlm_pruner.draw_prefill(self.images, pictures, **style)

    def to_dict(self) -> dict[str, Any]:
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "make_images"}
        return {**own, "config": dict(self.config), "images": [image.to_dict() for image in self.images]}
