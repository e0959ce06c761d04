"""Errors that a user can act on: each names the offending value and the remedy."""

from __future__ import annotations


class PruningError(ValueError):
    """A pruning setting does not suit the model or the input. Raised before anything in the model changes."""


class UnsupportedModelError(PruningError):
    """No adapter supports this model class."""


class CacheError(RuntimeError):
    """The KV cache is not as pruning left it; continuing would silently give wrong answers."""
