"""Recomputes single rows of a decoder layer's attention: no [T, T] map, whatever kernel the model runs.

The layer's own code computes queries and keys, with all that it does to them (norms, biases, partial or interleaved
rotary embedding, scaling). transformers' attention modules pass them to a function that the configuration names. A copy
of the layer with shared weights names our function instead, which takes the softmax of the requested rows.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.decoder.layer_call import LayerCall
from vlm_pruner.decoder.masks import LayerMask
from vlm_pruner.errors import PruningError

_FUNCTION = "vlm_pruner_rows"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class _Found(Exception):
    """The layer has made its queries and keys."""


class _Rows:
    """The rows that the attention function should compute, and its result."""

    def __init__(self, mask: LayerMask, row: int, queries: Tensor, positions: Tensor | None) -> None:
        self.allowed = mask.allowed(row, queries)  # bool [heads or 1, Q, keys]
        self.terms = mask.terms(row, queries)  # [heads or 1, Q, keys], added to their logits; None: nothing
        self.positions = positions  # of the Q rows among the incoming queries; None: all of them
        self.attention: Tensor | None = None


class _Keys:
    """Replaces the layer's cache: stores nothing, and returns the keys that are already known."""

    def __init__(self, keys: Tensor | None) -> None:
        self._keys = keys

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return (keys if self._keys is None else self._keys.to(keys)), values


def check_attention(layer: nn.Module) -> None:
    """Raises PruningError if rows of the layer's attention cannot be recomputed."""
    attention = _attention_of(layer)
    module = None if attention is None else sys.modules.get(type(attention[1]).__module__)
    if not hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        raise PruningError(
            f"{type(layer).__name__} does not hand queries and keys to one of transformers' attention functions, so "
            "its attention cannot be read; use a method that does not look at attention, such as vlm-pruner or random"
        )
    if attention is not None and hasattr(attention[1], "kv_lora_rank"):
        raise PruningError(
            f"{type(layer).__name__} attends through a latent (kv_lora_rank), whose rows did not equal eager "
            "attention's when checked; use a method that does not look at attention, such as vlm-pruner or random"
        )


def rows_before(call: LayerCall, mask: LayerMask, row: int, positions: Tensor, keys: Tensor) -> Tensor:
    """Attention of the tokens at `positions`, long [Q], of one batch row: float32 [heads, Q, past + T].

    keys: [key heads, >= past + T, head size], of that row, as the layer's cache returns them.
    """
    wanted = _Rows(mask, row, positions, None)
    return _run(_cut(call, row, positions), _Keys(keys[None, :, : mask.past + mask.new]), wanted)


def rows_now(call: LayerCall, mask: LayerMask, row: int, positions: Tensor) -> Tensor:
    """The same for a layer that has not run yet and has no cached keys."""
    wanted = _Rows(mask, row, positions, positions)
    return _run(_cut(call, row, torch.arange(mask.new, device="cpu")), _Keys(None), wanted)


def _cut(call: LayerCall, row: int, positions: Tensor) -> LayerCall:
    """The call restricted to some tokens of one batch row."""
    rows = call.hidden.shape[0]

    def own(part: Tensor) -> Tensor:
        """[..., 1, Q, c] of [..., B or 1, T, c]."""
        part = part.narrow(-3, row if part.shape[-3] == rows else 0, 1)
        return part.index_select(-2, positions.to(part.device))

    arguments: dict[str, Any] = {
        "attention_mask": None,
        "position_embeddings": tuple(own(part) for part in call.phases),
    }
    ids = call.kwargs.get("position_ids")
    if isinstance(ids, Tensor) and ids.ndim >= 2:
        arguments["position_ids"] = own(ids[..., None])[..., 0]
    return call.updated(arguments).with_hidden(own(call.hidden))


@torch.no_grad()
def _run(call: LayerCall, cache: _Keys, wanted: _Rows) -> Tensor:
    """Runs the layer's copy up to its attention."""
    _register()
    name, attention = _attention_of(call.layer) or ("", nn.Identity())
    asking = _copy(attention, config=_Config(attention.config), vlm_pruner_rows=wanted)
    layer = _copy(call.layer, _modules={**call.layer._modules, name: asking})
    call = call.with_cache(cache)
    with contextlib.suppress(_Found):
        type(call.layer).forward(layer, *call.args, **call.kwargs)
    if wanted.attention is None:
        raise PruningError(
            f"{type(call.layer).__name__} did not call the attention function that its configuration names, so its "
            "attention cannot be read; use a method that does not look at attention, such as vlm-pruner or random"
        )
    return wanted.attention


def _attention_of(layer: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and module of the layer's attention."""
    found = [
        (name, child)
        for name, child in layer.named_children()
        if "attention" in type(child).__name__.lower() and hasattr(child, "config")
    ]
    return found[0] if len(found) == 1 else None


def _copy(module: nn.Module, **changes: Any) -> nn.Module:
    """A second module around the same weights, without hooks, which belong to the model's own runs."""
    twin = object.__new__(type(module))
    kept = {name: value for name, value in vars(module).items() if name != "forward"}  # such as accelerate's
    vars(twin).update({**kept, **{name: {} for name in _HOOKS}, **changes})
    return twin


class _Config:
    """A configuration that names a different attention function."""

    def __init__(self, config: Any) -> None:
        self._config = config

    _attn_implementation = _FUNCTION

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _register() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if _FUNCTION not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_FUNCTION, _attention_rows)


def _attention_rows(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any = None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> Any:
    """Replaces attention. query: [1, heads, Q, head size], key: [1, key heads, keys, head size]."""
    wanted: _Rows = module.vlm_pruner_rows
    queries, keys = query[0].float(), key[0].float()
    if wanted.positions is not None:
        queries = queries[:, wanted.positions.to(queries.device)]
    grouped = queries.unflatten(0, (keys.shape[0], -1))  # [key heads, heads per key head, Q, head size]
    scores = (grouped @ keys[:, None].transpose(2, 3)).flatten(0, 1)
    scores = scores * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if wanted.terms is not None:
        scores = scores + wanted.terms.to(scores)
    scores = scores.masked_fill(~wanted.allowed.to(scores.device), -torch.inf)
    if s_aux is None:
        wanted.attention = scores.softmax(dim=-1)
    else:  # each head's sink takes a share of attention
        sinks = s_aux.reshape(-1, 1, 1).expand(-1, scores.shape[1], 1).to(scores)
        wanted.attention = torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]
    raise _Found
