"""What an adapter supplies: where the decoder is, and where a forward call's visual tokens are."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from vlm_pruner.layout import VisualSpan


class Adapter:
    """One model family. Subclasses set `model_classes` and write the three members below.

    model_classes:     names of the model classes served; names, so that nothing is imported to look one up.
    released_rounding: how the released code rounds a budget for this family, "round" or "floor".
    """

    model_classes: ClassVar[tuple[str, ...]] = ()
    released_rounding: ClassVar[str] = "round"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def decoder(self) -> nn.Module:
        """The language model: has `layers` and `config`, and hands its layers rotary embeddings."""
        raise NotImplementedError

    @property
    def entry(self) -> nn.Module:
        """The module whose forward sees what `spans` needs; a pre-hook on it reads each call's arguments."""
        raise NotImplementedError

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        """Visual spans per batch row in a forward call of `entry`; empty lists for rows (or steps) without any."""
        raise NotImplementedError
