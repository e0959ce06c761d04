"""What was kept, in which order, from where in the picture. Plain Python values, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vlm_pruner.fit import Fit

if TYPE_CHECKING:
    import PIL.Image

    from vlm_pruner.show.overlay import Pictures


@dataclass(frozen=True)
class ImageReceipt:
    """One visual span of one batch row. R tokens of N were kept; all indices count within the span.

    indices: the R kept tokens, ascending. order: the same tokens in order of selection.
    coords:  [R, 2] (x, y) of the kept tokens in token units, in the order of `indices`; of a video [R, 3] (t, x, y).
    pivots:  tokens that selection started from, in order of selection (empty for methods without pivots).
    nearest: [N] position in `indices` of the kept token that each token is most similar to, which is where a
             dropped token was folded in; None for methods that fold nothing, and for those with several stages.
    offsets: [N] where the tokens are in the span, if text stands between them; None if they follow each other.
    steps:   [layer, visual tokens from there on] of each stage; the last is [layer, n_after].
    fit:     how the picture was laid on its tokens' grid, and so where each token is in it; None if not known.
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

    def overlay(self, picture: Pictures, **style: Any) -> PIL.Image.Image:
        """The original picture (or a video's frames) with the kept tokens drawn in place; RGB.

        style: fields of `vlm_pruner.show.Style`, such as first=16, folds="hue" or side=512.
        Raises ValueError if the receipt does not say where the tokens are, or the picture cannot be the one it is of.
        """
        from vlm_pruner.show import Kept, Style, overlay

        return overlay(picture, Kept.of(self), Style(**style))


@dataclass(frozen=True)
class Receipt:
    """One prefill. `images` is in order of batch rows, then of position; empty when no visual token was found.

    make_images: gives them when they are first read, so that a prefill does not wait for lists of Python numbers.
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

    def overlay(self, *pictures: Pictures, **style: Any) -> PIL.Image.Image:
        """The prefill's pictures with the kept tokens drawn in place, side by side; see `ImageReceipt.overlay`.

        pictures: one for each entry of `images`, in order; a video is a list of frames.
        """
        if len(pictures) != len(self.images):
            raise ValueError(
                f"{len(pictures)} pictures were given, but the receipt is of {len(self.images)} images: give one each"
            )
        from vlm_pruner.show import side_by_side

        drawn = [image.overlay(picture, **style) for image, picture in zip(self.images, pictures, strict=True)]
        return drawn[0] if len(drawn) == 1 else side_by_side([("", one) for one in drawn], key=False)

    def to_dict(self) -> dict[str, Any]:
        own = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "make_images"}
        return {**own, "config": dict(self.config), "images": [image.to_dict() for image in self.images]}
