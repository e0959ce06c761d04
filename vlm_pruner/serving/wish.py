"""A request's wish: which method prunes its pictures, and to how many tokens.

A wish arrives as JSON, is checked before any model runs, and travels on as one canonical text. Equal wishes have equal
texts, so the text can be part of a cache key. A picture's budget follows from its token count and the wish alone;
the side that counts placeholders and the side that prunes both call `Wish.budget`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner, get, names
from vlm_pruner.methods.words import BUDGET, SHORTHANDS, from_words

OFF = "off"
DEFAULT_METHOD = "vlm-pruner"
# What a request may set besides method and budget. Every other field costs compute that a client could run up, makes a
# picture's count depend on its content, or needs more than the picture's tokens.
SETTABLE = ("seed", "self_weight", "spatial_weight", "threshold")
EXAMPLE = '{"method": "vlm-pruner", "keep_tokens": 64}'

AT_INPUT = frozenset({"embeddings"})  # needs that the projector's output meets
FROM_CLIP = frozenset({"cls_attention", "patch_features"})  # needs that CLIP's tower meets where an engine taps it


@dataclass(frozen=True)
class Wish:
    """A method at the decoder's input, with its budget. text: its canonical form."""

    method: Pruner
    text: str

    def budget(self, tokens: int, *, fixed_size: bool = False) -> int:
        """How many of a picture's `tokens` stay. fixed_size: whether all pictures of the model have as many.

        As in transformers: where sizes vary, a picture with fewer tokens than `keep_tokens` keeps all of them; where
        they do not, asking for more raises a PruningError.
        """
        wanted = self.method.keep_tokens
        if wanted is not None and wanted > tokens and not fixed_size:
            return tokens
        return self.method.budget(tokens)


def parse(asked: object, gives: frozenset[str] = AT_INPUT) -> Wish | None:
    """The wish that a JSON value expresses; None for "off" and null. Raises PruningError for anything else.

    gives: the needs of methods that the engine meets for this model.
    """
    if asked is None or asked == OFF:
        return None
    if not isinstance(asked, Mapping):
        raise PruningError(f'{asked!r} is neither an object such as {EXAMPLE} nor "{OFF}"')
    settings = dict(asked)
    name = settings.pop("method", DEFAULT_METHOD)
    _check_method(name, gives)
    _check_layer(settings.pop("layer", 0))
    refused = [key for key in settings if key not in (*BUDGET, *SETTABLE)]
    if refused:
        raise PruningError(
            f"{refused[0]} cannot be set by a request; it may set method, {', '.join((*BUDGET, *SETTABLE))}"
        )
    budget = {key: settings.pop(key) for key in BUDGET if settings.get(key) is not None}
    settings = {key: value for key, value in settings.items() if key not in BUDGET}
    method = from_words(name, budget, {**settings, "layer": 0})
    values = {one.name: getattr(method, one.name) for one in fields(method) if getattr(method, one.name) != one.default}
    return Wish(method, json.dumps({"method": method.name, **values}, sort_keys=True))


@lru_cache(maxsize=1024)
def parse_text(text: str) -> Wish | None:
    """The wish of a canonical text; None for an empty one."""
    if not text:
        return None
    settings = json.loads(text)
    return Wish(get(settings.pop("method"))(**settings), text)


def fitting(gives: frozenset[str] = AT_INPUT) -> list[str]:
    """Names of the methods that prune pictures, and need no more than an engine gives."""
    return [name for name in names() if not get(name).needs - gives]


def _why_not(method: type[Pruner], gives: frozenset[str]) -> str:
    if lacking := ", ".join(sorted(method.needs - gives)):
        return f"needs {lacking}, which this engine does not provide"
    return "prunes videos only" if method.videos_only else "needs more than settings"


def _check_method(name: object, gives: frozenset[str]) -> None:
    known = [*fitting(gives), *SHORTHANDS]
    if isinstance(name, str) and name in known:
        return
    reason = "is not a method"
    if isinstance(name, str) and name in names(every=True):
        reason = _why_not(get(name), gives)
    raise PruningError(f"method {name!r} {reason}; methods that work here: {', '.join(known)}")


def _check_layer(layer: object) -> None:
    if layer not in (0, "0") or layer is False:
        raise PruningError(f"layer={layer!r}: an engine prunes before the decoder, layer=0; leave layer out")
