"""Questions per second of the evaluation runner, beside a bare generate loop. The last line is one JSON document.

    python benchmarks/eval_throughput.py                      # the embedded model and its mini questions
    python benchmarks/eval_throughput.py --model-path checkpoints/llava-v1.5-7b --questions 200 --device cuda

The runner reads pictures from disk, preprocesses, generates, and writes answers; the bare loop calls `generate` on
tensors that were made before. Both answer the same questions at each batch size, taking turns, and must agree.
`runner_share` is the runner's rate over the bare loop's; `speedup` sets the last batch size against the first.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vlm_pruner as vp
from llava.eval import evaluate, model_vqa_loader, options, runner
from llava.eval.answers import AnswerFile
from llava.eval.batch import Prepared
from llava.eval.engine import LlavaEngine
from llava.eval.questions import Item, Question
from playground.mini import benchmarks
from vlm_pruner.provenance import environment


def arguments(chosen: argparse.Namespace, data: Path) -> argparse.Namespace:
    """The arguments that the answer generator's command line would parse."""
    paths = ["--model-path", chosen.model_path, "--image-folder", str(data / "images"), "--answers-file", "unused"]
    files = ["--question-file", str(data / "questions.jsonl"), "--max_new_tokens", str(chosen.max_new_tokens)]
    device = ["--device", chosen.device] if chosen.device else []
    pruning = ["--sparse", "--keep_tokens", str(chosen.keep)] if chosen.keep else []
    return evaluate.build_parser(model_vqa_loader.TASK).parse_args([*paths, *files, *device, *pruning])


def run_evaluation(engine: LlavaEngine, items: Sequence[Item], size: int) -> tuple[float, list[str]]:
    """Runs everything, from reading to writing; returns seconds and answers."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        path = Path(folder, "answers.jsonl")
        start = time.perf_counter()
        with AnswerFile(path, {"config": {}}) as answers:
            runner.run(engine, items, answers, size)
        seconds = time.perf_counter() - start
        return seconds, [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def run_bare(engine: LlavaEngine, prepared: Sequence[Prepared], size: int) -> tuple[float, list[str]]:
    """Runs `generate` alone, on tensors already on the device; returns seconds and answers."""
    model, tokenizer = engine.checkpoint.model, engine.checkpoint.tokenizer
    start = time.perf_counter()
    texts: list[str] = []
    with vp.prune(model, engine.method) if engine.method else contextlib.nullcontext():
        for first in range(0, len(prepared), size):
            output = engine.generate_ids(prepared[first : first + size])
            texts += tokenizer.batch_decode(output, skip_special_tokens=True)
    return time.perf_counter() - start, [text.strip() for text in texts]


def on_device(engine: LlavaEngine, item: Question) -> Prepared:
    model, prepared = engine.checkpoint.model, engine.prepare(item)
    pixels = tuple(picture.to(model.device, model.dtype) for picture in prepared.pixels)
    return replace(prepared, input_ids=prepared.input_ids.to(model.device), pixels=pixels)


def measure(
    engine: LlavaEngine, items: Sequence[Question], size: int, repeats: int
) -> tuple[dict[str, float], list[str]]:
    """Rates in questions per second (median of ``repeats`` rounds after a warm-up round), and the answers."""
    prepared = [on_device(engine, item) for item in items]
    rates: dict[str, list[float]] = {"runner": [], "bare": []}
    for _ in range(repeats + 1):
        seconds, answers = run_evaluation(engine, items, size)
        rates["runner"].append(len(items) / seconds)
        seconds, texts = run_bare(engine, prepared, size)
        rates["bare"].append(len(items) / seconds)
        if answers != texts:
            raise SystemExit(f"batch size {size}: the runner and the bare loop give different answers")
    found = {name: statistics.median(values[1:]) for name, values in rates.items()}
    spread = {f"{name}_sd": statistics.pstdev(values[1:]) for name, values in rates.items()}
    return {"batch_size": size, **found, **spread, "runner_share": found["runner"] / found["bare"]}, texts


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path", default="playground/mini/checkpoint")
    parser.add_argument("--questions", type=int, default=48, help="number of questions (default: %(default)s)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8], metavar="B")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=int, default=64, help="visual tokens kept by VLM-Pruner; 0 is dense")
    parser.add_argument("--max_new_tokens", type=int, default=16)
    parser.add_argument("--device", default=None)
    return parser.parse_args()


def summarise(rows: Sequence[dict[str, float]]) -> float:
    """Prints a line per batch size; returns the speed-up of the last over the first."""
    for row in rows:
        print(
            f"B = {row['batch_size']}: runner {row['runner']:.2f} +- {row['runner_sd']:.2f} questions/s, "
            f"bare loop {row['bare']:.2f} +- {row['bare_sd']:.2f}, share {100 * row['runner_share']:.1f} %"
        )
    speedup = rows[-1]["runner"] / rows[0]["runner"]
    print(f"B = {rows[-1]['batch_size']} answers {speedup:.2f} times as fast as B = {rows[0]['batch_size']}")
    return speedup


def main() -> None:
    chosen = parse()
    with tempfile.TemporaryDirectory() as folder:
        benchmarks.write(Path(folder), ["mini"], count=-(-chosen.questions // 5))  # about six questions a scene
        args = arguments(chosen, Path(folder, "mini"))
        engine = LlavaEngine.from_arguments(args, options.build_method(args))
        items = [item for item in model_vqa_loader.read(args) if isinstance(item, Question)][: chosen.questions]
        measured = [measure(engine, items, size, chosen.repeats) for size in chosen.batch_sizes]
    same = sum(a == b for a, b in zip(measured[0][1], measured[-1][1], strict=True))
    print(f"{same} of {len(items)} answers are the same at both batch sizes")
    rows = [row for row, _ in measured]
    result = {"questions": len(items), "same": same, "rows": rows, "speedup": summarise(rows)}
    print(json.dumps({**result, "threads": torch.get_num_threads(), "config": vars(chosen), **environment()}))


if __name__ == "__main__":
    main()
