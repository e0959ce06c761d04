"""Where the tokens of a video with newline tokens (LLaVA-Video, LLaVA-OneVision) are.

Every frame is a grid of side x side tokens, with coordinates (t, x, y) as in `TokenLayout.video`. Newline tokens, which
all have the same embedding, stand

    grid      after every row of every frame: at (t, side, y), one step to the right of the row's last token
    frame     after every frame: at (t, side, side - 1)
    one_token after the last frame: at (F - 1, side, side - 1)
    no_token  nowhere

D_max is that of a frame's grid, sqrt(2) * side, whatever the newlines.
"""

from __future__ import annotations

import torch

from vlm_pruner.geometry.layout import Lines, TokenLayout

NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


def video_layout(frames: int, side: int, newlines: str) -> TokenLayout:
    """The layout of a video; `newlines` is one of NEWLINE_POSITIONS."""
    grid = TokenLayout.video(frames, side, side)
    time, rows = torch.arange(frames, device="cpu"), torch.arange(side, device="cpu")
    if newlines == "grid":
        columns = torch.arange(side + 1, device="cpu")
        coords = torch.cartesian_prod(time, rows, columns)[:, [0, 2, 1]]
        return TokenLayout(coords.float(), grid.diagonal, Lines.of(frames * side, side))
    ends = {"frame": time, "one_token": time[-1:], "no_token": time[:0]}[newlines]
    corners = torch.stack([ends, torch.full_like(ends, side), torch.full_like(ends, side - 1)], dim=1).float()
    if newlines == "frame":
        each = grid.coords.reshape(frames, side * side, 3)
        coords = torch.cat([each, corners[:, None]], dim=1).flatten(0, 1)
        return TokenLayout(coords, grid.diagonal, Lines.of(frames, side * side))
    lines = Lines.of(1, len(grid)) if len(corners) else None
    return TokenLayout(torch.cat([grid.coords, corners]), grid.diagonal, lines)
