"""The page's settings as methods that fit the model."""

from __future__ import annotations

from collections.abc import Iterable

from vlm_pruner import methods
from vlm_pruner.asking import Chat
from vlm_pruner.decoder.pruning import prune
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner
from vlm_pruner.web.session import Job

UNPRUNED = Job("dense")


def usable_methods(chat: Chat) -> list[str]:
    """Names of the methods that can prune this model, our own first."""
    names = [name for name in methods.names() if _fits(chat, name)]
    return sorted(names, key=lambda name: (name != "vlm-pruner", name))


def default_layer(name: str) -> int:
    return methods.get(name)(keep_tokens=64).layer


def make(chat: Chat, name: str, keep: int, layer: int) -> Pruner:
    """The method as set on the page. Raises PruningError, with the remedy, if it does not fit the model."""
    method = methods.from_words(name, {"keep_tokens": keep}, {"layer": layer}, trusted=False)
    prune(chat.model, method)
    return method


def jobs_to_compare(chat: Chat, names: Iterable[str], keep: int, layer: int) -> list[Job]:
    """The dense model, then each method at `layer`, or at its own layer if it works at no other."""
    return [UNPRUNED, *(Job(name, _at_layer_or_own(chat, name, keep, layer)) for name in names)]


def _at_layer_or_own(chat: Chat, name: str, keep: int, layer: int) -> Pruner:
    try:
        return make(chat, name, keep, layer)
    except PruningError:
        return make(chat, name, keep, default_layer(name))


def _fits(chat: Chat, name: str) -> bool:
    try:
        prune(chat.model, methods.get(name)(reduction_ratio=0.5))
    except PruningError:
        return False
    return True
