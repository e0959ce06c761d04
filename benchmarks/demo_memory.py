"""Memory of the live page over many requests: python benchmarks/demo_memory.py [--requests 200]

Each request does what the page does for a visitor: it reads an upload, answers dense and pruned, and draws the kept
tokens. Every fifth visitor leaves halfway. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm_pruner.asking import load
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.provenance import environment
from vlm_pruner.web import cards, settings
from vlm_pruner.web.recipe import Recipe
from vlm_pruner.web.session import Job, Session
from vlm_pruner.web.uploads import accept

WARM = 20  # requests before memory is looked at: allocators fill their pools first


def resident_megabytes() -> float:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def picture_file(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def visit(session: Session, number: int) -> None:
    upload = accept(picture_file(number), f"{number}.jpg")
    cards.preview(upload)
    method = settings.make(session.chat, "vlm-pruner", 64, 2)
    picture = upload.picture()
    snapshots = session.run(
        str(number), picture, "What is written in the image?", [settings.UNPRUNED, Job("pruned", method)]
    )
    for count, panes in enumerate(snapshots):
        cards.answers(panes)
        if number % 5 == 4 and count == 1:
            snapshots.close()
            return
    answer = panes[-1].answer
    assert answer is not None
    cards.overlay(picture, answer, "pruned")
    cards.repeat(Recipe(session.chat.name, upload.name, "?", method, 8), own_file=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    args = parser.parse_args()
    session = Session(load(CHECKPOINT), max_new_tokens=8)
    sizes = []
    started = time.perf_counter()
    for number in range(args.requests + WARM):
        visit(session, number)
        sizes.append(resident_megabytes())
        if number % 20 == 0:
            print(f"{number:4} requests: {sizes[-1]:.0f} MB", flush=True)
    measured = sizes[WARM:]
    quarter = len(measured) // 4 or 1
    result = {
        "requests": args.requests, "seconds": round(time.perf_counter() - started, 1),
        "first_megabytes": round(sum(measured[:quarter]) / quarter, 1),
        "last_megabytes": round(sum(measured[-quarter:]) / quarter, 1), "environment": environment(),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main()
