"""Charts: matplotlib in the style of all other pictures, imported only when a chart is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from vlm_pruner.drawing.colours import BACKGROUND, FAINT, GREY, INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 8.5  # inches; a README shows 100 pixels of each
_STYLE: dict[str, Any] = {
    "figure.facecolor": BACKGROUND, "figure.constrained_layout.use": True, "savefig.dpi": 200,
    "figure.constrained_layout.w_pad": 0.1, "figure.constrained_layout.h_pad": 0.08,
    "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK,
    "figure.titlesize": 11, "axes.titlesize": 9, "axes.titlelocation": "left",
    "axes.edgecolor": FAINT, "axes.labelcolor": GREY, "xtick.color": GREY, "ytick.color": GREY, "xtick.labelsize": 8,
    "axes.spines.left": False, "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "legend.frameon": False,
    # The same bytes every time: text as outlines, ids that follow from what is drawn.
    "svg.fonttype": "path", "svg.hashsalt": "vlm-pruner",
}  # fmt: skip
_NO_DATES = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}
P = ParamSpec("P")


class NotInstalledError(ValueError):
    """matplotlib is missing; the message names the extra that installs it."""


@contextmanager
def _style() -> Iterator[None]:
    try:
        from matplotlib import style
    except ImportError:
        raise NotInstalledError("charts need matplotlib: pip install 'vlm-pruner[figures]'") from None
    with style.context(["default", _STYLE]):  # ignores the user's matplotlibrc
        yield


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Decorates a function that draws a chart. Raises NotInstalledError where matplotlib is missing."""

    @wraps(draw)
    def drawn(*args: P.args, **settings: P.kwargs) -> Figure:
        with _style():
            return draw(*args, **settings)

    return drawn


def save_chart(figure: Figure, *paths: Path) -> list[Path]:
    """Writes the chart as PNG or SVG, by each name's ending, and makes missing folders."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _style():
            figure.savefig(path, metadata=_NO_DATES[path.suffix])
    return list(paths)
