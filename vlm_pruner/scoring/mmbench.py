"""MMBench: multiple choice, repeated with rotated options; exact letters, and VLMEvalKit's lenient matching."""

from __future__ import annotations

import csv
import io
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table, Unscored
from vlm_pruner.scoring.choices import infer_choice
from vlm_pruner.scoring.needs import File, Needs
from vlm_pruner.scoring.records import id_of, read_answers
from vlm_pruner.scoring.release import check_prompts
from vlm_pruner.scoring.stats import binomial_stderr, ratio

Row = dict[str, str]

TABLE = File("mmbench_dev_20230712.tsv", "MMBench (mmbench_dev_20230712.tsv)", 4377, others=("*.tsv",))
NEEDS = Needs(folder="mmbench", script="mmbench", questions=TABLE)

ROTATION = 1_000_000  # index + k * ROTATION is the same question with options rotated k times
LETTERS = ("A", "B", "C", "D")
UPLOAD = "mmbench_upload.xlsx"
DROPPED = ("hint", "category", "source", "image", "comment", "l2-category")  # columns that the upload omits
ABBREVIATIONS = {
    "coarse_perception": "CP",
    "finegrained_perception (instance-level)": "FP-S",
    "finegrained_perception (cross-instance)": "FP-C",
    "logic_reasoning": "LR",
    "relation_reasoning": "RR",
    "attribute_reasoning": "AR",
}
# Values that table readers treat as empty cells.
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """One row of the benchmark with its reply, and the letter that lenient matching extracts from it.

    exact, lenient: whether the reply itself, or that letter, is the answer.
    """

    row: Row
    index: int
    reply: str | None
    extracted: str | None
    exact: bool
    lenient: bool


def read_table(path: str | Path) -> list[Row]:
    """Reads a benchmark table; cells that mean "no value" become empty. The test split has no answers."""
    csv.field_size_limit(sys.maxsize)  # pictures are base64 cells
    try:
        with Path(path).expanduser().open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
    except UnicodeDecodeError as error:
        raise ScoreError(f"{path} is not UTF-8 text ({error.reason}); convert it, for example with iconv") from None
    except (OSError, csv.Error) as error:
        raise ScoreError(f"{path} cannot be read as a table: {error}") from None
    if not rows or not {"index", "question"} <= rows[0].keys():
        raise ScoreError(f"{path} is not MMBench's table: it needs the columns index, question, A to D")
    return [{name: "" if (cell or "") in MISSING else str(cell) for name, cell in row.items() if name} for row in rows]


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Scores against ``mmbench_dev_20230712.tsv``; rows without a reply are wrong.

    Raises Unscored, with the sheet for MMBench's server, for a table without answers.
    """
    path = TABLE.find(data)
    rows = read_table(path)
    for number, row in enumerate(rows, start=1):
        if not row["index"].isdecimal():
            raise ScoreError(f"{path}, row {number}: index {row['index']!r} is not a whole number")
    indices = {row["index"]: row["question"] for row in rows}
    replies, coverage = read_answers(answers, allow_errors).join(indices, id_of, path)
    coverage = check_prompts(replies.items(), indices.__getitem__, coverage, path)
    items = [_item(row, replies[row["index"]].reply if row["index"] in replies else None) for row in rows]
    _check_answers(rows, path, items)
    return _summary(items, coverage)


def _check_answers(rows: list[Row], path: Path, items: list[Item]) -> None:
    without = [row["index"] for row in rows if not row.get("answer")]
    if len(without) == len(rows):
        raise Unscored(
            f"{path} has no answers, as MMBench's test split: only its server can score it; --upload DIR writes the"
            " sheet that the server takes",
            {UPLOAD: partial(_upload, items)},
        )
    if without:
        raise ScoreError(f"{path}: {len(without)} of {len(rows)} rows have no answer, first index {without[0]}")


def _item(row: Row, reply: str | None) -> Item:
    choices = {letter: row[letter] for letter in LETTERS if row.get(letter)}
    # Lenient matching reads replies back from a spreadsheet, where an empty cell is the text "nan".
    in_sheet = "nan" if reply is None or reply in MISSING else reply
    letter, answer = infer_choice(in_sheet, choices), row.get("answer")
    return Item(row, int(row["index"]), reply, letter, reply == answer, letter == answer)


def _summary(items: list[Item], coverage: Coverage) -> Score:
    first = [item for item in items if item.index < ROTATION]
    exact, exact_first = _share([item.exact for item in items]), _share([item.exact for item in first])
    per_category = {name: _share([item.exact for item in part]) for name, part in _by(items, "category").items()}
    whole_groups = _circular(items)
    circular = _report(first, lambda item: whole_groups[item.index])
    metrics = {
        "rows": len(items),
        "exact_letter_accuracy": exact,
        "exact_letter_accuracy_first_pass_rows": exact_first,
        "exact_letter_accuracy_per_category": per_category,
        "vlmevalkit_exact_matching": {
            "circular": circular,
            "vanilla_all_rows": _report(items, lambda item: item.lenient),
            "vanilla_first_pass_rows": _report(first, lambda item: item.lenient),
            "circular_groups": len(first),
        },
    }
    errors = {
        "exact_letter_accuracy": binomial_stderr(exact, len(items)),
        "exact_letter_accuracy_first_pass_rows": binomial_stderr(exact_first, len(first)),
        "circular": binomial_stderr(circular["Overall"], len(first)),
    }
    return Score(
        benchmark="mmbench",
        metrics=metrics,
        stderr=errors,
        n=len(items),
        headline=Headline("circular accuracy", 100 * circular["Overall"], 100 * errors["circular"]),
        table=_table(items, first, metrics, errors),
        coverage=coverage,
        notes=coverage.notes("they count as wrong"),
        items=[
            {"index": item.index, "reply": item.reply, "extracted": item.extracted, "exact": item.exact,
             "lenient": item.lenient, "circular": whole_groups[item.index % ROTATION]} for item in items
        ],
        uploads={UPLOAD: partial(_upload, items)},
    )  # fmt: skip


def _share(values: Sequence[bool]) -> float:
    return ratio(sum(values), len(values))


def _by(items: Sequence[Item], column: str) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item.row.get(column):
            groups[item.row[column]].append(item)
    return {name: groups[name] for name in sorted(groups)}


def _circular(items: Sequence[Item]) -> dict[int, bool]:
    """Question -> whether all of its rotations are right."""
    groups: dict[int, bool] = {}
    for item in items:
        question = item.index % ROTATION
        groups[question] = groups.get(question, True) and item.lenient
    return groups


def _report(items: Sequence[Item], right: Callable[[Item], bool]) -> dict[str, Any]:
    """Overall, per level-2 category (abbreviated) and per category."""
    report: dict[str, Any] = {"split": items[0].row.get("split", "none") if items else "none"}
    report["Overall"] = _share([right(item) for item in items])
    for column in ("l2-category", "category"):
        for name, part in _by(items, column).items():
            report[ABBREVIATIONS.get(name, name)] = _share([right(item) for item in part])
    return report


def _table(items: list[Item], first: list[Item], metrics: dict[str, Any], errors: dict[str, float]) -> Table:
    circular = metrics["vlmevalkit_exact_matching"]["circular"]["Overall"]
    kinds = (
        ("circular (lenient, all rotations)", first, circular, "circular"),
        ("exact letter, all rows", items, metrics["exact_letter_accuracy"], "exact_letter_accuracy"),
        ("exact letter, first pass", first, metrics["exact_letter_accuracy_first_pass_rows"],
         "exact_letter_accuracy_first_pass_rows"),
    )  # fmt: skip
    rows = tuple((label, len(part), 100 * share, 100 * errors[name]) for label, part, share, name in kinds)
    return Table(("accuracy", "n", "%", "s.e."), rows)


def _upload(items: Sequence[Item]) -> bytes:
    """The sheet for MMBench's server: the table without its dropped columns, with predictions after the options."""
    columns = [name for name in items[0].row if name not in DROPPED]
    columns.insert(6, "prediction")
    return _workbook([columns, *([_cell(name, item) for name in columns] for item in items)])


def _workbook(rows: Iterable[Sequence[str | int | None]]) -> bytes:
    """An .xlsx file with one sheet. Text stays text, also where it looks like a formula or an error."""
    try:
        from openpyxl import Workbook
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise ScoreError(
            "MMBench's sheet is written by openpyxl, which is not installed: pip install 'vlm-pruner[mmbench]'"
        ) from None
    book = Workbook()
    sheet = book.active
    for number, row in enumerate(rows, start=1):
        for column, value in enumerate(row, start=1):
            cell = sheet.cell(number, column)
            if isinstance(value, str):
                text = ILLEGAL_CHARACTERS_RE.sub("", value).encode("utf-8", "ignore").decode()
                cell.value, cell.data_type = text, "s"
            else:
                cell.value = value
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def _cell(name: str, item: Item) -> str | int | None:
    if name == "prediction":
        return item.reply or None
    if name == "index":
        return item.index
    return item.row[name] or None
