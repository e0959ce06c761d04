"""What a prefill and a decoding step cost, dense and pruned: operations, bytes, key-value cache. Plain arithmetic.

Conventions, all of which `tests/test_cost.py` checks against torch's own counter and real caches:

- One multiplication with its addition is 2 floating-point operations. Matrix products and attention are counted;
  norms, rotary phases, activations and the embedding table are left out (below 1 % of a real decoder).
- `causal=True` counts what attention needs: token i looks at i + 1 keys. `causal=False` counts the full square, as
  eager attention computes it and as torch's `FlopCounterMode` counts fused attention.
- The output head is counted for `logits` positions of each row: 0 leaves it out, 1 is what `generate` asks for.
- Lengths are padded lengths: a row that is packed beside a longer one costs as much as that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama-like decoder: grouped attention heads, and an MLP of three matrices (gate, up, down).

    vocabulary: rows of the output head; 0 if it does not matter.
    experts:    of a mixture of experts, how many there are and how many a token uses, `intermediate` being the size of
                one. (0, 1) is a dense MLP.
    """

    layers: int
    hidden: int  # d
    intermediate: int  # m
    heads: int
    key_value_heads: int
    head_size: int
    vocabulary: int = 0
    experts: tuple[int, int] = (0, 1)

    @classmethod
    def of(cls, config: Any) -> DecoderShape:
        """From the configuration of a transformers language model (for a LLaVA: its `text_config`).

        Raises ValueError for a decoder in which only some layers are mixtures of experts.
        """
        heads = config.num_attention_heads
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
        if experts and (getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1):
            raise ValueError("only some layers of this decoder have experts; costs are known where all or none have")
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.moe_intermediate_size if experts else config.intermediate_size,
            heads=heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
            vocabulary=getattr(config, "vocab_size", None) or 0,
            experts=(experts, config.num_experts_per_tok) if experts else (0, 1),
        )

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all key heads together; values have the same."""
        return self.key_value_heads * self.head_size

    @property
    def attention_weights(self) -> int:
        """Parameters of one layer's q, k, v and output matrices."""
        return self.hidden * (2 * self.queries + 2 * self.keys)

    def mlp_weights(self, tokens: int | None = None) -> int:
        """Parameters of one layer's MLP, router included: all, or those that `tokens` tokens can touch at most."""
        experts, used = self.experts
        touched = 1 if not experts else experts if tokens is None else min(experts, used * tokens)
        return self.hidden * (3 * self.intermediate * touched + experts)


# Lengths: how many tokens of each row every decoder layer runs on, or holds in its cache.


def tokens_per_layer(shape: DecoderShape, text: int, visual: int, kept: int, layer: int) -> list[int]:
    """Tokens that each decoder layer sees: all before `layer`, text and `kept` visual tokens from it on."""
    return lengths(shape, text, visual, [(layer, kept)])


def lengths(shape: DecoderShape, text: int, visual: int, steps: Iterable[Sequence[int]] = ()) -> list[int]:
    """Tokens that each decoder layer sees, with any number of pruning steps; without one, the dense model's.

    steps: (layer, visual tokens that are left from it on), as receipts have them, in order of layers.
    Raises ValueError for layers out of order or outside the decoder, and for steps that add tokens.
    """
    found = [text + visual] * shape.layers
    before = (0, visual)
    for layer, left in steps:
        if not (before[0] <= layer < shape.layers and 0 <= left <= before[1]):
            raise ValueError(
                f"step ({layer}, {left}) cannot follow {before}: layers ascend and are below {shape.layers}, visual "
                "tokens only become fewer"
            )
        found[layer:] = [text + left] * (shape.layers - layer)
        before = (layer, left)
    return found


# The key-value cache.


def kv_bytes(
    shape: DecoderShape, text: int, visual: int, kept: int, layer: int, *, bytes_per_number: int, batch: int = 1
) -> int:
    """Bytes of the key-value cache after `text` (prompt and generated) and `visual` tokens, `kept` from `layer` on.

    kept == visual is the dense model. bytes_per_number: 2 for float16 and bfloat16, 4 for float32.
    """
    held = tokens_per_layer(shape, text, visual, kept, layer)
    return cache_bytes(shape, held, bytes_per_number=bytes_per_number, batch=batch)


def cache_bytes(shape: DecoderShape, held: Iterable[int], *, bytes_per_number: int, batch: int = 1) -> int:
    """Bytes of a key-value cache whose layers hold `held` tokens of each of `batch` rows."""
    return batch * 2 * shape.keys * bytes_per_number * sum(held)  # a key and a value


# Floating-point operations.


def layer_flops(shape: DecoderShape, tokens: int, *, causal: bool = True, past: int = 0) -> int:
    """Operations of one decoder layer on `tokens` new tokens of one row, behind `past` tokens in its cache."""
    experts, used = shape.experts
    mlp = shape.hidden * (3 * shape.intermediate * used + experts)
    pairs = tokens * past + (tokens * (tokens + 1) // 2 if causal else tokens * tokens)
    attention = 2 * shape.queries * pairs  # scores, and their sum over values
    return 2 * (tokens * (shape.attention_weights + mlp) + attention)


def head_flops(shape: DecoderShape, logits: int) -> int:
    """Operations of the output head for `logits` positions."""
    return 2 * shape.hidden * shape.vocabulary * logits


def decoder_flops(
    shape: DecoderShape, tokens: Iterable[int], *, batch: int = 1, causal: bool = True, logits: int = 0
) -> int:
    """Operations of a prefill of `batch` rows whose layers run on `tokens` tokens each (see `lengths`)."""
    return batch * (sum(layer_flops(shape, n, causal=causal) for n in tokens) + head_flops(shape, logits))


def prefill_flops(shape: DecoderShape, text: int, visual: int, kept: int, layer: int, *, causal: bool = True) -> int:
    """Operations of the decoder layers for one prompt; embeddings and the output head are left out."""
    return decoder_flops(shape, tokens_per_layer(shape, text, visual, kept, layer), causal=causal)


def step_flops(shape: DecoderShape, held: Iterable[int], *, batch: int = 1) -> int:
    """Operations of one decoding step, output head included, with `held` tokens in the cache of each layer."""
    return batch * (sum(layer_flops(shape, 1, past=n) for n in held) + head_flops(shape, 1))


# Bytes that travel between memory and the processor, each weight once per call.


def layer_bytes(shape: DecoderShape, tokens: int, *, bytes_per_number: int, batch: int = 1, past: int = 0) -> int:
    """Bytes that one decoder layer reads and writes: its weights, activations, and the keys and values of the past.

    Every matrix product and attention reads its input and writes its output; all else counts as fused into these.
    """
    d, q, k, used = shape.hidden, shape.queries, shape.keys, shape.experts[1]
    projections = (d + q + 2 * k) + (q + d)
    attention = (q + 2 * k) + q
    mlp = used * ((d + 2 * shape.intermediate) + (shape.intermediate + d))
    activations = batch * (tokens * (projections + attention + mlp) + 2 * k * past)
    return bytes_per_number * (shape.attention_weights + shape.mlp_weights(batch * tokens) + activations)


def head_bytes(shape: DecoderShape, logits: int, *, bytes_per_number: int) -> int:
    """Bytes that the output head reads and writes for `logits` positions of all rows together."""
    if not logits:
        return 0
    return bytes_per_number * (shape.hidden * shape.vocabulary + logits * (shape.hidden + shape.vocabulary))


def decoder_bytes(
    shape: DecoderShape, tokens: Iterable[int], *, bytes_per_number: int, batch: int = 1, logits: int = 0
) -> int:
    """Bytes that a prefill reads and writes (see `layer_bytes`)."""
    layers = sum(layer_bytes(shape, n, bytes_per_number=bytes_per_number, batch=batch) for n in tokens)
    return layers + head_bytes(shape, batch * logits, bytes_per_number=bytes_per_number)


# The roofline: each layer takes as long as the slower of its operations and its bytes.


@dataclass(frozen=True)
class Machine:
    """A processor's peak rates in one number format. `vlm_pruner.cost.machine` knows some and measures others."""

    name: str
    flops: float  # per second, dense matrix products
    bandwidth: float  # bytes per second between memory and processor

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0):
            raise ValueError(f"flops={self.flops} and bandwidth={self.bandwidth} per second must be positive")

    def seconds(self, flops: float, traffic: float) -> float:
        """The least time for `flops` operations on `traffic` bytes."""
        return max(flops / self.flops, traffic / self.bandwidth)


def prefill_seconds(
    shape: DecoderShape,
    tokens: Iterable[int],
    machine: Machine,
    *,
    bytes_per_number: int,
    batch: int = 1,
    causal: bool = True,
    logits: int = 1,
) -> float:
    """Least time of a prefill whose layers run on `tokens` tokens of each row. Choosing tokens is not in it."""
    total = sum(
        machine.seconds(
            batch * layer_flops(shape, n, causal=causal),
            layer_bytes(shape, n, bytes_per_number=bytes_per_number, batch=batch),
        )
        for n in tokens
    )
    head = head_bytes(shape, batch * logits, bytes_per_number=bytes_per_number)
    return total + machine.seconds(head_flops(shape, batch * logits), head)


def step_seconds(
    shape: DecoderShape, held: Iterable[int], machine: Machine, *, bytes_per_number: int, batch: int = 1
) -> float:
    """Least time of one decoding step with `held` tokens of each row in the cache of each layer."""
    total = sum(
        machine.seconds(
            batch * layer_flops(shape, 1, past=n),
            layer_bytes(shape, 1, bytes_per_number=bytes_per_number, batch=batch, past=n),
        )
        for n in held
    )
    head = head_bytes(shape, batch, bytes_per_number=bytes_per_number)
    return total + machine.seconds(head_flops(shape, batch), head)


def selection_seconds(
    shape: DecoderShape, visual: int, kept: int, machine: Machine, *, bytes_per_number: int, channels: int = 256
) -> float:
    """Least time of choosing `kept` of `visual` tokens with running maxima, and of folding the rest into them.

    One pass over the tokens' hidden states and keys, and `channels` multiply-adds for each pair of a token and a kept
    token. Real selections wait for each of their steps in turn, which this leaves out.
    """
    traffic = bytes_per_number * visual * (shape.hidden + shape.keys)
    return machine.seconds(2 * visual * kept * channels, traffic)
