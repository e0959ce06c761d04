"""How a picture was laid on the grids of its visual tokens, and so which part of the picture each token shows.

Processors stretch, pad, crop or tile a picture before a vision tower sees it. A `Fit` says which of these was done, in
plain values that a receipt can carry to a JSON file; with the picture's size it gives every token's box in pixels of
the original picture. Nothing here needs torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

Size = tuple[int, int]  # (width, height) in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the original picture

KINDS = ("stretch", "pad", "crop", "anyres", "tiles")


@dataclass(frozen=True)
class View:
    """One grid of tokens, and the part of the picture that it covers.

    plane:  views of one plane lie beside each other, those of different planes show the same things again: "picture",
            "overview" (the whole picture shrunk), "tiles", or "frame 1", "frame 2", ... of a video.
    region: what the grid covers; it reaches beyond the picture where the processor has padded.
    first:  number of the grid's first token. stride: tokens per row, with the one that ends the row if there is one.
    """

    plane: str
    region: Box
    rows: int
    columns: int
    first: int = 0
    stride: int = 0

    def boxes(self) -> Iterator[tuple[int, Box]]:
        """(token, box) of all tokens of the grid, row by row."""
        left, top, right, bottom = self.region
        wide, high = (right - left) / self.columns, (bottom - top) / self.rows
        for row in range(self.rows):
            for column in range(self.columns):
                x, y = left + column * wide, top + row * high
                yield self.first + row * (self.stride or self.columns) + column, (x, y, x + wide, y + high)


@dataclass(frozen=True)
class Fit:
    """What was done to a picture (or to every frame of a video).

    stretch  scaled to fill the grid: Qwen's smart resize (a token is one merged block of patches), Mistral, one tile
    pad      centred on a square of its longer side: LLaVA-1.5 as trained
    crop     its shorter side scaled to `pixels`, then the middle square: CLIP's own processor, LLaVA-1.5 on the Hub
    anyres   a square of `base` x `base` tokens for the whole, then rows x columns of the part of a canvas that holds
             the picture, each row ended by a newline token: LLaVA-NeXT, LLaVA-OneVision
    tiles    `tiles` squares of rows x columns one after the other, and if there are several the whole again, last:
             InternVL

    rows, columns: tokens of a grid. frames: grids of a video, one after the other; 1 for a picture.
    pixels:   side of the vision tower's square in pixels (crop, anyres).
    resized:  crop: what the shorter side is scaled to, if that is not `pixels`.
    canvases: anyres: (width, height) in pixels of the canvases to choose from.
    """

    kind: str
    rows: int
    columns: int
    frames: int = 1
    tiles: int = 1
    base: int = 0
    pixels: int = 0
    resized: int | None = None
    canvases: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a picture was fitted by {self.kind!r}; known: {', '.join(KINDS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fit:
        """From what `dataclasses.asdict` made of it, maybe by way of JSON."""
        known = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
        canvases = tuple((int(width), int(height)) for width, height in known.get("canvases", ()))
        return cls(**{**known, "canvases": canvases})

    def views(self, size: Size) -> list[View]:
        """The grids on a picture of `size` (width, height) pixels.

        Raises ValueError if a picture of that size cannot have been laid on these grids.
        """
        if min(size) < 1:
            raise ValueError(f"a picture of {size[0]} x {size[1]} pixels has nothing in it")
        views: list[View] = getattr(self, f"_{self.kind}")(size)
        return views

    def seen_by(self, processor: Any) -> Fit:
        """The fit with what a transformers processor (or image processor) says about padding and cropping.

        A model's weights do not tell whether its pictures were padded or cropped: for LLaVA-1.5 the processor does.
        """
        settings = getattr(processor, "image_processor", processor)
        if self.kind not in ("pad", "crop"):
            return self
        if getattr(settings, "do_pad", False):
            return replace(self, kind="pad")
        if not getattr(settings, "do_center_crop", False):
            return replace(self, kind="stretch")
        crop, size = _number(settings.crop_size, "height"), _number(settings.size, "shortest_edge")
        return replace(self, kind="crop", pixels=crop or self.pixels, resized=size)

    def _stretch(self, size: Size) -> list[View]:
        return self._frames((0.0, 0.0, float(size[0]), float(size[1])))

    def _pad(self, size: Size) -> list[View]:
        width, height = size
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)  # whole pixels, as the picture is pasted
        return self._frames((float(left), float(top), float(left + side), float(top + side)))

    def _crop(self, size: Size) -> list[View]:
        width, height = size
        shorter, target = min(width, height), self.resized or self.pixels
        scaled_width = target if width <= height else int(target * width / shorter)
        scaled_height = target if height <= width else int(target * height / shorter)
        left, top = (scaled_width - self.pixels) // 2, (scaled_height - self.pixels) // 2
        across, down = width / scaled_width, height / scaled_height  # original pixels per scaled one
        right, bottom = left + self.pixels, top + self.pixels
        return self._frames((left * across, top * down, right * across, bottom * down))

    def _frames(self, region: Box) -> list[View]:
        names = ["picture"] if self.frames == 1 else [f"frame {number + 1}" for number in range(self.frames)]
        tokens = self.rows * self.columns
        return [View(name, region, self.rows, self.columns, i * tokens) for i, name in enumerate(names)]

    def _anyres(self, size: Size) -> list[View]:
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        overview = View("overview", whole, self.base, self.base)
        if self.rows < 1 or self.columns < 1:
            return [overview]
        return [overview, View("tiles", self._held(size), self.rows, self.columns, self.base**2, self.columns + 1)]

    def _held(self, size: Size) -> Box:
        """The part of the canvas whose tokens were kept when the bars were cut off, in pixels of the picture."""
        from vlm_pruner.geometry.anyres import select_best_resolution, unpadded_region

        canvas = select_best_resolution(size, self.canvases)
        grid = (canvas[1] // self.pixels * self.base, canvas[0] // self.pixels * self.base)
        rows, columns = unpadded_region(grid, size)
        held = rows.stop - rows.start, columns.stop - columns.start
        self._check_held(size, held)
        scaled = _scaled(size, canvas)
        patch = self.pixels / self.base
        left, top = ((outer - inner) // 2 for outer, inner in zip(canvas, scaled, strict=True))
        across, down = size[0] / scaled[0], size[1] / scaled[1]
        return (
            (columns.start * patch - left) * across,
            (rows.start * patch - top) * down,
            (columns.stop * patch - left) * across,
            (rows.stop * patch - top) * down,
        )

    def _check_held(self, size: Size, held: tuple[int, int]) -> None:
        shrunk = self.rows < held[0] and self.columns < held[1]  # LLaVA-OneVision's large pictures
        if held != (self.rows, self.columns) and not shrunk:
            raise ValueError(
                f"a picture of {size[0]} x {size[1]} pixels has {held[0]} x {held[1]} tile tokens, the receipt is of "
                f"one with {self.rows} x {self.columns}: give the picture that the model saw"
            )

    def _tiles(self, size: Size) -> list[View]:
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        if self.tiles == 1:
            return [View("picture", whole, self.rows, self.columns)]
        across, down = _tile_grid(size, self.tiles - 1)
        wide, high, tokens = size[0] / across, size[1] / down, self.rows * self.columns
        corners = [(column * wide, row * high) for row in range(down) for column in range(across)]
        views = [
            View("tiles", (x, y, x + wide, y + high), self.rows, self.columns, number * tokens)
            for number, (x, y) in enumerate(corners)
        ]
        return [*views, View("overview", whole, self.rows, self.columns, len(views) * tokens)]


def _scaled(size: Size, canvas: Size) -> Size:
    """The picture's size on a canvas that it fits into."""
    width, height = canvas[0] / size[0], canvas[1] / size[1]
    if width < height:
        return canvas[0], min(math.ceil(size[1] * width), canvas[1])
    return min(math.ceil(size[0] * height), canvas[0]), canvas[1]


def _tile_grid(size: Size, count: int) -> Size:
    """InternVL's arrangement (across, down) of `count` tiles: the one nearest to the picture's aspect ratio.

    The processor chooses among several counts; what it has chosen is also the best of its own count.
    """
    wanted = size[0] / size[1]
    grids = [(across, count // across) for across in range(1, count + 1) if count % across == 0]
    return min(grids, key=lambda grid: abs(wanted - grid[0] / grid[1]))


def _number(size: Any, name: str) -> int | None:
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return None if value is None else int(value)
