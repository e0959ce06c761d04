"""The ``vlm-pruner`` command: a table of subcommands, each a module of `commands/`.

A subcommand's module defines ``add_arguments(parser)``, ``run(args) -> int`` (the exit code) and optionally
``EXAMPLES``. Only the requested subcommand's module is imported, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from vlm_pruner import __version__
from vlm_pruner.console import BAD_INPUT, INTERRUPTED, OneLineParser, fitted, one_line

COMMANDS = {
    "check-data": "list the files missing from the nine benchmarks",
    "score": "score an answer file of one of the nine benchmarks",
    "table": "print the paper's tables with our scores beside the published ones",
    "bench": "time a model's parts on this machine, dense and pruned",
    "ask": "answer one question dense and pruned, and show which tokens were kept",
    "methods": "list the pruning methods and model families, and what fits",
    "show": "draw which tokens each method keeps of a picture, side by side",
    "count": "count pictures' visual tokens for a model, before anything runs",
    "budget": "find the smallest budget that keeps the dense model's accuracy",
    "prior": "average a model's attention over pictures, for d2pruner",
    "compare": "compare methods x budgets x benchmarks, with intervals and verdicts",
    "demo-run": "compare dense and pruned answers of the embedded model, in minutes",
    "ablate": "run the paper's ablations of VLM-Pruner on the embedded model",
    "report": "turn result files into one page, with pictures of the kept tokens",
    "export-hf": "write a LLaVA checkpoint of the original layout as transformers loads it",
    "demo": "serve a page with dense and pruned answers side by side",
}

EXAMPLES = """examples:
  vlm-pruner demo-run
  vlm-pruner ask photo.jpg --question "What is on the table?" --model DIR
  vlm-pruner ask --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand. Bad input gives one line on stderr and exit code 2; a traceback means a bug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parse(arguments)
        return int(args.run(args))
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        print(f"vlm-pruner: {one_line(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("vlm-pruner: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="vlm-pruner", description="Training-free visual token pruning for vision-language models.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"vlm-pruner {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, says in COMMANDS.items():
        module = load(name) if name == asked else None
        subparser = subparsers.add_parser(name, help=says, **described(name, module))
        subparser.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
        if module is not None:
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser.parse_args(arguments)


def load(name: str) -> ModuleType:
    """A subcommand's module."""
    return import_module(f"vlm_pruner.commands.{name.replace('-', '_')}")


def described(name: str, module: ModuleType | None) -> dict[str, Any]:
    """Arguments of a subcommand's parser. module: None before it is imported."""
    return {
        "description": f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        "epilog": fitted(getattr(module, "EXAMPLES", "")),
        "formatter_class": argparse.RawDescriptionHelpFormatter,
    }


if __name__ == "__main__":
    sys.exit(main())
