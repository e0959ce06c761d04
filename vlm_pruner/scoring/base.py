"""The result of every scorer, and its presentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Upload = Callable[[], bytes]


class ScoreError(ValueError):
    """The input must not be scored; the message names the file or item and the remedy."""


class Unscored(ScoreError):
    """Only the benchmark's server has the truth; `uploads` writes the file that it accepts."""

    def __init__(self, message: str, uploads: dict[str, Upload]) -> None:
        super().__init__(message)
        self.uploads = uploads


@dataclass(frozen=True)
class Headline:
    """The number that the paper's table prints for a benchmark, in the table's unit."""

    name: str
    value: float
    stderr: float | None


@dataclass(frozen=True)
class Coverage:
    """How the replies of an answer file cover a benchmark's questions.

    questions: all. missing: those without a reply. replies: lines of the answer file. repeated: replies to a question
    that has another one. unknown: replies to no question. failed: items whose generation failed. strayed: replies whose
    prompt lacks the question that the benchmark has under their id.
    """

    questions: int
    missing: int
    replies: int
    repeated: int = 0
    unknown: int = 0
    failed: int = 0
    strayed: int = 0

    def notes(self, missing: str, repeated: str = "the last one counts") -> tuple[str, ...]:
        """Caveats for readers of the score. missing, repeated: how the scorer treats such questions."""
        noted = (
            (self.failed, f"of {self.replies} items failed while generating and count as empty replies"),
            (self.missing, f"of {self.questions} questions have no reply: {missing}"),
            (self.repeated, f"of {self.replies} replies answer a question once more: {repeated}"),
            (self.unknown, f"of {self.replies} replies answer no question of the benchmark: ignored"),
            (self.strayed, f"of {self.replies} prompts do not hold the question that the benchmark has under their id:"
             " are answers and data of the same release?"),
        )  # fmt: skip
        return tuple(f"{count} {text}" for count, text in noted if count)


@dataclass(frozen=True)
class Table:
    """Rows for display; numbers are already on the printed scale."""

    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]

    def render(self) -> str:
        cells = [self.columns, *(tuple(_cell(value) for value in row) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells.insert(1, tuple("-" * width for width in widths))
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
        return "\n".join(line.rstrip() for line in lines)


@dataclass(frozen=True)
class Score:
    """One benchmark scored.

    ``metrics`` has the names and scales of the official scorer; ``stderr`` mirrors the part of it that has a standard
    error, on the same scale. ``n`` counts scored items, ``coverage`` missing, repeated, left-over and failed ones.
    ``items`` holds the parsed form of each reply, ``uploads`` functions that write a server's files, by name.
    """

    benchmark: str
    metrics: dict[str, Any]
    stderr: dict[str, Any]
    n: int
    headline: Headline
    table: Table
    coverage: Coverage
    notes: tuple[str, ...] = ()
    items: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[str, Upload] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything except items and uploads, ready for ``json.dump``."""
        return {
            "benchmark": self.benchmark,
            "headline": asdict(self.headline),
            "metrics": self.metrics,
            "stderr": self.stderr,
            "n": self.n,
            "failed": self.coverage.failed,
            "coverage": asdict(self.coverage),
            "notes": list(self.notes),
        }

    def render(self) -> str:
        error = "" if self.headline.stderr is None else f" +- {self.headline.stderr:.2f} (standard error)"
        lines = [
            self.table.render(),
            "",
            f"{self.benchmark}: {self.headline.name} {self.headline.value:.2f}{error}, n = {self.n}",
        ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
