"""Charts of result files: accuracy by budget, the parts of an answer's time, break-even, ablations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_pruner.drawing.chart import WIDTH, NotInstalledError, save_chart, styled
from vlm_pruner.drawing.colours import FAINT, GREY, INK, LINES, RIGHT, WRONG
from vlm_pruner.experiments.arms import BLIND, DENSE
from vlm_pruner.report.speed_table import case_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results = Mapping[str, Any]
Lines = Mapping[str, Sequence[Results]]
COLUMNS = 4
ALONE: dict[str, Any] = {DENSE: (0, (4, 3)), BLIND: (0, (1, 2))}  # arms without a budget, and their lines' dashes
PARTS = {"vision tower": "#9aa3b2", "choosing": LINES[4], "prefill": LINES[0], "later tokens": LINES[5]}


def write_if_installed(path: Path, draw: Callable[[Results], Figure], results: Results) -> list[Path]:
    """The chart's path once it is written; none, and a line on standard error, where matplotlib is not installed."""
    try:
        return save_chart(draw(results), path)
    except NotInstalledError as error:
        print(f"{path.name} was not drawn: {error}", file=sys.stderr)
        return []


@styled
def accuracy(results: Results) -> Figure:
    """Accuracy by budget, a panel per method and benchmark. results: of `compare`. Raises ValueError without cells."""
    from matplotlib.figure import Figure

    if not results["cells"]:
        raise ValueError("the results hold no cell; run the comparison with at least one arm")
    arms = {arm["key"]: arm for arm in results["arms"]}
    cells = [{**cell, "arm": arms[cell["arm"]]} for cell in results["cells"]]
    benchmarks = {cell["benchmark"]: [c for c in cells if c["benchmark"] == cell["benchmark"]] for cell in cells}
    rows = [max(1, -(-len(_by_method(own)) // COLUMNS)) for own in benchmarks.values()]
    heights = [1.55 * count + 0.75 for count in rows]
    figure = Figure((WIDTH, sum(heights)))
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (name, own), count in zip(parts, benchmarks.items(), rows, strict=True):
        axes = part.subplots(count, COLUMNS, sharex=True, sharey=True, squeeze=False)
        _panels(part, axes, _by_method(own), {_name(cell): cell for cell in own if _name(cell) in ALONE})
        part.suptitle(f"{name}: accuracy in %, {own[0]['n']} questions", x=0.01, ha="left")
    return figure


def _by_method(cells: Sequence[Results]) -> dict[str, list[Results]]:
    lines: dict[str, list[Results]] = {}
    for cell in cells:
        if _name(cell) not in ALONE:
            lines.setdefault(cell["arm"]["label"], []).append(cell)
    ours_first = sorted(lines, key=lambda label: label != "VLM-Pruner")
    return {label: sorted(lines[label], key=tokens) for label in ours_first}


def _name(cell: Results) -> str:
    """The arm's name, which results of older versions state in its key alone."""
    return str(cell["arm"]["key"]).partition("@")[0]


def tokens(cell: Results) -> float:
    """The budget in visual tokens; of a budget for the whole decoder, the mean over its layers."""
    arm = cell["arm"]
    whole = arm["accounting"] is not None and str(arm["budget"]).startswith(("avg", "flops"))
    return float(arm["accounting"]["average_tokens"] if whole else arm["budget_tokens"])


def _panels(part: Any, axes: Any, lines: Lines, alone: Results) -> None:
    _log_ticks(axes.flat[0], [tokens(cell) for line in lines.values() for cell in line])
    for number, panel in enumerate(axes.flat):
        panel.tick_params(labelbottom=number >= len(lines) - COLUMNS)
        panel.set_axis_on() if number < len(lines) else panel.set_axis_off()
    for panel, label in zip(axes.flat, lines, strict=False):
        for other in lines:
            panel.plot(*_means(lines[other]), color=FAINT, linewidth=1)
        _method(panel, lines[label])
        for name, cell in alone.items():
            panel.axhline(100 * cell["accuracy"]["mean"], color=LINES[1], linewidth=1, linestyle=ALONE[name])
        panel.set_title(label)
    part.supxlabel("visual tokens kept per picture", fontsize=9, color=GREY)
    part.legend(handles=_key(alone), loc="upper right", ncols=5, fontsize=8, handlelength=1.6, columnspacing=1.2)


def _log_ticks(panel: Axes, values: Sequence[float]) -> None:
    """A logarithmic x axis whose labels are the values themselves, except where labels would touch."""
    from matplotlib.ticker import NullLocator

    named: list[float] = []
    for value in sorted(values, reverse=True):
        if not named or value < 0.8 * named[-1]:
            named.append(value)
    margin = max(max(values) / min(values), 2.0) ** 0.06  # a single value has room at both sides
    panel.set_xscale("log")
    panel.set_xlim(min(values) / margin, max(values) * margin)
    panel.set_xticks(named, [f"{value:g}" for value in named])
    panel.xaxis.set_minor_locator(NullLocator())


def _means(line: Sequence[Results]) -> tuple[list[float], list[float]]:
    return [tokens(cell) for cell in line], [100 * cell["accuracy"]["mean"] for cell in line]


def _method(panel: Axes, line: Sequence[Results]) -> None:
    """A method's line with its 95 % intervals; a hollow dot is worse than dense."""
    at, means = _means(line)
    low, high = ([100 * cell["accuracy"][end] for cell in line] for end in ("low", "high"))
    panel.fill_between(at, low, high, color=LINES[0], alpha=0.2, linewidth=0)
    panel.vlines(at, low, high, color=LINES[0], linewidth=0.8)
    panel.plot(at, means, color=LINES[0], linewidth=1.8)
    for cell, x, y in zip(line, at, means, strict=True):
        worse = cell["against"].get("dense", {}).get("verdict") == "worse"
        panel.plot(x, y, "o", color=LINES[0], markerfacecolor="white" if worse else LINES[0], markersize=4.5)


def _key(alone: Iterable[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    dot: dict[str, Any] = {"color": LINES[0], "marker": "o", "markersize": 4.5}
    handles = [
        Line2D([], [], **dot, label="method, 95 % interval"),
        Line2D([], [], **dot, markerfacecolor="white", label="worse than dense"),
        Line2D([], [], color=FAINT, label="other methods"),
    ]
    return handles + [Line2D([], [], color=LINES[1], linestyle=ALONE[name], label=name) for name in alone]


def parts(figures: Results) -> dict[str, float]:
    """Median seconds of the parts of an answer; choosing is taken out of the prefill that it belongs to."""
    median = {name: float(figure["median"]) for name, figure in figures.items()}
    choosing = median.get("selection", 0.0)
    return {
        "vision tower": median.get("vision", 0.0),
        "choosing": choosing,
        "prefill": median["prefill"] - choosing,
        "later tokens": median["end_to_end"] - median["first_token"],
    }


@styled
def speed(results: Results) -> Figure:
    """The parts of each arm's time, a panel per case, each to its own scale, and break-even. results: of `bench`."""
    from matplotlib.figure import Figure

    cases, pays = results["cases"], results["break_even"]
    heights = [0.3 * len(case["arms"]) + 0.65 for case in cases] + ([3.2] if pays else [])
    figure = Figure((WIDTH, sum(heights)))
    axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, case in zip(axes, cases, strict=False):
        _bars(panel, case)
    if pays:
        _break_even(axes[-1], pays)
    axes[len(cases) - 1].legend(ncols=len(PARTS), loc="upper left", bbox_to_anchor=(0, -0.02), handlelength=1)
    return figure


def _bars(panel: Axes, case: Results) -> None:
    """One bar per arm; negative parts count as none."""
    for row, arm in enumerate(case["arms"]):
        left = 0.0
        for name, seconds in parts(arm["figures"]).items():
            width = 1000 * max(seconds, 0.0)
            panel.barh(row, width, 0.7, left, color=PARTS[name], label=name if row == 0 else None)
            left += width
        whole = arm["figures"]["end_to_end"]
        times = f", {whole['ratio']['value']:.2f} × as fast" if whole.get("ratio") else ""
        panel.text(left, row, f"  {1000 * whole['median']:.0f} ms{times}", va="center", color=GREY)
    panel.set_yticks(range(len(case["arms"])), [arm["key"] for arm in case["arms"]], color=INK)
    panel.set_xticks([])
    panel.margins(x=0.22, y=0.02)
    panel.set_xlim(left=0)
    panel.invert_yaxis()
    panel.grid(False)
    panel.spines["bottom"].set_visible(False)
    panel.set_title(case_title(case), fontsize=10)


def _break_even(panel: Axes, entries: Sequence[Results]) -> None:
    """Speed-up of a pruned prefill by the number of visual tokens before pruning."""
    for entry, colour in zip(entries, LINES * len(entries), strict=False):
        at = [point["visual"] for point in entry["points"]]
        value, low, high = ([p["ratio"][end] for p in entry["points"]] for end in ("value", "low", "high"))
        label = f"{entry['name']}, {100 * entry['share']:.0f} % kept, batch {entry['batch']}"
        panel.plot(at, value, "o-", color=colour, markersize=4.5, label=label)
        panel.vlines(at, low, high, color=colour, linewidth=1)
    panel.axhline(1, color=GREY, linewidth=1.2, linestyle="--", label="no gain")
    _log_ticks(panel, [point["visual"] for entry in entries for point in entry["points"]])
    panel.set_xlabel("visual tokens before pruning")
    panel.set_title(
        "Break-even: prefill time dense / pruned (95 % intervals of medians); above 1 pruning wins", fontsize=10
    )
    panel.legend(loc="upper left")


@styled
def ablation(results: Results) -> Figure:
    """Each variation's accuracy minus the default's, and the paper's finding. results: of `ablate`."""
    from matplotlib.figure import Figure

    rows = results["rows"]
    if not rows:
        raise ValueError("the results hold no variation of the method; run `vlm-pruner ablate` with at least one")
    figure = Figure((WIDTH, 0.235 * len(rows) + 0.9))
    panel = figure.subplots()
    for height, row in enumerate(rows):
        mean, low, high = (100 * row["difference"][end] for end in ("mean", "low", "high"))
        # Not by colour alone: up and down, too.
        colour, mark = (GREY, "o") if low <= 0 <= high else (RIGHT, "^") if mean > 0 else (WRONG, "v")
        panel.hlines(height, low, high, color=colour, linewidth=1.6)
        panel.plot(mean, height, mark, color=colour, markersize=6)
        said = row["paper"]["says"]
        panel.text(1.02, height, "" if said == "nothing" else f"paper: {said}", transform=panel.get_yaxis_transform(),
                   va="center_baseline", color=GREY)  # fmt: skip
    panel.axvline(0, color=GREY, linewidth=1, zorder=1)
    panel.set_yticks(range(len(rows)), [row["change"] for row in rows], color=INK)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.grid(False, axis="y")
    panel.set_xlabel("accuracy minus the default's, in points; 95 % intervals")
    figure.suptitle(
        f"VLM-Pruner changed in one place: {results['config']['budget']} visual tokens, {results['n']} questions",
        x=0.01, ha="left",
    )  # fmt: skip
    return figure
