"""`vlm-pruner export-hf`: a LLaVA checkpoint of the original layout in transformers' layout, as vLLM loads it."""

from __future__ import annotations

import argparse
from pathlib import Path

EXAMPLES = """examples:
  vlm-pruner export-hf playground/mini/checkpoint served/mini
  vlm-pruner export-hf checkpoints/llava-v1.5-7b served/llava-v1.5-7b
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="checkpoint folder in the original layout, or its name on the Hub")
    parser.add_argument("out", type=Path, help="folder to write; it must be new or empty")
    parser.add_argument("--vision-tower", metavar="DIR", help="use this tower instead of the checkpoint's")
    parser.add_argument(
        "--conv-mode", default="vicuna_v1", metavar="NAME", help="prompt format of the chat template (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the folder, and its path to standard output."""
    from vlm_pruner.llava.export import export

    print(export(args.model, args.out, args.conv_mode, args.vision_tower))
    return 0
