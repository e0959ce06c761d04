"""Counts costs the same way for every method: tokens per decoder layer, their average, FLOPs, key-value bytes.

    [row] = accounting.of_receipt(pruning.receipts[-1], decoder.config, text=40)
    row.average_tokens, row.flops_share

Every method is read from the `steps` of its receipts, pairs of a layer and the visual tokens from that layer on,
whether it prunes the input, inside the decoder, or in several stages. Only decoder layers count; the vision tower, the
output head and the selection itself do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vlm_pruner.cost.flops import DecoderShape, kv_bytes, lengths, prefill_flops
from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner
from vlm_pruner.receipts import ImageReceipt, Receipt

Steps = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Accounting:
    """The cost of one prompt's prefill, pruned and dense.

    text, visual: tokens of the prompt before pruning. kept: visual tokens that each decoder layer runs on.
    flops: floating-point operations of the decoder layers. kv_bytes: size of the cache after the prefill.
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
        """Mean number of visual tokens over all decoder layers."""
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
    """Accounts for a prompt of `text` tokens and pictures given as (visual tokens, steps); no steps means dense.

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
    """Predicts the cost of a prompt with one picture of `visual` tokens; `method` None is the dense model."""
    return of_steps([(visual, planned_steps(method, visual, shape.layers))], text, shape, bytes_per_number)


def of_receipt(
    receipt: Receipt, decoder: Any, text: int | Sequence[int], bytes_per_number: int = 2
) -> list[Accounting]:
    """Accounts for each row of a prefill that ran.

    decoder: the decoder's configuration, or a DecoderShape. text: text tokens per row; one number if all rows agree.
    bytes_per_number: size of a key or value entry, 2 for float16 and bfloat16. Raises PruningError if `text` does not
    match the rows.
    """
    shape = decoder if isinstance(decoder, DecoderShape) else DecoderShape.of(decoder)
    texts = [text] * receipt.batch_size if isinstance(text, int) else list(text)
    if len(texts) != receipt.batch_size:
        raise PruningError(
            f"text has {len(texts)} numbers, but the prefill had {receipt.batch_size} rows; pass one per row"
        )
    rows: list[list[ImageReceipt]] = [[] for _ in texts]
    for image in receipt.images:
        rows[image.row].append(image)
    return [
        of_steps([(image.n_before, image.steps) for image in images], tokens, shape, bytes_per_number)
        for images, tokens in zip(rows, texts, strict=True)
    ]


def planned_steps(method: Pruner | None, visual: int, depth: int) -> list[list[int]]:
    """The steps that a receipt will show for a picture of `visual` tokens in a decoder of `depth` layers."""
    if method is None:
        return []
    layers = method.layers(depth)
    return [list(step) for step in zip(layers, method.budgets(visual, depth), strict=True)]


def _cost(kept: Sequence[int], text: int, shape: DecoderShape, bytes_per_number: int) -> tuple[int, int]:
    """(FLOPs, key-value bytes) of a prefill whose layers run on `text` tokens plus `kept` visual tokens each."""
    tokens = [text + visual for visual in kept]
    return prefill_flops(shape, tokens), kv_bytes(shape, tokens, bytes_per_number=bytes_per_number)
