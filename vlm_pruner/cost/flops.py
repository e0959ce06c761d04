"""The cost of a prefill and of a decoding step, dense and pruned: operations, bytes, key-value cache. Plain arithmetic.

Conventions, each checked in `tests/test_cost.py` against torch's own counter and real caches:

- A multiply-add is 2 floating-point operations. Matrix products and attention count; norms, rotary phases, activations
  and the embedding table do not (below 1 % of a real decoder).
- Attention counts as far as it is needed: token i attends to i + 1 keys. Eager attention computes the full square, and
  torch's `FlopCounterMode` assumes it for fused attention.
- Times include the output head at one position per row, which is what `generate` computes; `prefill_flops` does not.
- Lengths are padded lengths: a row padded to match a longer one costs as much as that one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

CHANNELS = 256  # that selection compares tokens by: CentrifugalPruner's default


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a Llama-like decoder: grouped attention heads, and an MLP of three matrices (gate, up, down).

    vocabulary: rows of the output head; 0 leaves the head out.
    experts:    (experts, experts per token) of a mixture of experts; `intermediate` is the size of one expert.
                (0, 1) is a dense MLP.
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
        """Reads the configuration of a transformers language model (for a LLaVA: its `text_config`).

        Raises ValueError if only some layers are mixtures of experts.
        """
        heads = config.num_attention_heads
        experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None) or 0
        if experts and (getattr(config, "mlp_only_layers", None) or getattr(config, "decoder_sparse_step", 1) != 1):
            raise ValueError("only some layers of this decoder have experts; the cost model needs all or none to")
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
        """Width of all key heads together; values are equally wide."""
        return self.key_value_heads * self.head_size

    @property
    def attention_weights(self) -> int:
        """Parameters of one layer's q, k, v and output matrices."""
        return self.hidden * (2 * self.queries + 2 * self.keys)

    def mlp_weights(self, tokens: int) -> int:
        """Parameters of one layer's MLP, router included, that `tokens` tokens touch at most."""
        experts, used = self.experts
        touched = min(experts, used * tokens) if experts else 1
        return self.hidden * (3 * self.intermediate * touched + experts)


def lengths(shape: DecoderShape, text: int, visual: int, steps: Iterable[Sequence[int]] = ()) -> list[int]:
    """Tokens that each decoder layer sees after any number of pruning steps; no steps means the dense model.

    steps: (layer, visual tokens from that layer on), as in receipts, in ascending order of layers.
    Raises ValueError for layers out of order or outside the decoder, and for steps that add tokens.
    """
    found = [text + visual] * shape.layers
    before = (0, visual)
    for layer, left in steps:
        if not (before[0] <= layer < shape.layers and 0 <= left <= before[1]):
            raise ValueError(
                f"step ({layer}, {left}) cannot follow {before}: layers ascend and are below {shape.layers}, and "
                "visual tokens never increase"
            )
        found[layer:] = [text + left] * (shape.layers - layer)
        before = (layer, left)
    return found


def kv_bytes(shape: DecoderShape, cached: Iterable[int], *, bytes_per_number: int, batch: int = 1) -> int:
    """Bytes of a key-value cache whose layers hold `cached` tokens of each of `batch` rows.

    bytes_per_number: 2 for float16 and bfloat16, 4 for float32.
    """
    return batch * 2 * shape.keys * bytes_per_number * sum(cached)  # a key and a value


def layer_flops(shape: DecoderShape, tokens: int, *, past: int = 0) -> int:
    """Operations of one decoder layer on `tokens` new tokens of one row, with `past` tokens already in its cache."""
    experts, used = shape.experts
    mlp = shape.hidden * (3 * shape.intermediate * used + experts)
    pairs = tokens * past + tokens * (tokens + 1) // 2
    attention = 2 * shape.queries * pairs  # scores, and the weighted sum of values
    return 2 * (tokens * (shape.attention_weights + mlp) + attention)


def prefill_flops(shape: DecoderShape, tokens: Iterable[int]) -> int:
    """Operations of the decoder layers for one prompt, given the tokens that each layer runs on (see `lengths`)."""
    return sum(layer_flops(shape, n) for n in tokens)


def head_flops(shape: DecoderShape, positions: int) -> int:
    """Operations of the output head for the logits of `positions` positions."""
    return 2 * shape.hidden * shape.vocabulary * positions


def layer_bytes(shape: DecoderShape, tokens: int, *, bytes_per_number: int, batch: int = 1, past: int = 0) -> int:
    """Bytes that one decoder layer reads and writes: its weights once, its activations, and cached keys and values.

    Every matrix product and attention reads its input and writes its output; everything else counts as fused into them.
    """
    d, q, k, used = shape.hidden, shape.queries, shape.keys, shape.experts[1]
    projections = (d + q + 2 * k) + (q + d)
    attention = (q + 2 * k) + q
    mlp = used * ((d + 2 * shape.intermediate) + (shape.intermediate + d))
    activations = batch * (tokens * (projections + attention + mlp) + 2 * k * past)
    return bytes_per_number * (shape.attention_weights + shape.mlp_weights(batch * tokens) + activations)


def head_bytes(shape: DecoderShape, positions: int, *, bytes_per_number: int) -> int:
    """Bytes that the output head reads and writes for the logits of `positions` positions."""
    return bytes_per_number * (shape.hidden * shape.vocabulary + positions * (shape.hidden + shape.vocabulary))


@dataclass(frozen=True)
class Machine:
    """A processor's peak rates in one number format. `vlm_pruner.cost.machine` looks them up or measures them."""

    name: str
    flops: float  # per second, dense matrix products
    bandwidth: float  # bytes per second between memory and processor

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bandwidth > 0):
            raise ValueError(f"flops={self.flops} and bandwidth={self.bandwidth} per second must be positive")

    def seconds(self, flops: float, traffic: float) -> float:
        """The shortest possible time for `flops` operations on `traffic` bytes: that of the slower of the two."""
        return max(flops / self.flops, traffic / self.bandwidth)


def prefill_seconds(
    shape: DecoderShape, tokens: Iterable[int], machine: Machine, *, bytes_per_number: int, batch: int = 1
) -> float:
    """Shortest possible prefill whose layers run on `tokens` tokens of each row. Selection is not included."""
    return _call_seconds(shape, ((n, 0) for n in tokens), machine, bytes_per_number, batch)


def step_seconds(
    shape: DecoderShape, cached: Iterable[int], machine: Machine, *, bytes_per_number: int, batch: int = 1
) -> float:
    """Shortest possible decoding step with `cached` tokens of each row in the cache of each layer."""
    return _call_seconds(shape, ((1, n) for n in cached), machine, bytes_per_number, batch)


def _call_seconds(
    shape: DecoderShape, layers: Iterable[tuple[int, int]], machine: Machine, bytes_per_number: int, batch: int
) -> float:
    """Shortest possible call of all layers and the head. layers: (new tokens, cached tokens) of each row in each."""
    total = sum(
        machine.seconds(
            batch * layer_flops(shape, new, past=past),
            layer_bytes(shape, new, bytes_per_number=bytes_per_number, batch=batch, past=past),
        )
        for new, past in layers
    )
    head = head_bytes(shape, batch, bytes_per_number=bytes_per_number)
    return total + machine.seconds(head_flops(shape, batch), head)


def selection_seconds(shape: DecoderShape, visual: int, kept: int, machine: Machine, *, bytes_per_number: int) -> float:
    """Shortest possible time to select `kept` of `visual` tokens with running maxima and to merge the rest into them.

    One pass over the tokens' hidden states and keys, and a multiply-add per screened channel for each pair of a token
    and a kept token. Real selections also wait for each step to finish, which this leaves out.
    """
    traffic = bytes_per_number * visual * (shape.hidden + shape.keys)
    return machine.seconds(2 * visual * kept * CHANNELS, traffic)
