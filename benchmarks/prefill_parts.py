"""Splits a pruned prefill's time into the model's layers, pruning between them, and the rest.

    python benchmarks/prefill_parts.py --model playground/mini/checkpoint [--rounds 20]

The layers also run in order on random states, dense and shortened, with no pruning code at all: the
ratio of these two is the most that any method can reach here. The last line is one JSON document, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vlm_pruner as vp
from vlm_pruner import adapters
from vlm_pruner.cost.flops import DecoderShape, lengths, prefill_seconds
from vlm_pruner.cost.machine import measure
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.speed import models
from vlm_pruner.speed.workload import Workload, make_workload

VISUAL, TEXT, KEPT, LAYER = 576, 60, 64, 2


def now() -> float:
    return 1000 * time.perf_counter()


def plain(decoder: nn.Module, hidden_size: int, tokens: Sequence[int]) -> float:
    """Runs all layers in order, layer i on `tokens[i]` tokens."""
    states = {n: torch.randn(1, n, hidden_size) for n in set(tokens)}
    phases = {n: decoder.rotary_emb(states[n], position_ids=torch.arange(n)[None]) for n in states}
    cache, start = DynamicCache(config=decoder.config), now()
    for layer, n in zip(decoder.layers, tokens, strict=True):
        layer(states[n], position_embeddings=phases[n], use_cache=True, **cache_argument(cache))
    return now() - start


def pruned(model: nn.Module, work: Workload) -> dict[str, float]:
    """Time inside the layers and in the pruning hooks before each of them, in one prefill."""
    layers, marks, hooks = adapters.find(model).decoder.layers, [], []
    note = lambda *_: marks.append(now())  # noqa: E731
    hooks += [layer.register_forward_pre_hook(note) for layer in layers]
    with vp.prune(model, vp.CentrifugalPruner(keep_tokens=KEPT, layer=LAYER)):
        hooks += [layer.register_forward_pre_hook(note) for layer in layers]  # after pruning's own
        hooks += [layer.register_forward_hook(note) for layer in layers]
        model.generate(**work.inputs, do_sample=False, max_new_tokens=1)
    for hook in hooks:
        hook.remove()
    before, begin, end = marks[0::3], marks[1::3], marks[2::3]
    spent = [later - earlier for earlier, later in zip(before, begin, strict=True)]
    inside = sum(later - earlier for earlier, later in zip(begin, end, strict=True))
    return {"layers": inside, "choosing and shortening": spent.pop(LAYER), "other hooks": sum(spent)}


@torch.no_grad()
def parts(model: nn.Module, rounds: int) -> dict[str, float]:
    """Medians after one warm-up round."""
    work, decoder = make_workload(model, VISUAL, TEXT, 1), adapters.find(model).decoder
    shape = DecoderShape.of(model.config.get_text_config())
    long = lengths(shape, work.text, work.visual)
    short = lengths(shape, work.text, work.visual, [(LAYER, KEPT)])
    runs = []
    for _ in range(rounds + 1):
        loops = {
            "plain, dense": plain(decoder, shape.hidden, long),
            "plain, short": plain(decoder, shape.hidden, short),
        }
        runs.append(pruned(model, work) | loops)
    found = {name: median(run[name] for run in runs[1:]) for name in runs[0]}
    machine = measure("cpu")
    dense, least = (prefill_seconds(shape, held, machine, bytes_per_number=4) for held in (long, short))
    return found | {"plain ratio": found["plain, dense"] / found["plain, short"], "predicted ratio": dense / least}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a name that `vlm-pruner bench` knows, or a checkpoint's folder")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.model in models.NAMES:
        model = models.build(args.model)
    else:
        model = models.load(args.model, device="cpu", dtype=torch.float32, attention="sdpa")
    found = {name: round(value, 3) for name, value in parts(model, args.rounds).items()}
    print(json.dumps(found | {"threads": torch.get_num_threads(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
