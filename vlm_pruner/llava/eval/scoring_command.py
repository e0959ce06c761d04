"""The field's scoring commands (``eval_*``): flags in, table and JSON out, bad input in one line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_pruner import scoring
from vlm_pruner.console import BAD_INPUT, OneLineParser, home, one_line
from vlm_pruner.scoring.output import add_output_arguments, report


@dataclass(frozen=True)
class Flag:
    """One flag of a command. keyword: the scorer's argument that it sets, "" for none. options: of argparse."""

    name: str
    keyword: str
    options: dict[str, Any] = field(default_factory=dict)


def data(name: str, help: str, **options: Any) -> Flag:
    """The flag that names the benchmark's data, required unless it has a default."""
    return Flag(name, "data", {"help": help, "type": home, "required": "default" not in options, **options})


def command(name: str, benchmark: str, description: str | None, *flags: Flag) -> Callable[..., int]:
    """The ``main`` of one command, with the field's own flags. Exit code 2 is bad input."""

    def main(argv: Sequence[str] | None = None) -> int:
        parser = OneLineParser(
            prog=f"python -m llava.eval.{name}", description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        for flag in flags:
            parser.add_argument(flag.name, dest=flag.keyword or "unused", **flag.options)
        parser.add_argument("--result-file", type=home, required=True, help="answer file")
        add_output_arguments(parser)
        args = parser.parse_args(argv)
        given = {flag.keyword: getattr(args, flag.keyword) for flag in flags if flag.keyword}
        try:
            return report(
                lambda: scoring.score(benchmark, answers=args.result_file, allow_errors=args.allow_errors, **given),
                args.result_file, args,
            )  # fmt: skip
        except (ValueError, OSError) as error:
            print(f"{name}: {one_line(error)}", file=sys.stderr)
            return BAD_INPUT

    return main
