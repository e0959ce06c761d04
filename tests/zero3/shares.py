"""Run by two processes: how much of a model each holds, and what `prune` says to tensor parallelism. Writes JSON."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

import vlm_pruner as vp
from llava.eval.checkpoint import load_checkpoint
from llava.eval.processes import this_process


def divided(folder: str) -> dict[str, Any]:
    """Numbers of weights in this process and in all: of the decoder's layers, and of everything else."""
    flags = dict.fromkeys(("model_base", "device_map", "dtype", "attn_implementation"))
    model = load_checkpoint(Namespace(model_path=folder, device="cpu", **flags)).model
    layers = {id(weight) for weight in model.get_decoder().layers.parameters()}
    counted = {"layers": [0, 0], "rest": [0, 0]}
    for weight in model.parameters():
        own = counted["layers" if id(weight) in layers else "rest"]
        own[0] += weight.numel()
        own[1] += weight.ds_numel
    parts = sum(weight.ds_tensor.numel() for weight in model.get_decoder().layers.parameters())
    return {**counted, "parts": parts}


def tensor_parallel(folder: str) -> dict[str, Any]:
    """What `prune` says to a model loaded with `tp_plan`, and whether its dense answer is the undivided model's."""
    from transformers import LlavaForConditionalGeneration

    from tests import families

    batch = next(one for one in families.FAMILIES if one.name == "llava").inputs(families.ONE)
    whole = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    model = LlavaForConditionalGeneration.from_pretrained(folder, tp_plan="auto").eval()
    ids = [one.generate(**batch, max_new_tokens=5, do_sample=False) for one in (whole, model)]
    try:
        with vp.prune(model, vp.CentrifugalPruner(reduction_ratio=0.5)):
            said = ""
    except vp.errors.PruningError as error:
        said = str(error)
    return {"said": said, "equal": torch.equal(*ids)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, folder, out = sys.argv[1:]
    with this_process() as team:
        told = {"divided": divided, "tensor_parallel": tensor_parallel}[task](folder)
        Path(f"{out}.{team.rank}").write_text(json.dumps(told), encoding="utf-8")
