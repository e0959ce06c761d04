"""Requests per second of `vllm serve` against concurrency and budget, with new pictures and with the same ones.

    python benchmarks/serving.py                                        # the embedded model
    python benchmarks/serving.py --model served/llava-v1.5-7b           # a checkpoint in transformers' layout
    python benchmarks/serving.py --shapes llava-1.5-7b --minutes 8      # true shapes, random weights: for a GPU
    python benchmarks/serving.py --shapes llava-1.5-7b --dry-run        # what it would serve; needs no vLLM

Runs in an environment with vLLM and this plug-in (on a CPU: `make test-vllm` makes one, .venv-vllm). Without a GPU it
serves in float32 and without compiling. The last line is one JSON document. Ratios in the table are against dense at
the same concurrency and pictures; cache hits are the share of prompt tokens that came from the prefix cache. On a CPU
that other work shares, the CPU time of the server's processes says more than requests per second.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm_pruner.llava.export import export
from vlm_pruner.provenance import environment
from vlm_pruner.speed.models import PUBLISHED

MINI = Path(__file__).parents[1] / "playground" / "mini" / "checkpoint"
PICTURES = 4  # of a cell with the same pictures
TOKENS = 8  # of an answer
FIRST = 10**6  # pictures from here on are asked before a cell is measured
ON_A_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # GiB; vLLM ignores both on a GPU
SHAPES = [name for name, model in PUBLISHED.items() if model.kind == "Llava"]


@dataclass(frozen=True)
class Server:
    port: int
    process: int

    def cpu_seconds(self) -> float:
        """Of the process and its descendants so far."""
        import psutil  # which vLLM brings

        processes = [psutil.Process(self.process), *psutil.Process(self.process).children(recursive=True)]
        return sum(times.user + times.system for times in (one.cpu_times() for one in processes))


@dataclass(frozen=True)
class Cell:
    """One measurement. seconds, cpu: wall-clock time and the server's CPU time for all requests. hits: share of prompt
    tokens from the prefix cache.
    """

    budget: str
    clients: int
    pictures: str
    requests: int
    seconds: float
    cpu: float
    hits: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def work(self) -> float:
        """CPU seconds of a request."""
        return self.cpu / self.requests


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    deadline = time.time() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as scratch:
        folder, flags = model_folder(args, Path(scratch))
        if args.dry_run:
            print(" ".join(command(folder, 8000, flags)))
            print((folder / "config.json").read_text(encoding="utf-8"))
            return
        with serving(folder, Path(scratch), flags, deadline) as running:
            cells = measure(running, args, deadline)
    print(table(cells))
    found = [asdict(cell) | {"requests_per_second": cell.rate} for cell in cells]
    print(json.dumps({"cells": found, "shapes": args.shapes, "environment": environment()}))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint in transformers' layout; default: the embedded model")
    parser.add_argument("--shapes", choices=SHAPES, help="random weights of these shapes instead")
    parser.add_argument("--clients", default="1,8,32", help="requests at once (%(default)s)")
    parser.add_argument("--budgets", default="dense,192,64", help="visual tokens (%(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="per cell (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=60, help="of the whole run: no cell starts after them (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the server's command and config.json, and stop")
    return parser.parse_args(argv)


def model_folder(args: argparse.Namespace, scratch: Path) -> tuple[Path, list[str]]:
    """The folder to serve, and the server's flags for it."""
    flags = ["--dtype", "bfloat16"] if torch.cuda.is_available() else ["--dtype", "float32", "--enforce-eager"]
    if args.shapes is None:
        return args.model or export(MINI, scratch / "mini"), flags
    return random_weights(args.shapes, scratch / args.shapes), ["--load-format", "dummy", *flags]


def random_weights(name: str, folder: Path) -> Path:
    """A checkpoint without weights of a published model's shapes. Tokeniser and processor are the embedded model's."""
    export(MINI, folder)
    (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").unlink(missing_ok=True)
    config = PUBLISHED[name].config()
    config.image_token_index = json.loads((folder / "config.json").read_text(encoding="utf-8"))["image_token_index"]
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    return folder


def command(folder: Path, port: int, flags: list[str]) -> list[str]:
    """Serves a folder."""
    words = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder), "--served-model-name", "model", *flags]
    words += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "64"]
    return [*words, "--block-size", "32", "--trust-request-mm-kwargs"]


@contextmanager
def serving(folder: Path, scratch: Path, flags: list[str], deadline: float) -> Iterator[Server]:
    """A server, which must answer before the deadline."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = scratch / "server.log"
    with path.open("w") as log:
        words, variables = command(folder, port, flags), ON_A_CPU | os.environ
        running = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=variables)
        try:
            while not healthy(port):
                if running.poll() is not None:
                    raise SystemExit(f"the server stopped: {reason(path.read_text())}")
                if time.time() > deadline:
                    raise SystemExit(f"the server did not start in time (--minutes): {path.read_text()[-2000:]}")
                time.sleep(1)
            yield Server(port, running.pid)
        finally:
            running.terminate()
            running.wait(60)


def reason(log: str) -> str:
    """The errors in a server's log, and its end."""
    errors = [line for line in log.splitlines() if re.search(r"(Error|Exception)\b.*: ", line)]
    return "\n".join([*errors, log[-500:]])


def healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        return True
    except OSError:
        return False


def measure(server: Server, args: argparse.Namespace, deadline: float) -> list[Cell]:
    """Budgets in turn within each cell, so that a machine that slows down slows all of them."""
    seed, cells = 0, []
    for pictures in ("new", "same"):
        for clients in map(int, args.clients.split(",")):
            for budget in args.budgets.split(","):
                if time.time() > deadline:
                    return cells
                seed += args.requests
                cells.append(run_cell(server, budget, clients, pictures, args.requests, seed))
                print(row(cells[-1], cells), flush=True)
    return cells


def run_cell(server: Server, budget: str, clients: int, pictures: str, requests: int, seed: int) -> Cell:
    bodies = [body(budget, seed + n if pictures == "new" else seed + n % PICTURES, n) for n in range(requests)]
    ask(server.port, bodies[0] if pictures == "same" else body(budget, FIRST + seed, 0))  # loads what first use loads
    cpu, before = server.cpu_seconds(), hits(server.port)
    start = time.time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda one: ask(server.port, one), bodies))
    seconds = time.time() - start
    hit, queried = (after - earlier for after, earlier in zip(hits(server.port), before, strict=True))
    return Cell(budget, clients, pictures, requests, seconds, server.cpu_seconds() - cpu, hit / queried)


def body(budget: str, picture: int, number: int) -> bytes:
    pixels = np.random.default_rng(picture).integers(0, 255, (336, 336, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    text = f"What color is the star? {number % 10} {number // 10}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    asked: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": content}]}
    asked |= {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    wish = "off" if budget == "dense" else {"keep_tokens": int(budget)}
    return json.dumps({**asked, "mm_processor_kwargs": {"pruning": wish}}).encode()


def ask(port: int, asked: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"http://127.0.0.1:{port}/v1/chat/completions", asked, headers)
    with urllib.request.urlopen(call, timeout=600) as reply:
        reply.read()


def hits(port: int) -> tuple[float, float]:
    """(hits, queries) of the prefix cache so far, in tokens."""
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    names = ("prefix_cache_hits", "prefix_cache_queries")
    found = [re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", page, re.MULTILINE) for name in names]
    return sum(map(float, found[0])), sum(map(float, found[1]))


def row(cell: Cell, cells: list[Cell]) -> str:
    dense = [one for one in cells if (one.budget, one.clients, one.pictures) == ("dense", cell.clients, cell.pictures)]
    faster = f"{cell.rate / dense[0].rate:.2f}" if dense else "-"
    less = f"{dense[0].work / cell.work:.2f}" if dense else "-"
    start = f"| {cell.pictures} | {cell.clients} | {cell.budget} |"
    return f"{start} {cell.rate:.2f} | {faster} | {cell.work:.2f} | {less} | {100 * cell.hits:.0f} % |"


def table(cells: list[Cell]) -> str:
    columns = ("pictures", "at once", "budget", "requests/s", "times dense", "CPU s each", "times less", "cache hits")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    return "\n".join([head, *(row(cell, cells) for cell in cells)])


if __name__ == "__main__":
    main()
