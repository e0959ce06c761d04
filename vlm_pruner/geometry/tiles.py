"""Places the tokens of an any-resolution picture (LLaVA-NeXT), base, tiles and newlines, in one plane.

The model sees such a picture twice: whole, shrunk to one square (the base), and cut into tiles of full resolution whose
tokens form one grid. Both get coordinates in the plane of the original picture:

    unit    one tile token
    origin  the centre of the first tile token, x to the right and y down
    tiles   the token in column x and row y is at (x, y)
    base    side x side tokens stretched over the picture, so that the token in column x and row y is at
            ((x + 1/2) columns / side - 1/2, (y + 1/2) rows / side - 1/2), amid the tile tokens that show the same part
            of the picture
    newline the token that ends row y of the grid is at (columns, y), one step to the right of the row's last token

Rows and columns count the grid without the black bars; it covers the picture to within one token on each side. D_max is
sqrt(rows^2 + columns^2). A picture so flat that no row is left (wider than about 70 times its height) has base tokens
only, on a square grid of their own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import Lines, TokenLayout

RELEASED_SIDE = 24  # the released code assumes this grid for every picture


def base_coords(side: int, rows: float, columns: float) -> Tensor:
    """(x, y) of the base tokens, float [side * side, 2], for a picture of rows x columns tile tokens."""
    stretch = torch.tensor([columns / side, rows / side])
    return (TokenLayout.grid(side, side).coords + 0.5) * stretch - 0.5


def unpadded_layout(side: int, rows: int, columns: int) -> TokenLayout:
    """Base tokens, then rows x columns tile tokens, a newline after each row: side^2 + rows (columns + 1) tokens."""
    if rows == 0:
        return TokenLayout.grid(side, side)
    tiles = TokenLayout.grid(rows, columns + 1).coords
    base = base_coords(side, rows, max(columns, 1))
    lines = Lines.of(rows, columns, before=side**2)
    return TokenLayout(torch.cat([base, tiles]), math.hypot(rows, columns), lines)


def released_layout(tokens: int) -> TokenLayout:
    """Where the released code assumes the tokens are: all on one grid, 24 wide, with D_max = 24 sqrt 2."""
    grid = TokenLayout.grid(math.ceil(tokens / RELEASED_SIDE), RELEASED_SIDE)
    return TokenLayout(grid.coords[:tokens], math.hypot(RELEASED_SIDE, RELEASED_SIDE))
