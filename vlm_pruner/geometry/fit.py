"""Maps each visual token to the part of the picture it shows.

Processors stretch, pad, crop or tile a picture before the vision tower sees it. A `Fit` records which, in plain values
that a receipt can write to JSON. Given the picture's size, it returns every token's box in pixels of the original
picture. Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Size = tuple[int, int]  # (width, height) in pixels
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels of the original picture

KINDS = ("stretch", "pad", "crop", "anyres", "tiles")


@dataclass(frozen=True)
class GridView:
    """One grid of tokens and the part of the picture it covers.

    plane:  grids of one plane lie side by side; different planes show the same content again: "picture", "overview"
            (the whole picture, shrunk), "tiles", or "frame 1", "frame 2", ... of a video.
    region: the area the grid covers; it extends beyond the picture where the processor padded.
    first:  index of the grid's first token. stride: tokens per row, including a newline token if rows end with one.
    """

    plane: str
    region: Box
    rows: int
    columns: int
    first: int = 0
    stride: int = 0

    def boxes(self) -> Iterator[tuple[int, Box]]:
        """Yields (token, box) for every token of the grid, row by row."""
        left, top, right, bottom = self.region
        wide, high = (right - left) / self.columns, (bottom - top) / self.rows
        for row in range(self.rows):
            for column in range(self.columns):
                x, y = left + column * wide, top + row * high
                yield self.first + row * (self.stride or self.columns) + column, (x, y, x + wide, y + high)


@dataclass(frozen=True)
class Fit:
    """How the processor prepared a picture (or every frame of a video).

    stretch  scales it to fill the grid: Qwen's smart resize (a token is one merged block of patches), Mistral, one tile
    pad      centres it on a square of its longer side: LLaVA-1.5 as trained
    crop     scales its shorter side to `pixels` and takes the middle square: CLIP's processor, LLaVA-1.5 on the Hub
    anyres   `base` x `base` tokens for the whole picture, then rows x columns for the part of a canvas that holds the
             picture, with a newline token after each row: LLaVA-NeXT, LLaVA-OneVision
    tiles    `tiles` squares of rows x columns in sequence and, if there are several, the whole picture last: InternVL

    rows, columns: tokens of one grid. frames: grids of a video, in sequence; 1 for a picture.
    pixels:   side of the vision tower's square in pixels (crop, anyres).
    resized:  crop: target length of the shorter side, if it is not `pixels`.
    canvases: anyres: (width, height) in pixels of the canvases to choose from.
    rounds:   anyres: how bars are cut off, see `anyres.unpadded_region`.
    newlines: of a video's frames, where newline tokens stand among them, see `videos`; "" where there are none.
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
    rounds: bool = field(default=True, compare=False)
    newlines: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fit {self.kind!r}; known: {', '.join(KINDS)}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Fit:
        """Rebuilds a fit from `dataclasses.asdict`, also after a round trip through JSON."""
        known = {entry.name: values[entry.name] for entry in fields(cls) if entry.name in values}
        canvases = tuple((int(width), int(height)) for width, height in known.get("canvases", ()))
        return cls(**{**known, "canvases": canvases})

    def views(self, size: Size) -> list[GridView]:
        """The grids on a picture of `size` (width, height) pixels.

        Raises ValueError if these grids cannot come from a picture of that size.
        """
        if min(size) < 1:
            raise ValueError(f"a picture of {size[0]} x {size[1]} pixels is empty")
        views: list[GridView] = getattr(self, f"_{self.kind}")(size)
        return views

    def _stretch(self, size: Size) -> list[GridView]:
        return self._frames((0.0, 0.0, float(size[0]), float(size[1])))

    def _pad(self, size: Size) -> list[GridView]:
        width, height = size
        side = max(width, height)
        left, top = -((side - width) // 2), -((side - height) // 2)  # whole pixels, as the processor pastes it
        return self._frames((float(left), float(top), float(left + side), float(top + side)))

    def _crop(self, size: Size) -> list[GridView]:
        width, height = size
        shorter, target = min(width, height), self.resized or self.pixels
        scaled_width = target if width <= height else int(target * width / shorter)
        scaled_height = target if height <= width else int(target * height / shorter)
        left, top = (scaled_width - self.pixels) // 2, (scaled_height - self.pixels) // 2
        across, down = width / scaled_width, height / scaled_height  # original pixels per scaled one
        right, bottom = left + self.pixels, top + self.pixels
        return self._frames((left * across, top * down, right * across, bottom * down))

    def _frames(self, region: Box) -> list[GridView]:
        names = ["picture"] if self.frames == 1 else [f"frame {number + 1}" for number in range(self.frames)]
        stride = self.columns + (self.newlines == "grid")
        tokens = self.rows * stride + (self.newlines == "frame")
        return [GridView(name, region, self.rows, self.columns, i * tokens, stride) for i, name in enumerate(names)]

    def _anyres(self, size: Size) -> list[GridView]:
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        overview = GridView("overview", whole, self.base, self.base)
        if self.rows < 1 or self.columns < 1:
            return [overview]
        tiles = GridView("tiles", self._unpadded(size), self.rows, self.columns, self.base**2, self.columns + 1)
        return [overview, tiles]

    def _unpadded(self, size: Size) -> Box:
        """The part of the canvas that remains once the black bars are cut off, in pixels of the picture."""
        from vlm_pruner.geometry.anyres import scaled_to_fit, select_best_resolution, unpadded_region

        canvas = select_best_resolution(size, self.canvases)
        grid = (canvas[1] // self.pixels * self.base, canvas[0] // self.pixels * self.base)
        rows, columns = unpadded_region(grid, size, rounds=self.rounds)
        self._check_grid(size, (rows.stop - rows.start, columns.stop - columns.start))
        scaled, (left, top) = scaled_to_fit(size, canvas)
        patch = self.pixels / self.base
        across, down = size[0] / scaled[0], size[1] / scaled[1]
        return (
            (columns.start * patch - left) * across,
            (rows.start * patch - top) * down,
            (columns.stop * patch - left) * across,
            (rows.stop * patch - top) * down,
        )

    def _check_grid(self, size: Size, expected: tuple[int, int]) -> None:
        shrunk = self.rows < expected[0] and self.columns < expected[1]  # LLaVA-OneVision shrinks large pictures
        if expected != (self.rows, self.columns) and not shrunk:
            raise ValueError(
                f"a picture of {size[0]} x {size[1]} pixels has {expected[0]} x {expected[1]} tile tokens, but the "
                f"receipt has {self.rows} x {self.columns}: pass the picture that the model saw"
            )

    def _tiles(self, size: Size) -> list[GridView]:
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        if self.tiles == 1:
            return [GridView("picture", whole, self.rows, self.columns)]
        across, down = _tile_grid(size, self.tiles - 1)
        wide, high, tokens = size[0] / across, size[1] / down, self.rows * self.columns
        corners = [(column * wide, row * high) for row in range(down) for column in range(across)]
        views = [
            GridView("tiles", (x, y, x + wide, y + high), self.rows, self.columns, number * tokens)
            for number, (x, y) in enumerate(corners)
        ]
        return [*views, GridView("overview", whole, self.rows, self.columns, len(views) * tokens)]


def _tile_grid(size: Size, count: int) -> Size:
    """InternVL's arrangement (across, down) of `count` tiles: the one closest to the picture's aspect ratio.

    The processor picks among several counts; its pick is also the best arrangement for that count.
    """
    wanted = size[0] / size[1]
    grids = [(across, count // across) for across in range(1, count + 1) if count % across == 0]
    return min(grids, key=lambda grid: abs(wanted - grid[0] / grid[1]))
