"""Writes results line by line, so that a killed run resumes where it stopped."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vlm_pruner.linefile import LineFile


class Journal(LineFile):
    """An append-only file of records whose first line, the header, describes the run.

    A file with another header is set aside beside the new one: nothing computed is deleted.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        super().__init__(path, header, other_run="set aside")

    @property
    def records(self) -> list[dict[str, Any]]:
        """Records of earlier runs with the same header, and those written since."""
        return self.lines

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.append(records)


def say_how_it_starts(journal: Journal) -> None:
    if journal.set_aside:
        print(f"an unfinished run with other settings was set aside as {journal.set_aside}", file=sys.stderr)
    if journal.records:
        print(f"going on after {len(journal.records)} answers of a run that was stopped", file=sys.stderr)
