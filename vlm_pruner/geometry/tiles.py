"""Where the tokens of an any-resolution picture (LLaVA-NeXT) are: base tokens, tile tokens and newlines in one plane.

The model sees such a picture twice: whole, shrunk to one square (the base), and cut into tiles of full resolution whose
tokens form one grid. Both are placed in the plane of the original picture:

    unit    one tile token
    origin  the centre of the first tile token, x to the right and y down
    tiles   the token in column x and row y is at (x, y)
    base    the square of side x side tokens is stretched over the picture, so that the token in column x and row y is
            at ((x + 1/2) columns / side - 1/2, (y + 1/2) rows / side - 1/2): a base token lies amid the tile tokens
            that show the same part of the picture
    newline the token that ends a row of the grid is at (columns, y), one step to the right of the row's last token

The rows and columns are those of the grid without the black bars around the picture, which covers the picture to
within one token on each side. D_max is sqrt(rows^2 + columns^2). A picture so long and flat that no row is left (wider
than about 70 times its height) has base tokens only, on a square grid of their own.

Newlines are kept or dropped by the method, as other tokens are: they count in N and in the budget, and are chosen by
content and place. Being nearly equal among themselves, few of them are kept, and they stand for the others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vlm_pruner.geometry.layout import TokenLayout

RELEASED_SIDE = 24  # the released code's grid, whatever the picture


def base_coords(side: int, rows: float, columns: float) -> Tensor:
    """(x, y) of the base tokens of a picture of rows x columns tile tokens, float [side * side, 2]."""
    stretch = torch.tensor([columns / side, rows / side])
    return (TokenLayout.grid(side, side).coords + 0.5) * stretch - 0.5


def unpadded_layout(side: int, rows: int, columns: int) -> TokenLayout:
    """Base, then rows x columns tile tokens with a newline after each row: side^2 + rows (columns + 1) tokens."""
    if rows == 0:
        return TokenLayout.grid(side, side)
    tiles = TokenLayout.grid(rows, columns + 1).coords
    base = base_coords(side, rows, max(columns, 1))
    return TokenLayout(torch.cat([base, tiles]), math.hypot(rows, columns))


def released_layout(tokens: int) -> TokenLayout:
    """Where the released code believes the tokens to be: all of them on one grid, 24 wide, with D_max = 24 sqrt 2."""
    grid = TokenLayout.grid(math.ceil(tokens / RELEASED_SIDE), RELEASED_SIDE)
    return TokenLayout(grid.coords[:tokens], math.hypot(RELEASED_SIDE, RELEASED_SIDE))
