"""InternVL in transformers' classes (InternVL 2.5, 3 and 3.5, named ...-hf): pictures cut into square tiles.

All tiles of a picture stand in one run of placeholders, the picture's thumbnail last. The model is not told how the
tiles lie beside each other, so each of several is placed by itself, like a frame of a video: coordinates are
(tile, x, y), and distance is measured within a tile. The picture still has one budget, for which its tiles compete.

A frame of a video reaches the model as a picture of one tile, and so is a span, with a budget, of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vlm_pruner.adapters.base import Adapter, check_not_cut, encoded, lay_out, named_arguments, placeholders
from vlm_pruner.errors import PruningError
from vlm_pruner.fit import Fit
from vlm_pruner.layout import TokenLayout, VisualSpan


class InternVLAdapter(Adapter):
    """InternVLForConditionalGeneration, and the InternVLModel inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = model.config
        patches = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
        self._side = int(patches * config.downsample_ratio)

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call, token_id = named_arguments(self.entry, args, kwargs), self.model.config.image_token_id
        features = encoded(call, "image")
        tiles = call.get("pixel_values") if features is None else features
        layouts = [] if tiles is None else self._layouts(placeholders(call, token_id), len(tiles))
        return lay_out(call, {token_id: layouts})

    def fit(self, layout: TokenLayout) -> Fit | None:
        if len(layout) == self._side**2 and layout.coords.shape[1] == 3:
            return None  # one tile of several, pruned by itself: where it was is not known any more
        return Fit("tiles", self._side, self._side, tiles=len(layout) // self._side**2)

    def _layouts(self, visual: Tensor, tiles: int) -> list[TokenLayout]:
        """Of the pictures in `visual`, bool [B, T], which have `tiles` tiles in all."""
        check_not_cut(visual)
        runs = [run for row in visual.tolist() for run in _runs(row)]
        size = self._side**2
        if any(run % size for run in runs) or sum(runs) != tiles * size:
            raise PruningError(
                f"{tiles} tiles of {size} visual tokens each do not fit runs of {runs} placeholders; "
                "give the prompt uncut and in one forward call"
            )
        return [self._picture(run // size) for run in runs]

    def _picture(self, tiles: int) -> TokenLayout:
        return TokenLayout.grid(self._side, self._side) if tiles == 1 else TokenLayout.video(tiles, *2 * (self._side,))


def _runs(flags: list[bool]) -> list[int]:
    """Lengths of the runs of True."""
    words = "".join("x" if flag else " " for flag in flags).split()
    return [len(word) for word in words]
