"""What a picture of kept tokens is drawn from: a choice, and how the picture was laid on its tokens' grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlm_pruner.fit import Fit
from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Kept:
    """The kept tokens of one picture or video. Tokens are counted from 0 within its visual span.

    fit:    how the picture was laid on the grid. order: kept tokens in order of selection.
    pivots: those that selection started from.
    keeper: of every token the kept one that it was folded into (itself, if it was kept); None if nothing was folded.
    method: the name of the method that chose.
    """

    fit: Fit
    order: Sequence[int]
    pivots: Sequence[int] = ()
    keeper: Sequence[int] | None = None
    method: str = ""

    @classmethod
    def of(cls, image: ImageReceipt, fit: Fit | None = None) -> Kept:
        """From a receipt. `fit` takes the place of the receipt's own. Raises ValueError if neither is known."""
        fit = fit or image.fit
        if fit is None:
            raise ValueError(
                f"the receipt of {image.method} does not say where its {image.n_before} tokens are in the picture; "
                "give fit=Fit(kind, rows, columns), or prune through vlm_pruner.prune(model, method)"
            )
        keeper = None if image.nearest is None else [image.indices[position] for position in image.nearest]
        return cls(fit, image.order, image.pivots, keeper, image.method)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], fit: Fit | None = None) -> Kept:
        """From `ImageReceipt.to_dict()`, maybe by way of JSON."""
        own = Fit.from_dict(values["fit"]) if values.get("fit") else None
        return cls.of(ImageReceipt(**{**values, "fit": own}), fit)
