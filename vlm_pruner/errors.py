"""Errors that a user can act on: each names the value that is wrong and the remedy."""

from __future__ import annotations


class PruningError(ValueError):
    """A pruning setting does not fit the model or the input. Raised before the model is changed."""


class UnsupportedModelError(PruningError):
    """No adapter knows this model class."""


class CacheError(RuntimeError):
    """The KV cache is not in the state that pruning left it in; going on would give wrong answers silently."""
