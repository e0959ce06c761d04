"""The command line that all answer generators share: LLaVA's flags, the released pruning flags, and ours.

Flags of a method are None until given: their defaults live in the method's dataclass and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_pruner.console import home
from vlm_pruner.cost import budgets
from vlm_pruner.cost.flops import DecoderShape
from vlm_pruner.llava.conversation import get_conversation
from vlm_pruner.llava.eval.errors import UsageError
from vlm_pruner.llava.sights import BLIND, RESIZE, Sight
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.words import BUDGET, Make, maker, read

DEFAULT_METHOD = "vlm-pruner"

# flag -> field of the method's dataclass
METHOD_FLAGS = {
    "reduction_ratio": "reduction_ratio",
    "keep_tokens": "keep_tokens",
    "pruned_layer": "layer",
    "pivot_image_token": "pivots",
    "threshold": "threshold",
    "token_batch": "token_batch",
    "compat": "compat",
}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model-path", type=home, required=True, help="checkpoint folder, original or transformers layout"
    )
    group.add_argument("--model-base", type=home, default=None, help="base model of a checkpoint that needs one")
    group.add_argument("--conv-mode", default="vicuna_v1", help="conversation template (default: %(default)s)")
    group.add_argument("--attn_implementation", default="sdpa", choices=["sdpa", "eager", "flash_attention_2"])
    group.add_argument("--device", default=None, help="default: cuda where there is one, else cpu")
    group.add_argument(
        "--device-map", default=None, choices=["auto", "balanced", "balanced_low_0", "sequential"],
        help="spread a model that does not fit one GPU over all of them, and over main memory",
    )  # fmt: skip
    group.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"],
        help="default: float16 on cuda, float32 on cpu",
    )  # fmt: skip


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--image-folder", type=home, default="", help="pictures; paths of the question file cannot leave it"
    )
    group.add_argument("--question-file", type=home, required=True)
    group.add_argument(
        "--answers-file", type=home, required=True, help="appended line by line; the same command resumes it"
    )
    group.add_argument("--num-chunks", type=int, default=1, help="split the questions over this many runs")
    group.add_argument("--chunk-idx", type=int, default=0, help="which part this run answers, from 0")
    group.add_argument("--limit", type=int, default=None, metavar="N", help="answer the first N questions only")
    group.add_argument("--batch-size", type=int, default=1, metavar="B", help="questions per generate call")
    group.add_argument("--retry-errors", action="store_true", help="ask again what failed in an earlier run")
    group.add_argument(
        "--allow-errors", type=int, default=0, metavar="N",
        help="exit with 0 although up to N items failed (they stay marked in the answers)",
    )  # fmt: skip


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    group.add_argument("--top_p", type=float, default=None)
    group.add_argument("--num_beams", type=int, default=1)
    group.add_argument("--max_new_tokens", type=int, default=128)
    group.add_argument("--seed", type=int, default=0, help="for sampling, and for methods that draw")


def add_pruning_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("pruning", "Without --sparse the model runs dense.")
    group.add_argument("--sparse", action="store_true", help="prune visual tokens")
    group.add_argument(
        "--method", default=None,
        help=f"pruning method, or FILE.py:CLASS, or resize (a smaller picture), or blind (none) ({DEFAULT_METHOD})",
    )  # fmt: skip
    group.add_argument("--reduction_ratio", default=None, help="share of the visual tokens to remove")
    group.add_argument("--keep_tokens", default=None, help="or the number of visual tokens to keep per image")
    group.add_argument(
        "--budget", default=None, metavar="B",
        help="or in any convention: 64 (tokens), ratio:0.889, avg:64 (mean over layers), flops:0.3 (share of dense)",
    )  # fmt: skip
    group.add_argument(
        "--retain_token_num_for_llava_next", type=int, default=None, metavar="N",
        help="for LLaVA-NeXT (1.6): keep N tokens of each picture, whatever the ratio; nothing for other models",
    )  # fmt: skip
    group.add_argument("--pruned_layer", default=None, help="first decoder layer on the short sequence")
    group.add_argument("--pivot_image_token", default=None, help="number of pivots")
    group.add_argument("--threshold", default=None, help="first similarity threshold")
    group.add_argument("--token_batch", default=None, help="tokens judged together")
    group.add_argument("--compat", choices=["released"], default=None, help="behave as the released code does")
    group.add_argument(
        "--image_token_start_index", type=int, default=None,
        help="checked against the prompt; left out, the place is detected",
    )  # fmt: skip
    group.add_argument(
        "--image_token_length", type=int, default=None,
        help="checked against the model; left out, the number is detected",
    )  # fmt: skip


def build_method(args: argparse.Namespace) -> Pruner | None:
    """The method that the flags describe, None for dense, resize and blind. Raises before any model is loaded."""
    given = {flag: getattr(args, flag) for flag in METHOD_FLAGS if getattr(args, flag) is not None}
    if not args.sparse:
        _refuse_forgotten_sparse(args, given)
        return None
    if args.method in (RESIZE, BLIND):
        build_sight(args)  # raises for flags that do not fit
        return None
    _apply_next_budget(args, given)
    settings = {METHOD_FLAGS[flag]: value for flag, value in given.items()}
    budget = {field: settings.pop(field) for field in BUDGET if field in settings}
    spelled = {field: f"--{flag}" for flag, field in METHOD_FLAGS.items()}
    make = maker(args.method or DEFAULT_METHOD, settings, spelled=spelled, seed=args.seed)
    if args.budget is not None:
        return _meet_budget(args, make, budget)
    if not budget:
        raise UsageError(
            "--sparse needs a budget: give --reduction_ratio (0.889 keeps 64 of 576), --keep_tokens or --budget"
        )
    return make(**budget)


def build_sight(args: argparse.Namespace) -> Sight | None:
    """How pictures are shown if --method is resize or blind; None if they are shown whole."""
    if not getattr(args, "sparse", False) or args.method not in (RESIZE, BLIND):
        return None
    for flag in METHOD_FLAGS:
        if flag not in BUDGET and getattr(args, flag) is not None:
            raise UsageError(f"--{flag} {getattr(args, flag)} means nothing to --method {args.method}; leave it out")
    return Sight(BLIND) if args.method == BLIND else _resize(args)


def _resize(args: argparse.Namespace) -> Sight:
    given = {"reduction_ratio": args.reduction_ratio, "keep_tokens": args.keep_tokens}
    if args.budget is not None:
        budget = budgets.Budget.parse(args.budget)
        if not budget.fixed:
            raise UsageError(f"--budget {budget}: --method resize takes tokens or ratio:0.889")
        given["keep_tokens" if budget.kind == "tokens" else "reduction_ratio"] = f"{budget.value:g}"
    kinds = {"reduction_ratio": float, "keep_tokens": int}
    return Sight(RESIZE, **{n: read(f"--{n}", v, kinds[n]) for n, v in given.items() if v is not None})


def _meet_budget(args: argparse.Namespace, make: Make, given: dict[str, Any]) -> Pruner:
    """The setting that meets --budget, from the checkpoint's configuration if it depends on the model."""
    if given:
        raise UsageError(f"--budget {args.budget} and --{min(given)} are both given; give one of them")
    budget = budgets.Budget.parse(args.budget)
    if budget.fixed:
        return budgets.plain(budget, make)
    from vlm_pruner.llava.model.builder import open_checkpoint

    config = open_checkpoint(args.model_path).config
    if config.anyres:
        raise UsageError(f"--budget {budget}: this model's pictures differ in tokens; give tokens or ratio:0.889")
    tower = config.mm_vision_config
    assert tower is not None, "open_checkpoint fills it in"
    visual = (tower["image_size"] // tower["patch_size"]) ** 2
    setting = budgets.solve(budget, make, visual, DecoderShape.of(config))
    print(f"budget {setting.chosen}", file=sys.stderr)
    return setting.method


def check_arguments(args: argparse.Namespace) -> None:
    """Checks numbers and paths before a model is loaded."""
    for name, least in (("batch_size", 1), ("limit", 1), ("allow_errors", 0)):
        _check_least(name, getattr(args, name), least)
    check_generation(args)
    if not Path(args.question_file).is_file():
        raise UsageError(f"--question-file {args.question_file} does not exist")
    if args.image_folder and not Path(args.image_folder).is_dir():
        raise UsageError(f"--image-folder {args.image_folder} is not a folder")


def check_generation(args: argparse.Namespace) -> None:
    """Checks conversation, device and decoding."""
    _check_least("max_new_tokens", args.max_new_tokens, 1)
    _check_least("num_beams", args.num_beams, 1)
    get_conversation(args.conv_mode)
    if args.temperature < 0:
        raise UsageError(f"--temperature {args.temperature} must be 0 (greedy) or more")
    if args.temperature > 0 and args.batch_size > 1:
        raise UsageError("sampling (--temperature above 0) draws for each item separately: use --batch-size 1")
    if args.device is not None and args.device_map is not None:
        raise UsageError(f"--device {args.device} and --device-map {args.device_map}: give one of them")


def _check_least(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UsageError(f"--{name.replace('_', '-')} {value} must be at least {least}")


def describe_config(
    args: argparse.Namespace, task: str, method: Pruner | None, settings: Sequence[str] = ()
) -> dict[str, Any]:
    """The flags that decide the answers. settings: the benchmark's own.

    Device, batch size and the like may change between a run and its continuation.
    """
    names = (
        "model_path", "model_base", "conv_mode", "question_file", "num_chunks", "chunk_idx", "attn_implementation",
        "dtype", "temperature", "top_p", "num_beams", "max_new_tokens", "seed", "compat", *settings,
    )  # fmt: skip
    sight = build_sight(args)
    pruning = None if sight is None else sight.describe()
    if method is not None:
        source = {} if method.source is None else {"source": dict(method.source)}
        pruning = {"name": method.name, **source, **method.config()}
    return {"task": task, **{name: getattr(args, name) for name in names}, "method": pruning}


def _refuse_forgotten_sparse(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """Our own flags always mean pruning; the released scripts pass theirs without --sparse too."""
    ours = [name for name in ("method", "keep_tokens", "budget") if getattr(args, name) is not None]
    if ours and args.method != "dense":
        raise UsageError(f"--{ours[0]} prunes only together with --sparse: add --sparse, or leave it out for dense")
    ignored = [f"--{flag}" for flag in given if flag != "compat"]
    if ignored:
        print(f"warning: no --sparse, so the model runs dense and {', '.join(ignored)} do nothing", file=sys.stderr)


def _apply_next_budget(args: argparse.Namespace, given: dict[str, Any]) -> None:
    """LLaVA-NeXT's pictures differ in tokens, so the released scripts give its budget as a count.

    They pass the flag to every model. LLaVA-1.5 ignores it; for LLaVA-NeXT it overrides the ratio.
    """
    count = args.retain_token_num_for_llava_next
    if count is None or not is_llava_next(args.model_path):
        return
    if "keep_tokens" in given and str(given["keep_tokens"]) != str(count):
        raise UsageError(f"--keep_tokens {given['keep_tokens']} and --retain_token_num_for_llava_next {count} disagree")
    given.pop("reduction_ratio", None)
    given["keep_tokens"] = count


def is_llava_next(model_path: str) -> bool:
    """By the checkpoint's configuration; if that cannot be read, by its name, as in the released code."""
    try:
        config = json.loads(Path(model_path, "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") == "llava_next" or config.get("image_aspect_ratio") == "anyres"
    except (OSError, ValueError, AttributeError):
        return "1.6" in Path(model_path).name
