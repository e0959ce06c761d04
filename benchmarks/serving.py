"""Requests per second of `vllm serve` against concurrency and budget, with new pictures and with the same ones.

    python benchmarks/serving.py --model served/mini                    # a checkpoint, here on a CPU
    python benchmarks/serving.py --shapes llava-1.5-7b --minutes 8      # a GPU: true shapes, random weights

Runs in an environment with vLLM and this plug-in (on a CPU: `make test-vllm` makes one, .venv-vllm). The last line is
one JSON document. Ratios in the table are against dense at the same concurrency and pictures; cache hits are the share
of prompt tokens that came from the prefix cache.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
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
from PIL import Image

from vlm_pruner.llava.export import export
from vlm_pruner.provenance import environment

MINI = Path(__file__).parents[1] / "playground" / "mini" / "checkpoint"
PICTURES = 4  # of a cell with the same pictures
TOKENS = 8  # of an answer
SHAPES = {
    "llava-1.5-7b": {
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "projection_dim": 768,
        },
        "vision_feature_layer": -2,
        "dtype": "bfloat16",
    }
}


@dataclass(frozen=True)
class Cell:
    """One measurement. hits: share of prompt tokens from the prefix cache. seconds: of all requests."""

    budget: str
    clients: int
    pictures: str
    requests: int
    seconds: float
    hits: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        folder, flags = model_folder(args, Path(scratch))
        with serving(folder, Path(scratch), flags) as port:
            cells = measure(port, args)
    print(table(cells))
    found = [asdict(cell) | {"requests_per_second": cell.rate} for cell in cells]
    print(json.dumps({"cells": found, "shapes": args.shapes, "environment": environment()}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="checkpoint in transformers' layout; default: the embedded model")
    parser.add_argument("--shapes", choices=SHAPES, help="random weights of these shapes instead")
    parser.add_argument("--clients", default="1,8,32", help="requests at once (%(default)s)")
    parser.add_argument("--budgets", default="dense,192,64", help="visual tokens (%(default)s)")
    parser.add_argument("--requests", type=int, default=64, help="per cell (%(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="start no new cell after this long (%(default)s)")
    return parser.parse_args()


def model_folder(args: argparse.Namespace, scratch: Path) -> tuple[Path, list[str]]:
    """The folder to serve, and the server's flags for it."""
    if args.shapes is None:
        return args.model or export(MINI, scratch / "mini"), ["--dtype", "float32", "--enforce-eager"]
    folder = export(MINI, scratch / args.shapes)
    (folder / "model.safetensors").unlink()
    raw = json.loads((folder / "config.json").read_text())
    for key, value in SHAPES[args.shapes].items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(raw))
    return folder, ["--load-format", "dummy", "--dtype", "bfloat16"]


@contextmanager
def serving(folder: Path, scratch: Path, flags: list[str]) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder), "--served-model-name", "model", *flags]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "1024", "--max-num-seqs", "64"]
    command += ["--block-size", "32", "--trust-request-mm-kwargs"]
    path = scratch / "server.log"
    with path.open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not healthy(port):
                if server.poll() is not None:
                    raise SystemExit(f"the server stopped: {path.read_text()[-2000:]}")
                time.sleep(1)
            yield port
        finally:
            server.terminate()
            server.wait(60)


def healthy(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
        return True
    except OSError:
        return False


def measure(port: int, args: argparse.Namespace) -> list[Cell]:
    """Budgets in turn within each cell, so that a machine that slows down slows all of them."""
    end, seed, cells = time.time() + 60 * args.minutes, 0, []
    for pictures in ("new", "same"):
        for clients in map(int, args.clients.split(",")):
            for budget in args.budgets.split(","):
                if time.time() > end:
                    return cells
                seed += args.requests
                cells.append(run_cell(port, budget, clients, pictures, args.requests, seed))
                print(row(cells[-1], cells), flush=True)
    return cells


def run_cell(port: int, budget: str, clients: int, pictures: str, requests: int, seed: int) -> Cell:
    bodies = [body(budget, seed + n if pictures == "new" else seed + n % PICTURES, n) for n in range(requests)]
    ask(port, bodies[0])  # what is loaded on first use
    before = hits(port)
    start = time.time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(lambda one: ask(port, one), bodies))
    seconds = time.time() - start
    hit, queried = (after - earlier for after, earlier in zip(hits(port), before, strict=True))
    return Cell(budget, clients, pictures, requests, seconds, hit / queried)


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
    ratio = f"{cell.rate / dense[0].rate:.2f}" if dense else "-"
    return f"| {cell.pictures} | {cell.clients} | {cell.budget} | {cell.rate:.2f} | {ratio} | {100 * cell.hits:.0f} % |"


def table(cells: list[Cell]) -> str:
    head = "| pictures | at once | budget | requests/s | times dense | cache hits |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(row(cell, cells) for cell in cells)])


if __name__ == "__main__":
    main()
