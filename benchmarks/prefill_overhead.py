"""Overhead of pruning itself: the time of a prefill that keeps every token, relative to the dense one.

    python benchmarks/prefill_overhead.py --model PATH [--repeats 300]

PATH is a Qwen2-VL checkpoint in transformers' layout. Dense and pruned calls alternate, so that a busy machine slows
both alike; the median of the differences between neighbours counts, with a 95 % interval of a bootstrap over
neighbours. The last line is one JSON document.
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
from transformers import Qwen2VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vlm_pruner as vp
from vlm_pruner.speed.summary import over_rounds

GRID = (1, 24, 16)  # patches; a token is 2 x 2 of them
TEXT = 36  # tokens


def inputs(model: Qwen2VLForConditionalGeneration) -> dict[str, torch.Tensor]:
    config, vision = model.config, model.config.vision_config
    tokens = GRID[1] * GRID[2] // vision.spatial_merge_size**2
    ids = torch.tensor([[*range(1, TEXT), *[config.image_token_id] * tokens, 1]])
    pixels = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return {
        "input_ids": ids,
        "mm_token_type_ids": (ids == config.image_token_id).int(),
        "pixel_values": torch.randn(GRID[1] * GRID[2], pixels, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([GRID]),
    }


@torch.no_grad()
def overhead(model: Qwen2VLForConditionalGeneration, repeats: int = 300) -> dict[str, float]:
    """Milliseconds of a dense prefill, what keeping every token adds, and the ratio with its interval."""
    batch, pruning = inputs(model), vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.0))

    def milliseconds() -> float:
        start = time.perf_counter()
        model(**batch)
        return 1000 * (time.perf_counter() - start)

    milliseconds()
    pairs = []
    for _ in range(repeats):
        dense = milliseconds()
        with pruning:
            pairs.append((dense, milliseconds()))
    share = over_rounds(lambda drawn: _more(drawn) / _dense(drawn), pairs)
    record = {"dense_ms": _dense(pairs), "more_ms": _more(pairs), "overhead": share.pop("value"), **share}
    return record | {"tokens": batch["input_ids"].numel(), "repeats": repeats}


def _dense(pairs: Sequence[tuple[float, float]]) -> float:
    return median(dense for dense, _ in pairs)


def _more(pairs: Sequence[tuple[float, float]]) -> float:
    return median(kept - dense for dense, kept in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=300)
    args = parser.parse_args()
    model = Qwen2VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    record = overhead(model, args.repeats)
    print(json.dumps(record | {"threads": torch.get_num_threads(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
