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

from vlm_pruner.geometry.layout import TokenLayout

NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")


def newline_run(frames: int, side: int, newlines: str) -> int:
    """Tokens that a newline ends each time; 0 where there are no newlines."""
    return {"grid": side, "frame": side**2, "one_token": frames * side**2, "no_token": 0}[newlines]


def video_layout(frames: int, side: int, newlines: str) -> TokenLayout:
    """The layout of a video; `newlines` is one of NEWLINE_POSITIONS."""
    grid, run = TokenLayout.video(frames, side, side), newline_run(frames, side, newlines)
    return grid.with_newlines(run) if run else grid
