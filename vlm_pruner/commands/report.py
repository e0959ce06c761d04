"""`vlm-pruner report`: result files as one HTML page that works offline."""

from __future__ import annotations

import argparse
import json
import sys
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

EXAMPLES = """examples:
  vlm-pruner report results/compare -o report.html
  vlm-pruner report results/compare results/bench/results.json pope.json -o report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", nargs="+", type=Path, metavar="RESULTS",
        help="result files of compare, bench or score, or folders that hold their results.json",
    )  # fmt: skip
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="(%(default)s)")
    parser.add_argument("--title", default="VLM-Pruner: what was kept, and what it cost", help="the page's heading")


def run(args: argparse.Namespace) -> int:
    from vlm_pruner.report.html_data import read_results

    data = read_results(args.results)
    text = render(data, args.title)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(text, encoding="utf-8")
    items, pictures = (sum(len(run[name]) for run in data["runs"]) for name in ("items", "pictures"))
    missing = sum(picture is None for run in data["runs"] for picture in run["pictures"])
    if missing:
        print(
            f"{missing} of {pictures} pictures are not where the results say; the page leaves them out", file=sys.stderr
        )
    print(f"{args.out}: {items} items, {pictures} pictures, {len(text.encode()) / 1e6:.1f} MB")
    return 0


def render(data: dict[str, Any], title: str) -> str:
    """The page: template, style, script and data in one file."""
    page = resources.files("vlm_pruner.report") / "page"
    parts = {name: (page / f"report.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    # A "<" inside the data could end the script element that holds it.
    packed = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {"TITLE": escape(title), "STYLE": parts["css"], "SCRIPT": parts["js"], "DATA": packed}
    pieces = parts["html"].split("@@")  # texts and names in turn
    return "".join(piece if number % 2 == 0 else values[piece] for number, piece in enumerate(pieces))
