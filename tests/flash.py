"""FlashAttention-2's functions in slow, plain torch, installed where transformers looks for the real ones.

So transformers' own path to them runs: what it makes of masks, of caches and of position ids.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import transformers.modeling_flash_attention_utils as library
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, softmax_scale: float, causal: bool) -> Tensor:
    """One sequence: [Q, heads, c], [K, key heads, c] -> [Q, heads, c]. The last query looks at the last key."""
    groups = queries.shape[1] // keys.shape[1]
    keys, values = (part.repeat_interleave(groups, dim=1) for part in (keys, values))
    scores = torch.einsum("qhc,khc->hqk", queries, keys) * softmax_scale
    if causal:
        unseen = torch.ones(scores.shape[1:]).triu(diagonal=1 + len(keys) - len(queries)).bool()
        scores = scores.masked_fill(unseen, -torch.inf)
    return torch.einsum("hqk,khc->qhc", scores.softmax(dim=-1), values)


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale=None, causal=False
) -> Tensor:
    return torch.stack([attend(*rows, softmax_scale, causal) for rows in zip(q, k, v, strict=True)])


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale=None,
    causal=False,
) -> Tensor:
    """Several sequences in one, separated by `cu_seqlens`."""
    queries = q.split(cu_seqlens_q.diff().tolist())
    keys, values = (part.split(cu_seqlens_k.diff().tolist()) for part in (k, v))
    return torch.cat([attend(*rows, softmax_scale, causal) for rows in zip(queries, keys, values, strict=True)])


def as_transformers_looks_for(func: Any, varlen: Any) -> dict[str, Any]:
    """The attributes by which transformers finds `func` and `varlen` as flash_attention_2."""
    return {
        "_loaded_implementation": "flash_attention_2",
        "_flash_fn": func,
        "_flash_varlen_fn": varlen,
        "_flash_with_kvcache_fn": None,
        "_pad_fn": library._pad_input,
        "_unpad_fn": library._unpad_input,
        "_process_flash_kwargs_fn": library._lazy_define_process_function(varlen),
        "_process_with_kvcache_kwargs_fn": dict,
    }


def install(monkeypatch: Any) -> None:
    """Lets transformers find these functions as flash_attention_2."""
    module: ModuleType = library
    for name, value in as_transformers_looks_for(flash_attn_func, flash_attn_varlen_func).items():
        monkeypatch.setattr(module, name, value, raising=False)  # older versions know fewer of them
