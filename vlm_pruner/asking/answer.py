"""One answer and its cost, measured while it is written."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Answer:
    """The text and cost of an answer.

    stopped:              whether the caller stopped the model early.
    tokens:               new tokens, including the end-of-sequence token.
    first_token_seconds:  from the start of `generate` (vision tower included) to the first new token.
    seconds:              to the last one.
    kv_bytes:             keys and values of all layers at the end.
    prompt_tokens:        of the prompt's text, without the pictures' tokens.
    visual_tokens, kept:  of all pictures, before pruning and from the (last) pruned layer on; equal when dense.
    images:               one receipt per visual span; empty when dense.
    confidence:           probability of the whole answer, if asked for.
    """

    text: str
    stopped: bool
    tokens: int
    first_token_seconds: float
    seconds: float
    kv_bytes: int
    prompt_tokens: int
    visual_tokens: int
    kept: int
    images: tuple[ImageReceipt, ...] = ()
    confidence: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed, without the prefill; None for an answer of a single token."""
        decoding = self.seconds - self.first_token_seconds
        return (self.tokens - 1) / decoding if self.tokens > 1 and decoding > 0 else None


def in_a_sentence(dense: Answer, pruned: Answer) -> str:
    """The pruned answer against the dense one: "Same answer, first token 3.2 times as fast, KV cache -65 %"."""
    same = dense.text.strip().lower() == pruned.text.strip().lower()
    ratio = dense.first_token_seconds / pruned.first_token_seconds
    pace = f"{ratio:.1f} times as fast" if ratio >= 1 else f"{1 / ratio:.1f} times as slow"
    cache = 100 * (pruned.kv_bytes / dense.kv_bytes - 1)
    return f"{'Same' if same else 'Different'} answer, first token {pace}, KV cache {cache:+.0f} %"


class Watch(BaseStreamer):
    """Calls `on_text` with the text so far after every new token, and records the tokens' times."""

    def __init__(self, decode: Callable[[list[int]], str], on_text: Callable[[str], None] | None) -> None:
        self._decode = decode
        self._on_text = on_text
        self._times: list[float] = []
        self._prompt_seen = False
        self.ids: list[int] = []
        self.started = time.perf_counter()

    @property
    def text(self) -> str:
        return self._decode(self.ids)

    @property
    def first_token_seconds(self) -> float:
        return self._times[0] - self.started

    @property
    def seconds(self) -> float:
        return self._times[-1] - self.started

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:  # `generate` begins with the prompt's ids
            self._prompt_seen = True
            return
        self.ids += value.flatten().tolist()
        self._times.append(time.perf_counter())
        if self._on_text is not None:
            self._on_text(self.text.rstrip("\ufffd"))  # half a character; the next token completes it

    def end(self) -> None:
        pass


def joint_probabilities(
    ids: Tensor, logits: Sequence[Tensor], ends: int | list[int] | None = None
) -> tuple[list[int], list[float]]:
    """Per row of new tokens `ids` [B, n]: how many up to its end, and their joint probability.

    logits: n times [B, vocabulary]. ends: ids that end an answer.
    """
    ending = torch.tensor([] if ends is None else ends, device=ids.device).reshape(-1)
    is_end = torch.isin(ids, ending).long()
    counts = is_end.cumsum(dim=1) == is_end  # the first end counts too
    log = torch.stack([step.float().log_softmax(dim=-1) for step in logits], dim=1)
    chosen = log.gather(2, ids[:, :, None])[:, :, 0].masked_fill(~counts, 0.0)
    return counts.sum(dim=1).tolist(), chosen.sum(dim=1).exp().tolist()


def cache_bytes(cache: Any) -> int:
    """Bytes that all keys and values of a transformers cache occupy."""
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
