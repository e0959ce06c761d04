"""Qwen2-VL with VLM-Pruner inside: a model that owns a pruning method."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLModel

from vlm_pruner.adapters.base import grid_fit, named_arguments
from vlm_pruner.adapters.qwen_vl import QwenVLAdapter
from vlm_pruner.decoder.owner import MethodOwner
from vlm_pruner.decoder.pruning import DecoderPruning
from vlm_pruner.decoder.refusals import counting_positions
from vlm_pruner.methods.base import Pruner

# Names in the published checkpoints (patterns) and in the model. transformers renames for its own classes only.
_PUBLISHED_NAMES = {r"^visual\.": "model.visual.", r"^model\.(?!language_model|visual)": "model.language_model."}
_BY_POSITION = "by_position"  # from the model with the head, which sees labels, to the one that prunes


class VLMPruner(Qwen2VLModel, MethodOwner):
    """transformers' Qwen2-VL; with a `method` its decoder drops visual tokens before layer `method.layer`.

        model.method = CentrifugalPruner(reduction_ratio=0.889)   # None: dense, the default
        model(**processor(...))
        model.receipts[-1]

    Pruning is on only while `forward` runs; between calls the model is unchanged.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> VLMPruner:
        """The model without its language head, from any checkpoint that the class with the head loads."""
        model: VLMPruner = VLMPrunerForConditionalGeneration.from_pretrained(*args, **kwargs).model
        return model

    def _prune_with(self, method: Pruner) -> DecoderPruning:
        return DecoderPruning(self.language_model, method, fit=grid_fit)

    @functools.wraps(Qwen2VLModel.forward)  # for its signature, which transformers and the adapter read
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        by_position = kwargs.pop(_BY_POSITION, None)
        if self._pruning is None:
            return super().forward(*args, **kwargs)
        return self._pruned_forward(self._pruning, by_position, args, kwargs)

    @torch.compiler.disable  # `generate` compiles decoding with a static cache, and would then pass hooks over
    def _pruned_forward(
        self, pruning: DecoderPruning, by_position: str | None, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        with pruning.running():
            pruning.expect(QwenVLAdapter(self).spans(args, kwargs), by_position, kwargs)
            return super().forward(**pruning.entry_arguments(named_arguments(self, args, kwargs)))


class VLMPrunerForConditionalGeneration(Qwen2VLForConditionalGeneration):
    """Loads any published Qwen2-VL checkpoint, with a `VLMPruner` in `model`.

        model = VLMPrunerForConditionalGeneration.from_pretrained("Qwen/Qwen2-VL-7B-Instruct", dtype="auto")
        model.model.method = CentrifugalPruner(reduction_ratio=0.889)
        model.generate(**processor(...))

    Everything else, saving included, is as in transformers' class.
    """

    def __init__(self, config: Qwen2VLConfig) -> None:
        super().__init__(config)
        self.model = VLMPruner(config)
        self.post_init()

    @functools.wraps(Qwen2VLForConditionalGeneration.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        by_position = counting_positions(named_arguments(self, args, kwargs))
        told = {} if by_position is None else {_BY_POSITION: by_position}
        return super().forward(*args, **kwargs, **told)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """transformers' method, for published Qwen2-VL checkpoints as well as saved ones."""
        return super().from_pretrained(*args, **{"key_mapping": _PUBLISHED_NAMES, **kwargs})
