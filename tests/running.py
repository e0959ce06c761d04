"""Runs of a model, dense and pruned, and what they leave on it: helpers that several test files share."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import vlm_pruner as vp
from tests.families import Family, Prompt
from vlm_pruner import adapters
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.methods import Pruner
from vlm_pruner.receipts import ImageReceipt, Receipt


def forward(
    model: Any, batch: dict[str, Tensor], method: Pruner | None = None, **more: Any
) -> tuple[Any, list[ImageReceipt]]:
    """One forward call's output, and the prefill's images."""
    with torch.no_grad():
        if method is None:
            return model(**batch, **more), []
        with vp.prune(model, method) as pruning:
            out = model(**batch, **more)
    return out, pruning.receipts[0].images


def generate(
    model: Any, batch: dict[str, Tensor], method: Pruner | None = None, new: int = 4
) -> tuple[Tensor, Tensor, list[ImageReceipt]]:
    """Greedy tokens [B, new], their logits [B, new, vocabulary], and the prefill's images."""
    options = {"do_sample": False, "max_new_tokens": new, "output_logits": True, "return_dict_in_generate": True}
    with ExitStack() as stack:
        pruning = stack.enter_context(vp.prune(model, method)) if method else None
        out = model.generate(**batch, **options)
    return out.sequences[:, -new:], torch.stack(out.logits, 1), pruning.receipts[0].images if pruning else []


def feed(model: Any, cache: Any, ids: list[int], **more: Any) -> Tensor:
    """Logits [vocabulary] after one row's next tokens."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), **cache_argument(cache), use_cache=True, **more).logits[0, -1]


def prefill(family: Family, cache: DynamicCache, turns: list[Prompt], new: list[Prompt]) -> Tensor:
    """Logits [vocabulary] after `turns`, of which the cache has all but `new`, the last ones."""
    whole, start = family.dialogue(*turns), cache.get_seq_length()
    call = {"input_ids": whole["input_ids"][:, start:], **family.seen(family.inputs(*new))}
    call |= family.positions(family.model, whole, start)
    return family.model(**call, **cache_argument(cache), use_cache=True).logits[0, -1]


def lengths_seen(model: Any, method: Pruner, batch: dict[str, Tensor]) -> tuple[list[int], Receipt]:
    """Sequence length that each decoder layer really ran on, and the receipt."""
    seen: list[int] = []

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).shape[1])

    with vp.prune(model, method) as pruning:  # our hooks come after the ones that prune
        layers = adapters.find(model).decoder.layers
        hooks = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in layers]
        with torch.no_grad():
            model(**batch)
        for hook in hooks:
            hook.remove()
    return seen, pruning.receipts[0]


def dropped(images: list[ImageReceipt]) -> list[int]:
    """Positions of one row that are dropped."""
    offsets = [image.offsets or range(image.n_before) for image in images]
    return [
        image.span[0] + own[i]
        for image, own in zip(images, offsets, strict=True)
        for i in sorted(set(range(image.n_before)) - set(image.indices))
    ]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


def hooks(model: Any) -> int:
    """How many forward hooks the model has."""
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


def state(model: Any) -> dict[str, list[str]]:
    """Names of the attributes of every module."""
    return {name: sorted(vars(module)) for name, module in model.named_modules()}
