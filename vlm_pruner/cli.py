"""The ``vlm-pruner`` command: a table of subcommands, each a module of `commands/`.

A subcommand's module offers ``add_arguments(parser)`` and ``run(args) -> int`` (the exit code) and, if it likes,
``EXAMPLES``. Only the module that was asked for is imported, so ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module

from vlm_pruner.console import BAD_INPUT, OneLineParser, one_line


@dataclass(frozen=True)
class Command:
    module: str
    help: str


COMMANDS = {
    "check-data": Command("vlm_pruner.commands.check_data", "name the files of the nine benchmarks that are missing"),
    "score": Command("vlm_pruner.commands.score", "score an answer file of one of nine benchmarks"),
    "table": Command("vlm_pruner.commands.table", "the paper's tables with our scores beside the printed ones"),
    "bench": Command("vlm_pruner.commands.bench", "time a model's parts on this machine, dense and pruned"),
    "ask": Command("vlm_pruner.commands.ask", "one question, answered dense and pruned, and which tokens were kept"),
    "show": Command("vlm_pruner.commands.show", "draw which tokens methods keep of a picture, side by side"),
    "compare": Command("vlm_pruner.commands.compare", "methods x budgets x benchmarks, with intervals and verdicts"),
    "demo-run": Command(
        "vlm_pruner.commands.demo_run", "dense against pruned answers of the embedded model, in minutes"
    ),
    "ablate": Command("vlm_pruner.commands.ablate", "the paper's ablations of VLM-Pruner on the embedded model"),
    "report": Command("vlm_pruner.commands.report", "result files as one page, with pictures of kept tokens"),
    "demo": Command("vlm_pruner.commands.demo", "a page in the browser: dense and pruned answers side by side"),
}

EXAMPLES = """examples:
  vlm-pruner demo-run
  vlm-pruner score pope --data playground/data/eval/pope --answers answers/llava-v1.5-7b.jsonl --json pope.json
  vlm-pruner score --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Bad input is one line on stderr and exit code 2; a traceback means a defect."""
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
        return 130


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="vlm-pruner", description="Training-free visual token pruning for vision-language models.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        _add(subparsers, name, command, load=name == asked)
    return parser.parse_args(arguments)


def _add(subparsers: argparse._SubParsersAction, name: str, command: Command, load: bool) -> None:
    module = import_module(command.module) if load else None
    subparser = subparsers.add_parser(
        name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}.",
        epilog=getattr(module, "EXAMPLES", None), formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    subparser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    if module is not None:
        module.add_arguments(subparser)
        subparser.set_defaults(run=module.run)


if __name__ == "__main__":
    sys.exit(main())
