"""InternVL in transformers' classes (InternVL 2.5, 3 and 3.5, named ...-hf): pictures cut into square tiles.

All tiles of a picture form one run of placeholders, with the picture's thumbnail last. The model does not know how
tiles are arranged, so each of several gets its own coordinates, like a frame of a video: (tile, x, y), with distance
measured within a tile. The picture still has one budget, for which its tiles compete. A frame of a video reaches the
model as a picture of one tile, so it is a span with its own budget.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_pruner.adapters.base import Adapter, check_not_cut, lay_out, named_arguments, picture_count, placeholders, runs
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.fit import Fit
from vlm_pruner.geometry.layout import TokenLayout, VisualSpan


class InternVLAdapter(Adapter):
    """InternVLForConditionalGeneration, and the InternVLModel inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = model.config
        patches = config.vision_config.image_size[0] // config.vision_config.patch_size[0]
        self._side = int(patches * config.downsample_ratio)

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        tiles = picture_count(call)
        return lay_out(call, {self.model.config.image_token_id: self._layouts(call, tiles) if tiles else []})

    def fit(self, layout: TokenLayout) -> Fit | None:
        if len(layout) == self._side**2 and layout.coords.shape[1] == 3:
            return None  # one tile of several, pruned on its own: its position in the picture is no longer known
        return Fit("tiles", self._side, self._side, tiles=len(layout) // self._side**2)

    def _layouts(self, call: dict[str, Any], tiles: int) -> list[TokenLayout]:
        """Layouts of the call's pictures, which have `tiles` tiles in total."""
        positions = placeholders(call, self.model.config.image_token_id)
        check_not_cut(call, positions)
        pictures = [length for row in positions for length in runs(row)]
        size = self._side**2
        if any(length % size for length in pictures) or sum(pictures) != tiles * size:
            raise PruningError(
                f"{tiles} tiles of {size} visual tokens each do not fit runs of {pictures} placeholders; "
                "pass the prompt whole and in one forward call"
            )
        return [self._picture(length // size) for length in pictures]

    def _picture(self, tiles: int) -> TokenLayout:
        return TokenLayout.grid(self._side, self._side) if tiles == 1 else TokenLayout.video(tiles, *2 * (self._side,))
