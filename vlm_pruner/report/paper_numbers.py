"""The paper's main tables, shipped as `paper_tables.csv` exactly as printed, and their misprints.

A score is on the paper's scale: MME is a sum of at most 2800, OCRBench points of 1000, all others are percent.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

from vlm_pruner.console import DENSE

SOURCE = "arXiv 2512.02700v3"


@dataclass(frozen=True)
class Column:
    """A benchmark in the tables: its name there, a header for narrow tables, and the decimals that are printed."""

    name: str
    header: str
    decimals: int


# Benchmarks by the names that `vlm-pruner score` knows, in the paper's order.
COLUMNS = {
    "gqa": Column("GQA", "GQA", 2),
    "mmbench": Column("MMBench", "MMB", 1),
    "mme": Column("MME", "MME", 0),
    "pope": Column("POPE", "POPE", 1),
    "scienceqa": Column("ScienceQA", "SQA", 2),
    "textvqa": Column("TextVQA", "TextV", 2),
    "ocrbench": Column("OCRBench", "OCR", 0),
    "seed": Column("SEED-I", "SEED", 2),
    "okvqa": Column("OKVQA", "OKVQA", 2),
}

# Misprinted cells by (model, method, benchmark): the printed number and the one that is meant.
MISPRINTS = {("LLaVA-1.5-13B", DENSE, "mme"): (2826.0, 1826.0)}


@dataclass(frozen=True)
class PaperRow:
    """One printed row. budget: as printed. kept: share of the visual tokens in percent. average: None: not printed."""

    model: str
    budget: str
    kept: float
    method: str
    scores: Mapping[str, float] = field(default_factory=dict)
    average: float | None = None

    def meant(self) -> dict[str, float]:
        """The scores with misprints corrected."""
        return {
            name: MISPRINTS.get((self.model, self.method, name), (0.0, value))[1] for name, value in self.scores.items()
        }


@cache
def paper_rows() -> tuple[PaperRow, ...]:
    """All rows in the paper's order, a model's dense row first."""
    records = shipped("paper_tables.csv")
    tokens = {r["model"]: _count(r["visual_tokens"]) for r in records if r["method"] == DENSE}
    return tuple(_row(record, tokens.get(record["model"])) for record in records)


def shipped(name: str) -> list[dict[str, str]]:
    """The rows of a CSV file in this folder, without its comments."""
    text = files("vlm_pruner.report").joinpath(name).read_text(encoding="utf-8")
    return list(csv.DictReader(line for line in text.splitlines() if not line.startswith("#")))


def models() -> list[str]:
    """The paper's models, in its order."""
    return list(dict.fromkeys(row.model for row in paper_rows()))


def visual_tokens(model: str) -> int | None:
    """The most visual tokens a picture has before pruning; None if the paper does not say."""
    dense = dense_row(model)
    return None if dense is None else _count(dense.budget)


def tokens_vary(model: str) -> bool:
    """Whether the number of a picture's visual tokens depends on the picture."""
    dense = dense_row(model)
    return dense is not None and "max" in dense.budget


def dense_row(model: str) -> PaperRow | None:
    return next((row for row in paper_rows() if row.model == model and row.method == DENSE), None)


def average(scores: Mapping[str, float], bounds: Mapping[str, float], names: Collection[str] = COLUMNS) -> float | None:
    """Plain mean over the benchmarks of score / upper bound, in %; None unless both have all of them."""
    if any(name not in scores or not bounds.get(name) for name in names):
        return None
    return 100 * sum(scores[name] / bounds[name] for name in names) / len(names)


@dataclass(frozen=True)
class Recomputed:
    """A row's Avg: as printed, from the printed numbers, and with misprints corrected."""

    row: PaperRow
    printed: float
    from_printed: float
    meant: float

    @property
    def parts(self) -> bool:
        """Whether the printed Avg is not the mean of the printed numbers, beyond rounding to two decimals."""
        return abs(self.printed - self.from_printed) > 0.005 + 1e-9


def recompute(row: PaperRow) -> Recomputed | None:
    """None for rows that the paper prints without the nine scores, or without an Avg."""
    dense = dense_row(row.model)
    if dense is None or row.average is None:
        return None
    printed = average(row.scores, dense.scores)
    meant = average(row.meant(), dense.meant())
    return None if printed is None or meant is None else Recomputed(row, row.average, printed, meant)


def _row(record: Mapping[str, str], tokens: int | None) -> PaperRow:
    return PaperRow(
        model=record["model"],
        budget=record["visual_tokens"],
        kept=100.0 if record["method"] == DENSE else _kept(record["visual_tokens"], tokens),
        method=record["method"],
        scores={name: float(record[column.name]) for name, column in COLUMNS.items() if record[column.name]},
        average=float(record["avg"]) if record["avg"] else None,
    )


def _kept(budget: str, tokens: int | None) -> float:
    """'64' of 576, '11.1 %' or '88.9 % removed' -> 11.1; one decimal, so that all notations agree."""
    if "%" not in budget:
        assert tokens is not None, f"a budget of {budget} tokens, and no dense row that says of how many"
        return round(100 * _count(budget) / tokens, 1)
    percent = float(budget.split("%")[0])
    return round(100 - percent if "removed" in budget else percent, 1)


def _count(budget: str) -> int:
    return int(budget.split()[0])
