"""Reads what CLIP's class token attends to, without a second pass, for methods that choose by it.

vLLM's CLIP returns no attention. It computes queries and keys of the layer that supplies the features anyway: that is
its last layer, since later ones are not built. A hook records them; from them we compute one row of attention per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather


class ClassToken:
    """Taps a tower's last layer, and the projector, while it is watching."""

    def __init__(self, tower: Any, projector: nn.Module) -> None:
        self._attention: Any = tower.vision_model.encoder.layers[-1].self_attn
        self._projector = projector

    @contextmanager
    def watching(self) -> Iterator[list[dict[str, Tensor]]]:
        """Yields a list. When the block ends, it holds fields of a View for each picture encoded in the block."""
        seen: list[dict[str, Tensor]] = []
        noted: dict[str, Tensor] = {}  # qkv: [B, 1 + N, 3 c], of this rank's heads. features: [B, N, c]

        def note_qkv(module: nn.Module, args: Any, output: Any) -> None:
            noted["qkv"] = output[0] if isinstance(output, tuple) else output

        def note_features(module: nn.Module, args: Any) -> None:
            noted["features"] = args[0]

        hooks = [
            self._attention.qkv_proj.register_forward_hook(note_qkv),
            self._projector.register_forward_pre_hook(note_features),
        ]
        try:
            yield seen
            seen += self._fields(noted["qkv"], noted["features"])
        finally:
            for hook in hooks:
                hook.remove()

    def _fields(self, qkv: Tensor, features: Tensor) -> list[dict[str, Tensor]]:
        rows = class_attention(qkv, self._attention.num_heads_per_partition, self._attention.scale)
        if self._attention.tp_size > 1:
            rows = tensor_model_parallel_all_gather(rows, dim=1)
        return [{"cls_attention": row, "patch_features": own} for row, own in zip(rows, features, strict=True)]


def class_attention(qkv: Tensor, heads: int, scale: float) -> Tensor:
    """Float32 [B, heads, N], the class token's attention to the patches. qkv: [B, 1 + N, 3 c], that token first."""
    query, keys, _ = qkv.float().chunk(3, dim=-1)
    query, keys = query[:, :1].unflatten(-1, (heads, -1)), keys.unflatten(-1, (heads, -1))
    scores = (query * keys).sum(dim=-1) * scale  # [B, 1 + N, heads]
    return scores.softmax(dim=1)[:, 1:].transpose(1, 2)
