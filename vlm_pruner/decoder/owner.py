"""What the model classes that own a pruning method share."""

from __future__ import annotations

from vlm_pruner.decoder.pruning import DecoderPruning
from vlm_pruner.methods.base import Pruner
from vlm_pruner.receipts import Receipt


class MethodOwner:
    """A base beside a transformers class; gives a model `method` and `receipts`."""

    _pruning: DecoderPruning | None = None

    @property
    def method(self) -> Pruner | None:
        """The pruning method, or None for the dense model."""
        return self._pruning.method if self._pruning else None

    @method.setter
    def method(self, method: Pruner | None) -> None:
        self._pruning = None if method is None else self._prune_with(method)

    @property
    def receipts(self) -> list[Receipt]:
        """What was kept: one receipt per prefill since the method was set."""
        return self._pruning.receipts if self._pruning else []

    def _prune_with(self, method: Pruner) -> DecoderPruning:
        """Raises PruningError if the method does not fit the model."""
        raise NotImplementedError
