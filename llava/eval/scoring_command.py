"""What the field's scoring commands (``eval_*``) share: flags in, table and JSON out, bad input in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from vlm_pruner.console import BAD_INPUT, OneLineParser, one_line
from vlm_pruner.scoring import Score
from vlm_pruner.scoring.output import add_output_arguments, report


def run(
    name: str,
    description: str | None,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    score: Callable[[argparse.Namespace], Score],
    argv: Sequence[str] | None = None,
) -> int:
    """Parse, score ``args.result_file``, print and write; the exit code is 2 for bad input."""
    parser = OneLineParser(
        prog=f"python -m llava.eval.{name}", description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add_arguments(parser)
    add_output_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return report(score(args), args.result_file, args)
    except (ValueError, OSError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
