"""What a prefill costs, dense and pruned: key-value bytes and floating-point operations. Plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama-like decoder: grouped attention heads, and an MLP of three matrices (gate, up, down)."""

    layers: int
    hidden: int  # d
    intermediate: int  # m
    heads: int
    key_value_heads: int
    head_size: int

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From the configuration of a transformers language model (for a LLaVA: its `text_config`)."""
        heads = config.num_attention_heads
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            heads=heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        )


def tokens_per_layer(shape: DecoderShape, text: int, visual: int, kept: int, layer: int) -> list[int]:
    """Tokens that each decoder layer sees: all before `layer`, text and `kept` visual tokens from it on."""
    return [text + (visual if i < layer else kept) for i in range(shape.layers)]


def kv_bytes(
    shape: DecoderShape, text: int, visual: int, kept: int, layer: int, *, bytes_per_number: int, batch: int = 1
) -> int:
    """Bytes of the key-value cache after `text` (prompt and generated) and `visual` tokens, `kept` from `layer` on.

    kept == visual is the dense model. bytes_per_number: 2 for float16 and bfloat16, 4 for float32.
    """
    per_token = 2 * shape.key_value_heads * shape.head_size * bytes_per_number  # a key and a value
    return batch * per_token * sum(tokens_per_layer(shape, text, visual, kept, layer))


def layer_flops(shape: DecoderShape, tokens: int) -> int:
    """Floating-point operations of one decoder layer on a prefill of `tokens`; a multiplication with addition is 2.

    Attention counts the causal half: token i attends to i + 1 keys. Norms and activations are left out.
    """
    queries, keys = shape.heads * shape.head_size, shape.key_value_heads * shape.head_size
    projections = shape.hidden * (2 * queries + 2 * keys)  # q and output; k and v
    mlp = 3 * shape.hidden * shape.intermediate
    attention = 2 * queries * (tokens * (tokens + 1) // 2)  # scores, and their sum over values
    return 2 * (tokens * (projections + mlp) + attention)


def prefill_flops(shape: DecoderShape, text: int, visual: int, kept: int, layer: int) -> int:
    """Floating-point operations of the decoder layers for one prompt; embeddings and the output head are left out."""
    return sum(layer_flops(shape, tokens) for tokens in tokens_per_layer(shape, text, visual, kept, layer))
