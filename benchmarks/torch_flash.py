"""PyTorch's own FlashAttention-2 kernel under the names of the package flash-attn, for machines without that package.

transformers' path to FlashAttention runs as with the package: what it makes of masks, of caches and of position ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers.modeling_flash_attention_utils as library
from torch import Tensor

from tests.flash import as_transformers_looks_for


def flash_attn_func(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False
) -> Tensor:
    """[B, Q, heads, c] of sequences of one length."""
    return _attend(q, k, v, None, None, q.shape[1], k.shape[1], dropout_p, softmax_scale, causal)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> Tensor:
    """[tokens, heads, c] of several sequences, one after another."""
    return _attend(
        q, k, v, cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k), dropout_p, softmax_scale, causal
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, starts: Any, key_starts: Any, longest: int, longest_key: int, *rest: Any):
    dropout, scale, causal = rest
    return torch.ops.aten._flash_attention_forward(
        q, k, v, starts, key_starts, longest, longest_key, dropout, causal, False, scale=scale
    )[0]


@contextmanager
def installed() -> Iterator[None]:
    """Lets transformers find these functions as flash_attention_2."""
    found = as_transformers_looks_for(flash_attn_func, flash_attn_varlen_func)
    with mock.patch.multiple(library, create=True, **found):
        yield
