"""vLLM engines on small models, and the same requests in transformers. Runs in the environment of `make test-vllm`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

vllm = pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm")

import torch  # noqa: E402
from PIL.Image import Image  # noqa: E402

import vlm_pruner as vp  # noqa: E402
from vlm_pruner.serving.wish import parse  # noqa: E402

NEW = 8  # tokens of an answer
BLOCK = 32  # tokens of a KV block; the default on a CPU, 128, is longer than a pruned prompt

Wish = dict[str, Any] | None


@contextmanager
def engine(model: Any, **options: Any) -> Iterator[Any]:
    """An engine on a checkpoint folder, whose pictures and answers are in float32."""
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "block_size": BLOCK, "seed": 0}
    made = vllm.LLM(str(model), **(settings | {"disable_log_stats": False} | options))
    try:
        yield made
    finally:
        del made
        cleanup_dist_env_and_memory()


def request(text: str, pictures: Sequence[Image], wish: Any = None) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": text}
    if pictures:
        asked["multi_modal_data"] = {"image": list(pictures)}
    return asked if wish is None else {**asked, "mm_processor_kwargs": {"pruning": wish}}


def answers(made: Any, requests: list[dict[str, Any]], one_by_one: bool = False) -> list[list[int]]:
    greedy = vllm.SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
    batches = [[one] for one in requests] if one_by_one else [requests]
    outputs = [out for batch in batches for out in made.generate(batch, greedy, use_tqdm=False)]
    return [list(out.outputs[0].token_ids) for out in outputs]


def lengths(made: Any, requests: list[dict[str, Any]]) -> list[int]:
    """Prompt tokens that the engine counts."""
    once = vllm.SamplingParams(temperature=0, max_tokens=1)
    return [len(out.prompt_token_ids) for out in made.generate(requests, once, use_tqdm=False)]


def in_transformers(
    model: Any, processor: Any, text: str, pictures: Sequence[Image] | None, wish: Any = None, **settings: Any
) -> tuple[list[int], int]:
    """(answer, prompt tokens of the decoder): the same request through `vlm_pruner.prune`."""
    batch = processor(text=[text], images=pictures or None, return_tensors="pt")
    prompt = batch["input_ids"].shape[1]
    made = parse(wish) if pictures else None
    model.generation_config.eos_token_id = None  # answers go on, so that more tokens are compared
    asked = {**batch, "do_sample": False, "max_new_tokens": NEW}
    with torch.no_grad():
        if made is None:
            return model.generate(**asked)[0, prompt:].tolist(), prompt
        with vp.prune(model, replace(made.method, **settings)) as pruning:
            out = model.generate(**asked)
    return out[0, prompt:].tolist(), pruning.receipts[0].tokens_after
