"""Run modes where pruning would silently do nothing or corrupt results. Each raises an error that names the mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from vlm_pruner.decoder.layer_call import LayerCall
from vlm_pruner.errors import PruningError


def check_not_compiled(outer: Iterable[nn.Module], layers: Iterable[nn.Module]) -> None:
    """Raises PruningError if one of the modules is compiled, because then its hooks may not run.

    outer: modules with decoder layers inside. A single layer's compiled `forward` is fine: hooks run around it.
    """
    for module in {*outer, *layers}:
        if module._compiled_call_impl is not None:
            raise _compiled(module, "leave .compile() out")
    for module in outer:
        if hasattr(module, "_orig_mod"):
            raise _compiled(module, "put its _orig_mod in its place")
        if hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise _compiled(module, "delete its compiled `forward`")


def _compiled(module: nn.Module, remedy: str) -> PruningError:
    inner = getattr(module, "_orig_mod", module)
    return PruningError(
        f"{type(inner).__name__} is compiled by torch.compile, which does not look at hooks that come later, and "
        f"pruning is made of them; {remedy}, or compile the `forward` of single decoder layers"
    )


def check_heads_are_whole(model: nn.Module) -> None:
    """Raises PruningError for a model whose attention heads transformers has divided among processes (tp_plan)."""
    processes = getattr(model, "_tp_size", None) or 1
    if processes > 1:
        raise PruningError(
            f"{type(model).__name__} is divided among {processes} processes by tensor parallelism: each has other "
            "attention heads, and so other keys, by which it would keep other tokens than the rest; leave tp_plan out, "
            "and divide the model by layers (device_map='auto') or by DeepSpeed ZeRO-3 (docs/scale.md)"
        )


def check_not_checkpointed(layers: Iterable[nn.Module]) -> None:
    """Raises PruningError if a backward pass would run the layers a second time."""
    if any(True for layer in layers if layer.training and getattr(layer, "gradient_checkpointing", False)):
        raise PruningError(
            "gradient checkpointing runs every layer again in the backward pass, without its cache, and pruning cannot "
            "follow; call model.gradient_checkpointing_disable() or model.eval()"
        )


def check_room_is_hidden(cache: Any, mask: Any, attention: str | None) -> None:
    """Raises PruningError for FlashAttention with a static cache and no mask, which attends to unused room too."""
    if mask is None and getattr(cache, "is_compileable", False) and "flash" in (attention or ""):
        raise PruningError(
            f"attn_implementation={attention!r} with a static cache and no padding: transformers passes no mask, and "
            "unused room in the cache is attended to, dense or pruned; use a dynamic cache, or sdpa"
        )


def counting_positions(call: dict[str, Any]) -> str | None:
    """The name of an argument of the model's call that counts positions of the un-pruned sequence, if any.

    Labels have an entry per position, and a tensor of logits_to_keep contains positions.
    """
    named = [name for name in ("labels", "logits_to_keep") if isinstance(call.get(name), Tensor)]
    return named[0] if named else None


_VARLEN = ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def check_not_packed(call: Mapping[str, Any]) -> None:
    """Raises PruningError if a call separates sequences in one row by their lengths."""
    given = [name for name in _VARLEN if call.get(name) is not None]
    if given:
        raise PruningError(
            f"{given[0]} gives the lengths of sequences packed into one row, and those change when tokens are dropped; "
            "give each prompt a row of its own, or pass position_ids that start anew with each prompt"
        )


_KNOWN = {"hidden_states", "attention_mask", "position_ids", "position_embeddings", "cache_position"}


def check_known_arguments(call: LayerCall) -> None:
    """Raises PruningError if a layer gets another per-token argument, which would have to be shortened too."""
    check_not_packed(call.kwargs)
    rows, length = call.hidden.shape[:2]
    name = type(call.layer).__name__
    for key, value in call.kwargs.items():
        if key not in _KNOWN and isinstance(value, Tensor) and length in value.shape[: call.hidden.ndim] and length > 1:
            raise PruningError(
                f"{name} is given {key} of shape {list(value.shape)} for {length} tokens, which pruning does not know "
                "how to shorten; models with this decoder are not supported"
            )
    if not _are_phases(call.kwargs.get("position_embeddings"), rows, length):
        raise PruningError(
            f"{name} is not given rotary phases as (cosine, sine) for each token, so pruning cannot shorten them; "
            "models with this decoder are not supported"
        )


def _are_phases(given: Any, rows: int, length: int) -> bool:
    """Whether it is a tuple of tensors [..., B or 1, T, c]."""
    return isinstance(given, tuple) and all(
        isinstance(part, Tensor) and part.ndim >= 3 and part.shape[-2] == length and part.shape[-3] in (1, rows)
        for part in given
    )


def check_nothing_counts_positions(by_position: str | None) -> None:
    """Raises PruningError if there is such an argument, from `counting_positions`."""
    if by_position is not None:
        raise PruningError(
            f"{by_position} counts positions in the un-pruned sequence, and a pruned prefill's logits have others; "
            f"leave {by_position} out, or call the model outside the pruning context"
        )
