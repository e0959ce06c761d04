"""`vlm-pruner bench`: times a model's parts on this machine, dense and pruned.

Slow imports and torch load when the run starts, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_pruner.commands.options import BUDGETS
from vlm_pruner.console import at_least, words

if TYPE_CHECKING:
    from torch import nn

    from vlm_pruner.cost.flops import Machine
    from vlm_pruner.experiments.arms import Arm
    from vlm_pruner.experiments.journal import Journal
    from vlm_pruner.speed.timing import Case

    Plan = tuple[Case, list[Arm]]

EXAMPLES = """examples:
  vlm-pruner bench                     # a small model, on any CPU, in a minute
  vlm-pruner bench --model llava-1.5-7b --device cuda --budgets 192,64 --batch-sizes 1,8
  vlm-pruner bench --model qwen2-vl-7b --device cuda --visual-tokens 1296,4096 --methods vlm-pruner,fastv
  vlm-pruner bench --model path/to/checkpoint --device cuda

Models by name have random weights: tiny, small, llava-1.5-7b, llava-1.5-13b, llava-next-7b, qwen2-vl-2b, qwen2-vl-7b,
qwen2.5-vl-7b. To resume a run that was stopped, give the same command again.
"""
SWEEP = (36, 64, 100, 144, 256, 400)  # squares, so that a LLaVA's tower can have them
LEAST = 4  # tokens to keep: VLM-Pruner starts from four pivots


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="tiny", metavar="NAME|DIR", help="a model's name or a checkpoint's folder (%(default)s)")
    add(
        "--methods",
        type=words,
        default=["vlm-pruner"],
        metavar="NAME,NAME",
        help="beside dense; see vlm-pruner methods, or FILE.py:CLASS (vlm-pruner)",
    )
    add(
        "--budgets", "--budget", "--keep", dest="budgets", type=words, metavar="B,B",
        help=f"{BUDGETS} (a third and a ninth)",
    )  # fmt: skip
    add("--batch-sizes", type=_numbers, default=[1], metavar="N,N", help="prompts at once (1)")
    add("--visual-tokens", type=_numbers, metavar="N,N", help="visual tokens of each prompt (as the model is used)")
    add("--text-tokens", type=int, default=60, metavar="N", help="words of each prompt (%(default)s)")
    add("--new-tokens", type=int, default=16, metavar="N", help="tokens of each answer (%(default)s)")
    add("--rounds", type=int, default=8, metavar="N", help="timed runs of each arm (%(default)s)")
    add("--break-even", type=_numbers, metavar="N,N", help="sizes for the break-even; 0 leaves it out (36 to 400)")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ... (%(default)s)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], help="(float32 on a CPU, else bfloat16)")
    add("--attention", default="sdpa", help="transformers' attn_implementation, for all arms (%(default)s)")
    add("--layers", type=int, metavar="N", help="fewer decoder layers of a model by name, where memory is short")
    add(
        "--machine",
        type=_machine,
        metavar="FLOPS,BYTES",
        help="peak per second, for predictions; else measured by a product and a copy",
    )
    add("--seed", type=int, default=0, help="draws words, pictures and random's tokens (%(default)s)")
    add("--out", type=Path, default=Path("results/bench"), metavar="DIR", help="results (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Times all arms, prints the tables, and writes them, results.json, runs.jsonl and speed.png into --out."""
    started = time.perf_counter()
    _check(args)
    from vlm_pruner.asking.opening import check_device
    from vlm_pruner.speed.timing import check_cache

    check_device(args.device)
    print(f"loading {args.model}", file=sys.stderr, flush=True)
    model, native = _load(args)
    check_cache(model)
    plans, sweeps, notes = _plan(args, native, model)
    machine = args.machine or _measure(args, model)
    journal = _time(model, args, [*plans, *(plan for sweep in sweeps.values() for plan in sweep)])
    results = _results(args, model, machine, plans, sweeps, journal.records) | {"notes": notes}
    results["wall_seconds"] = time.perf_counter() - started
    _report(results, args.out)
    journal.path.replace(args.out / "runs.jsonl")  # complete: the next run starts over
    return 0


def _check(args: argparse.Namespace) -> None:
    at_least(2, text_tokens=args.text_tokens, new_tokens=args.new_tokens)
    at_least(1, rounds=args.rounds)
    for name in ("batch_sizes", "visual_tokens"):
        if any(number < 1 for number in getattr(args, name) or []):
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}; every number must be at least 1")


def _load(args: argparse.Namespace) -> tuple[nn.Module, int]:
    """The model, and a picture's visual tokens at the usual size."""
    import torch

    from vlm_pruner.speed import models

    dtype = getattr(torch, args.dtype or ("float32" if args.device == "cpu" else "bfloat16"))
    options = {"device": args.device, "dtype": dtype, "attention": args.attention}
    if args.model in models.PUBLISHED:
        built = models.build(args.model, **options, layers=args.layers, seed=args.seed)
        return built, models.PUBLISHED[args.model].visual_tokens
    if args.layers is not None:
        raise ValueError("--layers applies to models by name; a checkpoint has a fixed number of layers")
    return models.load(args.model, **options), 576


def _plan(
    args: argparse.Namespace, native: int, model: nn.Module
) -> tuple[list[Plan], dict[str, list[Plan]], list[str]]:
    """Cases with their arms, each method's small cases for its break-even, and what was left out and why."""
    from vlm_pruner import adapters
    from vlm_pruner.cost.budgets import Budget
    from vlm_pruner.cost.flops import DecoderShape
    from vlm_pruner.experiments.arms import DENSE, ModelFacts, make_arms
    from vlm_pruner.speed.timing import Case

    notes, plans = [], []
    methods = [name for name in args.methods if name != DENSE]
    sizes = args.visual_tokens or [native]
    shape = DecoderShape.of(adapters.find(model).decoder.config)
    budgets = [Budget.parse(str(word)) for word in args.budgets or [max(1, sizes[0] // 3), max(1, sizes[0] // 9)]]
    for batch in args.batch_sizes:
        for visual in sizes:
            possible = [budget for budget in budgets if budget.kind != "tokens" or budget.value < visual]
            notes += [f"{b} of {visual} visual tokens: nothing to drop" for b in budgets if b not in possible]
            arms = make_arms([DENSE, *methods], possible, ModelFacts(visual, shape, args.text_tokens), args.seed)
            plans.append((Case(batch, visual, args.text_tokens, args.new_tokens), arms))
    least = [arm.tokens for _, arms in plans[:1] for arm in arms if arm.name != DENSE]
    least += [int(budget.value) for budget in budgets if budget.kind == "tokens"]
    share, batch = min(least, default=sizes[0]) / sizes[0], args.batch_sizes[0]
    sweep = SWEEP if args.break_even is None else [visual for visual in args.break_even if visual > 0]
    sweeps: dict[str, list[Plan]] = {}
    for name in methods if sweep and share < 1 else []:
        sweeps[name] = [
            (
                Case(batch, visual, args.text_tokens, 1, purpose=f"break-even of {name}: "),
                make_arms([DENSE, name], [kept], visual, args.seed),
            )
            for visual in sorted(set(sweep))
            if 0 < (kept := max(LEAST, round(visual * share))) < visual
        ]
    return plans, sweeps, notes


def _measure(args: argparse.Namespace, model: nn.Module) -> Machine:
    from vlm_pruner.cost.machine import measure

    print("measuring the machine", file=sys.stderr, flush=True)
    return measure(args.device, next(model.parameters()).dtype, seconds=2.0)


def _time(model: nn.Module, args: argparse.Namespace, plans: list[Plan]) -> Journal:
    from tqdm import tqdm

    from vlm_pruner.experiments.journal import Journal
    from vlm_pruner.provenance import hardware, versions
    from vlm_pruner.speed.timing import run_cases

    header = _config(args) | {"hardware": hardware(), "versions": versions()}
    runs = args.rounds * sum(len(arms) for _, arms in plans)
    with Journal(args.out / "runs.unfinished.jsonl", header) as journal:
        if journal.records:
            print(f"going on after {len(journal.records)} runs of a command that was stopped", file=sys.stderr)
        with tqdm(total=runs, unit=" runs", ncols=80, mininterval=0.5, file=sys.stderr) as bar:
            run_cases(model, plans, args.rounds, journal, bar.update, args.seed)
    return journal


def _config(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that affects the figures; a journal with a different description is not continued."""
    skipped = {"out", "run", "command", "traceback", "machine"}
    return {name: value for name, value in sorted(vars(args).items()) if name not in skipped}


def _results(
    args: argparse.Namespace,
    model: Any,
    machine: Machine,
    plans: list[Plan],
    sweeps: dict[str, list[Plan]],
    records: list[dict[str, Any]],
) -> dict[str, Any]:
    from vlm_pruner.cost.flops import DecoderShape
    from vlm_pruner.report.results import head
    from vlm_pruner.speed.summary import Decoder, break_even, summarise_case

    weights = list(model.parameters())
    shape = DecoderShape.of(model.config.get_text_config())
    weight_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    know: dict[str, Any] = {"decoder": Decoder(shape, weights[0].element_size(), weight_bytes), "machine": machine}
    pays = []
    for name, sweep in sweeps.items():
        cases = [summarise_case(case, arms, records, **know) for case, arms in sweep]
        share = sweep[-1][1][1].tokens / sweep[-1][1][0].tokens
        pays.append(break_even(name, share, args.batch_sizes[0], cases))
    return {
        **head("bench", _config(args)),
        "model": {
            "name": args.model,
            "class": type(model).__name__,
            "decoder": asdict(shape),
            "dtype": str(weights[0].dtype).removeprefix("torch."),
            "attention": model.config.get_text_config()._attn_implementation,
            "parameters": sum(weight.numel() for weight in weights),
            "weight_bytes": weight_bytes,
        },
        "machine": asdict(machine),
        "cases": [summarise_case(case, arms, records, **know) for case, arms in plans],
        "break_even": pays,
    }


def _report(results: dict[str, Any], out: Path) -> None:
    from vlm_pruner.report import charts
    from vlm_pruner.report.results import write_into
    from vlm_pruner.report.speed_table import results_text

    text = results_text(results)
    print(text)
    write_into(out, {"table.txt": text, "results.json": results})
    names = [out / name for name in ("table.txt", "results.json", "runs.jsonl")]
    names += charts.write_if_installed(out / "speed.png", charts.speed, results)
    print(f"\n{results['wall_seconds']:.0f} s in all; written:", *(f"  {name}" for name in names), sep="\n")


def _machine(text: str) -> Machine:
    from vlm_pruner.cost.flops import Machine

    try:
        flops, bandwidth = (float(word) for word in text.split(","))
        return Machine("given", flops, bandwidth)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not two positive numbers such as 989e12,4.8e12") from None


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 192,64") from None
