"""One way of counting for all methods: tokens that each decoder layer runs on, average tokens, FLOPs, key-value bytes.

    [row] = accounting.of_receipt(pruning.receipts[-1], decoder.config, text=40)
    row.average_tokens, row.flops_share

A method with several stages, one that prunes the input, and one that prunes inside are all read from the same place,
the `steps` of a receipt: pairs of a layer and the visual tokens from there on. Counted are the decoder layers; the
vision tower, the head and the choice itself are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_pruner.cost.flops import DecoderShape, cache_bytes, decoder_flops, lengths
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner
from vlm_pruner.receipts import ImageReceipt, Receipt

Steps = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Accounting:
    """What one prompt's prefill costs, and what it would cost dense.

    text, visual: tokens of the prompt before pruning. kept: visual tokens that each decoder layer runs on.
    flops: floating-point operations of the decoder layers. kv_bytes: keys and values that the cache then holds.
    """

    text: int
    visual: int
    kept: tuple[int, ...]
    prefill_flops: int
    dense_prefill_flops: int
    kv_bytes: int
    dense_kv_bytes: int

    @property
    def average_tokens(self) -> float:
        """Visual tokens, mean over all decoder layers."""
        return sum(self.kept) / len(self.kept)

    @property
    def flops_share(self) -> float:
        return self.prefill_flops / self.dense_prefill_flops

    @property
    def kv_share(self) -> float:
        return self.kv_bytes / self.dense_kv_bytes

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        shares = {"flops_share": self.flops_share, "kv_share": self.kv_share}
        return {**asdict(self), "kept": list(self.kept), "average_tokens": self.average_tokens, **shares}


def of_steps(images: Sequence[tuple[int, Steps]], text: int, shape: DecoderShape, bytes_per_number: int) -> Accounting:
    """A prompt of `text` tokens and some pictures: of each its visual tokens, and its steps (none: dense).

    Raises ValueError for a step outside the decoder.
    """
    visual = sum(tokens for tokens, _ in images)
    per_image = [lengths(shape, 0, tokens, steps) for tokens, steps in images]
    kept = tuple(map(sum, zip(*per_image, strict=True))) if images else (0,) * shape.layers
    flops, kv = _cost(kept, text, shape, bytes_per_number)
    dense_flops, dense_kv = _cost((visual,) * shape.layers, text, shape, bytes_per_number)
    return Accounting(text, visual, kept, flops, dense_flops, kv, dense_kv)


def of_method(
    method: Pruner | None, visual: int, text: int, shape: DecoderShape, bytes_per_number: int = 2
) -> Accounting:
    """What a prompt with one picture of `visual` tokens will cost; `method` None is the dense model."""
    return of_steps([(visual, planned_steps(method, visual, shape.layers))], text, shape, bytes_per_number)


def of_receipt(
    receipt: Receipt, decoder: Any, text: int | Sequence[int], bytes_per_number: int = 2
) -> list[Accounting]:
    """What each row of a prefill has cost.

    decoder: its configuration, or a DecoderShape. text: text tokens of the rows, one number where all have as many.
    bytes_per_number: of a key or value; 2 for float16 and bfloat16. Raises PruningError if the numbers do not match.
    """
    shape = decoder if isinstance(decoder, DecoderShape) else DecoderShape.of(decoder)
    texts = [text] * receipt.batch_size if isinstance(text, int) else list(text)
    if len(texts) != receipt.batch_size:
        raise PruningError(
            f"text has {len(texts)} numbers, but the prefill had {receipt.batch_size} rows; give one each"
        )
    rows: list[list[ImageReceipt]] = [[] for _ in texts]
    for image in receipt.images:
        rows[image.row].append(image)
    return [
        of_steps([(image.n_before, image.steps) for image in images], tokens, shape, bytes_per_number)
        for images, tokens in zip(rows, texts, strict=True)
    ]


def planned_steps(method: Pruner | None, visual: int, depth: int) -> list[list[int]]:
    """The steps that a receipt will have for a picture of `visual` tokens in a decoder of `depth` layers."""
    if method is None:
        return []
    layers = method.layers(depth)
    return [list(step) for step in zip(layers, method.budgets(visual, depth), strict=True)]


def _cost(kept: Sequence[int], text: int, shape: DecoderShape, bytes_per_number: int) -> tuple[int, int]:
    """(FLOPs, key-value bytes) of a prefill whose layers run on `text` and so many visual tokens."""
    tokens = [text + visual for visual in kept]
    return decoder_flops(shape, tokens), cache_bytes(shape, tokens, bytes_per_number=bytes_per_number)
