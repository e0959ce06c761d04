"""One comparison over several models: means, the lowest and highest model, and verdicts that hold for all of them.

Each result file of `vlm-pruner compare` gives one column of numbers per benchmark. Models may have been asked different
questions, so nothing is paired across them: a verdict counts if every model's own comparison gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from vlm_pruner.console import wrapped
from vlm_pruner.experiments.verdicts import REFERENCES, UNCLEAR
from vlm_pruner.report import table
from vlm_pruner.report.compare_table import AGAINST, MARKS, SHORT, WIDE, title
from vlm_pruner.report.html_data import read_document
from vlm_pruner.report.paper_results import TableError
from vlm_pruner.report.table import blocks

HEAD = ["method", "accuracy", *AGAINST]


@dataclass(frozen=True)
class Spread:
    """One number per model."""

    values: tuple[float, ...]

    def percent(self, sign: str = "") -> str:
        """Mean, lowest and highest, in percent or points."""
        mean, low, high = (100 * v for v in (fmean(self.values), min(self.values), max(self.values)))
        return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


@dataclass(frozen=True)
class Row:
    """One arm over all models. against: by reference, the difference and the verdict that all models agree on."""

    label: str
    budget: str
    accuracy: Spread
    kinds: dict[str, Spread]
    against: dict[str, tuple[Spread, str]]


@dataclass(frozen=True)
class Judged:
    """One model's cells on one benchmark. cells: by the arm's key. arms: label and budget by key."""

    model: str
    benchmark: str
    n: int
    cells: Mapping[str, Mapping[str, Any]]
    arms: Mapping[str, tuple[str, str]]


def read(paths: Iterable[str | Path]) -> list[Judged]:
    """The results of all files, or of folders that hold a results.json.

    Raises TableError for files of another kind, fewer than two results, or the same model and benchmark twice;
    FileNotFoundError or ValueError for a file that is missing or damaged.
    """
    found = [judged for path in paths for judged in _results(Path(path))]
    names = [f"{one.model} on {one.benchmark}" for one in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise TableError(f"{twice} is there twice; each result counts once: leave one of the files out")
    if len(found) < 2:
        raise TableError(f"{len(found)} result of vlm-pruner compare; a spread needs two models or more")
    return found


def rows(found: Sequence[Judged]) -> list[Row]:
    """A row for each arm that all models ran, in the first one's order."""
    first = found[0]
    keys = [key for key in first.cells if all(key in one.cells for one in found)]
    if not keys:
        raise TableError("the results share no arm: give compare the same --methods and --budget for each model")
    return [_row(key, found) for key in keys]


def left_out(found: Sequence[Judged]) -> list[str]:
    """Arms that only some models ran."""
    every = dict.fromkeys(key for one in found for key in one.cells)
    return [key for key in every if not all(key in one.cells for one in found)]


def terminal(found: Sequence[Judged]) -> str:
    """Accuracies and differences by budget, then accuracies by kind, then what the models are."""
    own = rows(found)
    kinds = list(own[0].kinds)
    whole = [(title(row.budget), _cells(row)) for row in own]
    parts = [(title(row.budget), [row.label, *(_range(row.kinds[kind]) for kind in kinds)]) for row in own]
    header = ["accuracy by kind", *(SHORT.get(kind, kind) for kind in kinds)]
    said = [wrapped(note, "  ") for note in notes(found)]
    return "\n\n".join([blocks(HEAD, whole, width=WIDE), blocks(header, parts, width=WIDE), "\n".join(said)])


def markdown(found: Sequence[Judged]) -> str:
    own = rows(found)
    kinds = list(own[0].kinds)
    whole = [[row.budget, *_cells(row)] for row in own]
    parts = [[row.budget, row.label, *(row.kinds[kind].percent() for kind in kinds)] for row in own]
    tables = [table.markdown(["budget", *HEAD], whole), table.markdown(["budget", "method", *kinds], parts)]
    return "\n\n".join([*tables, "\n".join(f"- {note}" for note in notes(found))])


FORMATS: dict[str, Callable[[Sequence[Judged]], str]] = {"terminal": terminal, "md": markdown}


def notes(found: Sequence[Judged]) -> list[str]:
    said = [f"{number}. {one.model} on {one.benchmark}, n = {one.n}" for number, one in enumerate(found, 1)]
    said += [
        "mean [lowest, highest] over these; accuracy in %, differences in points",
        "+ better, - worse by each one's own verdict; ~ not distinguishable, or they disagree",
    ]
    missing = left_out(found)
    return [*said, *([f"left out, since not all ran them: {', '.join(missing)}"] if missing else [])]


def _results(path: Path) -> list[Judged]:
    document, file = read_document(path)
    try:
        model, cells = document["model"]["path"], document["cells"]
        arms = {arm["key"]: (arm["label"], arm["budget"] or "") for arm in document["arms"]}
    except (KeyError, TypeError) as error:
        raise TableError(f"{file} is no result of vlm-pruner compare ({type(error).__name__}: {error})") from None
    names = dict.fromkeys(cell["benchmark"] for cell in cells)
    own = {name: {cell["arm"]: cell for cell in cells if cell["benchmark"] == name} for name in names}
    return [Judged(str(model), name, next(iter(of.values()))["n"], of, arms) for name, of in own.items()]


def _row(key: str, found: Sequence[Judged]) -> Row:
    label, budget = found[0].arms[key]
    cells = [one.cells[key] for one in found]
    kinds = [kind for kind in cells[0]["kinds"] if all(kind in cell["kinds"] for cell in cells)]
    names = [name for name in REFERENCES if all(name in cell["against"] for cell in cells)]
    return Row(
        label,
        budget,
        Spread(tuple(cell["accuracy"]["mean"] for cell in cells)),
        {kind: Spread(tuple(cell["kinds"][kind]["mean"] for cell in cells)) for kind in kinds},
        {name: _agreed([cell["against"][name] for cell in cells]) for name in names},
    )


def _agreed(differences: Sequence[Mapping[str, Any]]) -> tuple[Spread, str]:
    verdicts = {difference["verdict"] for difference in differences}
    verdict = verdicts.pop() if len(verdicts) == 1 else UNCLEAR
    return Spread(tuple(difference["mean"] for difference in differences)), verdict


def _cells(row: Row) -> list[str]:
    against = [row.against.get(name) for name in REFERENCES]
    differences = ["" if one is None else f"{one[0].percent('+')}{MARKS[one[1]]}" for one in against]
    return [row.label, row.accuracy.percent(), *differences]


def _range(spread: Spread) -> str:
    low, high = (f"{100 * v:.0f}" for v in (min(spread.values), max(spread.values)))
    return low if low == high else f"{low}-{high}"
