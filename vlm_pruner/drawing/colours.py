"""The palette of all pictures and charts: one ramp for the order of selection, one set of line colours, one ink.

The ramp is viridis (Smith, van der Walt and Firing, CC0) from yellow, the first selected, to violet, the last. Its
lightness falls all the way, so it reads in grey and without colour vision. Its darkest tenth, invisible on black
patches, is left out. The lines' colours are Okabe and Ito's.
"""

from __future__ import annotations

import numpy as np

BACKGROUND, INK, GREY, FAINT, PADDING = "#ffffff", "#1f2430", "#6b7280", "#d7dae0", "#dfe2e8"
RIGHT, WRONG = "#15803d", "#b91c1c"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")

_VIRIDIS = (
    (253, 231, 37), (181, 222, 43), (110, 206, 88), (53, 183, 121), (31, 158, 137),
    (38, 130, 142), (49, 104, 142), (62, 73, 137), (72, 40, 120),
)  # fmt: skip


def ramp(share: float) -> str:
    """Colour "#rrggbb" of a share of the order, from 0 (first) to 1 (last)."""
    places = np.linspace(0, 1, len(_VIRIDIS))
    channels = (np.interp(share, places, channel) for channel in zip(*_VIRIDIS, strict=True))
    return "#" + "".join(f"{round(channel):02x}" for channel in channels)


def order_colour(index: int, count: int) -> str:
    """Colour of the `index`-th (from 0) of `count` selected tokens."""
    return ramp(index / max(count - 1, 1))


def rgb(colour: str) -> tuple[int, int, int]:
    """Channels, 0 to 255, of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
