"""`vlm-pruner demo`: a page in the browser that answers questions about pictures, dense and pruned side by side."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from vlm_pruner.commands import options
from vlm_pruner.console import at_least

EXAMPLES = """examples:
  vlm-pruner demo
  vlm-pruner demo --model llava-hf/llava-1.5-7b-hf --device cuda --max-new-tokens 256
  vlm-pruner demo --host 0.0.0.0 --port 8080 --max-upload-mb 5

It needs the extra packages of  pip install 'vlm-pruner[demo]'.  Without --host only this machine reaches it.
There are no passwords: anyone who reaches the port can ask.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_model_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=7860, help="first port to try; 0: any free one (%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="length of answers (%(default)s)")
    parser.add_argument("--max-upload-mb", type=float, default=10, metavar="MB", help="largest picture (%(default)s)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="examples: holds mini/questions.jsonl")


def run(args: argparse.Namespace) -> int:
    _check(args)
    from vlm_pruner.web.server import bind, private_folder, serve

    with bind(args.host, args.port) as listening, private_folder():
        from vlm_pruner.web.page import Page
        from vlm_pruner.web.samples import samples
        from vlm_pruner.web.session import Session

        session = Session(options.load_chat(args), max_new_tokens=args.max_new_tokens)
        session.warm_up()
        page = Page(session, samples(args.data), {"device": args.device, "dtype": args.dtype}).build()
        serve(page, listening, args.host, args.max_upload_mb)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError before anything slow starts."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo page needs gradio: pip install 'vlm-pruner[demo]'")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port {args.port} must be between 0 and 65535")
    at_least(1, max_new_tokens=args.max_new_tokens)
    if args.max_upload_mb <= 0:
        raise ValueError(f"--max-upload-mb is {args.max_upload_mb}; it must be above 0")
    options.check_model(args)
