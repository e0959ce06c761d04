"""Where the tokens of a video with newline tokens (LLaVA-Video, LLaVA-OneVision) are.

Every frame is a grid of side x side tokens, with coordinates (t, x, y) and D_max = sqrt(2) * side as in
`TokenLayout.video`. Newline tokens, which all have the same embedding, stand after every row of every frame ("grid"),
after every frame ("frame"), after the last frame ("one_token") or nowhere ("no_token"), each one step to the right of
the token before it.
"""

from __future__ import annotations

from vlm_pruner.geometry.layout import TokenLayout

NEWLINE_POSITIONS = ("grid", "frame", "one_token", "no_token")
POOL_MODES = ("bilinear", "average", "max")  # how a frame's grid is halved before


def newline_run(frames: int, side: int, newlines: str) -> int:
    """Tokens that a newline ends each time; 0 where there are no newlines."""
    return {"grid": side, "frame": side**2, "one_token": frames * side**2, "no_token": 0}[newlines]


def video_layout(frames: int, side: int, newlines: str) -> TokenLayout:
    """The layout of a video; `newlines` is one of NEWLINE_POSITIONS."""
    grid, run = TokenLayout.video(frames, side, side), newline_run(frames, side, newlines)
    return grid.with_newlines(run) if run else grid
