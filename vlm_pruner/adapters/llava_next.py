"""LLaVA-NeXT (1.6) in transformers' classes: pictures of any resolution, each one span of base, tiles and newlines.

Where the tokens are in the picture, and what becomes of newlines, is said in `vlm_pruner.tiles`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from vlm_pruner.adapters.base import Adapter, named_arguments
from vlm_pruner.errors import PruningError
from vlm_pruner.layout import TokenLayout, VisualSpan
from vlm_pruner.tiles import released_layout, unpadded_layout


class LlavaNextAdapter(Adapter):
    """LlavaNextForConditionalGeneration, and the LlavaNextModel inside it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        strategy = model.config.vision_feature_select_strategy
        if strategy != "default":
            raise PruningError(
                f"vision_feature_select_strategy={strategy!r} adds tokens that have no place in the picture; "
                "pruning needs 'default'"
            )
        vision = model.config.vision_config
        self._side = vision.image_size // vision.patch_size

    def spans(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[list[VisualSpan]]:
        call = named_arguments(self.entry, args, kwargs)
        ids = call.get("input_ids")
        layouts = self._layouts(call)
        if not layouts:
            return [[] for _ in (call["inputs_embeds"] if ids is None else ids)]
        if ids is None:
            raise PruningError("pruning finds pictures by their placeholders: pass input_ids, not inputs_embeds")
        return _spans(ids == self.model.config.image_token_id, layouts)

    def _layouts(self, call: dict[str, Any]) -> list[TokenLayout]:
        """Of the call's pictures. `generate` encodes them beforehand, and passes features in place of their sizes."""
        encoded = (call.get("mm_encoder_outputs") or {}).get("image")
        if encoded is not None:
            return [self._read_off(features) for features in encoded.pooler_output]
        if call.get("pixel_values") is None or call.get("image_sizes") is None:
            return []
        return [self._from_size(height, width) for height, width in _pairs(call["image_sizes"])]

    def _from_size(self, height: int, width: int) -> TokenLayout:
        """For a picture of that many pixels, by transformers' own arithmetic."""
        from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

        config, side = self.model.config, self._side
        down, across = get_anyres_image_grid_shape(
            (height, width), config.image_grid_pinpoints, config.vision_config.image_size
        )
        grid = self.entry.image_newline.new_empty(1, down * side, across * side)
        return unpadded_layout(side, *unpad_image(grid, (height, width)).shape[1:])

    def _read_off(self, features: Tensor) -> TokenLayout:
        """From a picture's packed features [N, d]: every row of the grid ends with the newline embedding."""
        base = self._side**2
        newlines = (features == self.entry.image_newline.to(features)).all(dim=-1).nonzero().squeeze(1)
        rows = len(newlines)
        columns = int(newlines[0]) - base if rows else 0
        if columns < 0 or len(features) != base + rows * (columns + 1):
            raise PruningError(
                f"a picture's {len(features)} features are not {base} of the base and a grid whose rows end with "
                "image_newline; give the features as the model's get_image_features packs them"
            )
        return unpadded_layout(self._side, rows, columns)


def _pairs(image_sizes: Any) -> Iterable[tuple[int, int]]:
    return image_sizes.tolist() if isinstance(image_sizes, Tensor) else image_sizes


def _spans(visual: Tensor, layouts: list[TokenLayout]) -> list[list[VisualSpan]]:
    """Pictures in order, in the placeholders of `visual`, bool [B, T]."""
    left = iter(layouts)
    spans: list[list[VisualSpan]] = [[] for _ in visual]
    for row, row_spans in enumerate(spans):
        places = visual[row].nonzero().squeeze(1).tolist()
        while places:
            layout = next(left, None)
            own = places[: len(layout)] if layout is not None else []
            if layout is None or len(own) < len(layout) or own[-1] - own[0] + 1 != len(layout):
                raise PruningError(
                    f"row {row}: its {len(places)} placeholders from position {places[0]} on do not fit the pictures' "
                    f"{[len(layout) for layout in layouts]} visual tokens; give the prompt uncut, in one forward call"
                )
            row_spans.append(VisualSpan(own[0], len(own), layout, released_layout=released_layout(len(own))))
            places = places[len(own) :]
    return spans
