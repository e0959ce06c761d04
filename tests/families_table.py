"""Runs the families' tests and writes which family passed what: `python -m tests.families_table [docs/families.md]`.

A cell counts the tests of that column that passed; where all were skipped it gives their reason. Fails if a test does.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import pytest

COLUMN_NAMES = ["single", "multi-image", "video", "batch", "dialogue"]
COLUMN_NAMES += ["eager/SDPA", "keep-all identity", "drop = mask", "beam", "static cache"]
HEADER = "<!-- below: written by `python -m tests.families_table` -->"


class Collector:
    """Notes every test's outcome under (family, column)."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        self.reasons: dict[tuple[str, str], str] = {}
        self._cells: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            mark = item.get_closest_marker("column")
            family = getattr(item, "callspec", None) and item.callspec.params.get("family")
            if mark and family:
                self._cells[item.nodeid] = (family.name, mark.args[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        cell = self._cells.get(report.nodeid)
        if cell is None or (report.when != "call" and report.passed):
            return
        self.outcomes[cell][report.outcome] += 1
        if report.skipped:
            self.reasons[cell] = str(report.longrepr[2]).removeprefix("Skipped: ")

    def cell(self, family: str, column: str) -> str:
        counts = self.outcomes[family, column]
        if counts["failed"]:
            return f"FAIL ({counts['failed']})"
        if counts["passed"]:
            return f"pass ({counts['passed']})"
        return f"n/a: {self.reasons[family, column]}" if counts["skipped"] else "not tested"


def table(found: Collector, families: list[str]) -> str:
    rows = [["family", *COLUMN_NAMES], ["---"] * (1 + len(COLUMN_NAMES))]
    rows += [[f"`{family}`", *(found.cell(family, column) for column in COLUMN_NAMES)] for family in families]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    from tests.families import FAMILIES

    found = Collector()
    tests = sorted(str(path) for path in Path(__file__).parent.glob("test_families_*.py"))
    status = pytest.main(["-q", "--no-header", "-p", "no:cacheprovider", *tests], plugins=[found])
    rows = table(found, [family.name for family in FAMILIES])
    print(rows)
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        said = f"`python -m tests.families_table docs/families.md`, commit {commit}, {datetime.date.today()}, CPU."
        page.write_text(f"{page.read_text().split(HEADER)[0]}{HEADER}\n\n{said}\n\n{rows}\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
