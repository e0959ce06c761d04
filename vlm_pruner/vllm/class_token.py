"""What the class token of CLIP's tower attends to, for methods that choose by it, at no second pass.

vLLM's CLIP gives no attention. It computes queries and keys of the layer that supplies the features anyway: that is its
last layer, since later ones are not built. A hook notes them, and one row of attention per head is computed anew.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather


class ClassToken:
    """Notes, of the pictures that the tower has just encoded, queries and keys, and the features for the projector."""

    def __init__(self, tower: Any, projector: nn.Module) -> None:
        self._attention: Any = tower.vision_model.encoder.layers[-1].self_attn
        self._qkv: Tensor | None = None  # [B, 1 + N, 3 c], of this rank's heads
        self._features: Tensor | None = None  # [B, N, c]
        self._attention.qkv_proj.register_forward_hook(self._note_qkv)
        projector.register_forward_pre_hook(self._note_features)

    def _note_qkv(self, module: nn.Module, args: Any, output: Any) -> None:
        self._qkv = output[0] if isinstance(output, tuple) else output

    def _note_features(self, module: nn.Module, args: Any) -> None:
        self._features = args[0]

    def take(self) -> list[dict[str, Tensor]]:
        """Fields of a View for each picture, which are then forgotten."""
        qkv, features, self._qkv, self._features = self._qkv, self._features, None, None
        if qkv is None or features is None:
            raise RuntimeError("the vision tower ran past VLM-Pruner's hooks")
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
