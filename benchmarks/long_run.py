"""Many questions in one process: does memory stay flat, and are late answers those of a fresh process?

    python benchmarks/long_run.py                       # 2,000 questions, the embedded model
    python benchmarks/long_run.py --tiny --questions 200

Methods, budgets, pictures and questions take turns. Resident memory is read every 50 questions; growth is the median of
the last fifth over the median of the second fifth (the first warms up). Every 200th answer is asked again in a new
process. Exit code 1 if memory grew by more than 2 %, or an answer differs. The last line is JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

METHODS = ("vlm-pruner", "fastv", "divprune", "pyramiddrop", "random", "dense")
EVERY, AGAIN, ALLOWED = 50, 200, 0.02
WORDS = ("what is left of the disc", "how many discs are there", "is there a ring", "what does the sign say")


def resident() -> float:
    """MB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def ask(chat: object, number: int) -> str:
    """The answer to question `number`: its picture, words, method and budget follow from the number."""
    from PIL import Image

    from vlm_pruner import methods

    side = 336 + 4 * (number % 7)
    picture = Image.effect_mandelbrot((side, 336), (-2 + number % 5 / 10, -1.5, 1, 1.5), 40).convert("RGB")
    name, most = METHODS[number % len(METHODS)], chat.visual_tokens(picture)  # type: ignore[attr-defined]
    keep = max(8, most // (2 + number % 8))
    method = None if name == "dense" else methods.get(name)(keep_tokens=keep)
    answer = chat.ask(picture, WORDS[number % len(WORDS)], method, max_new_tokens=8)  # type: ignore[attr-defined]
    return str(answer.text)


def open_model(folder: Path) -> object:
    import torch

    from vlm_pruner import asking

    torch.set_num_threads(1)
    return asking.load(folder)


def fresh(folder: Path, numbers: list[int]) -> dict[int, str]:
    """The answers of a new process."""
    command = [sys.executable, __file__, "--model", str(folder), "--only", json.dumps(numbers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {int(number): text for number, text in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2000, metavar="N")
    parser.add_argument("--model", type=Path, default=ROOT / "playground" / "mini" / "checkpoint", metavar="DIR")
    parser.add_argument("--tiny", action="store_true", help="a model of random weights instead")
    parser.add_argument("--only", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        from tests import llava_tiny

        args.model = llava_tiny.write_original(Path(tempfile.mkdtemp()) / "model")
        llava_tiny.write_tokenizer(args.model)
    chat = open_model(args.model)
    if args.only is not None:
        print(json.dumps({number: ask(chat, number) for number in args.only}))
        return 0
    return run(chat, args.model, args.questions)


def run(chat: object, model: Path, questions: int) -> int:
    started, curve, kept = time.perf_counter(), [], {}
    for number in range(questions):
        text = ask(chat, number)
        if number % AGAIN == AGAIN - 1:
            kept[number] = text
        if number % EVERY == EVERY - 1:
            gc.collect()
            curve.append(round(resident(), 1))
            print(f"{number + 1} questions, {curve[-1]} MB, {time.perf_counter() - started:.0f} s", flush=True)
    fifth = max(1, len(curve) // 5)
    growth = median(curve[-fifth:]) / median(curve[fifth : 2 * fifth]) - 1
    again = fresh(model, list(kept))
    differ = [number for number, text in kept.items() if again[number] != text]
    result = {"questions": questions, "seconds": round(time.perf_counter() - started), "curve_mb": curve,
              "growth": round(growth, 4), "asked_again": len(kept), "differ": differ}  # fmt: skip
    print(json.dumps(result))
    return int(growth > ALLOWED or bool(differ))


if __name__ == "__main__":
    sys.exit(main())
