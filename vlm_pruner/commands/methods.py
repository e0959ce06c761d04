"""`vlm-pruner methods`: the pruning methods and the model families, and what each needs."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  vlm-pruner methods
  vlm-pruner methods fastv my_file.py:MyPruner
  vlm-pruner methods --family qwen2_5_vl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="methods, or FILE.py:CLASS (all)")
    parser.add_argument("--family", metavar="NAME", help="only methods that fit this family")
    parser.add_argument(
        "--write", type=Path, metavar="DIR", help="write the tables of methods.md and families.md in DIR"
    )


def run(args: argparse.Namespace) -> int:
    from vlm_pruner.adapters.families import FAMILIES, find_family
    from vlm_pruner.methods import words
    from vlm_pruner.report import catalogue

    if args.write is not None:
        tables = {"methods.md": catalogue.markdown(), "families.md": catalogue.families_markdown()}
        for name, table in tables.items():
            page = args.write / name
            page.write_text(catalogue.written(page.read_text(encoding="utf-8"), table), encoding="utf-8")
            print(page)
        return 0
    chosen = [words.find(name) for name in args.names] or catalogue.ordered()
    families = FAMILIES
    if args.family is not None:
        families = (find_family(args.family),)
        chosen = [one for one in chosen if not families[0].refusal(one)]
    print(catalogue.text(chosen, families))
    return 0
