"""Finds the key-value cache among the arguments and results of a forward call, under either of its names.

transformers called it `past_key_values` before 5.24, and calls it `cache` since. Its own code uses its version's name;
callers may still use the old one, which transformers translates only after hooks have run.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any


def cache_argument(cache: Any) -> dict[str, Any]:
    """`cache` under the name that the installed transformers uses: `model(**batch, **cache_argument(cache))`."""
    return {_current_name(): cache}


def cache_of(call: Mapping[str, Any]) -> Any:
    """The cache among a call's arguments by name, or in a model's output; None if there is none.

    As in transformers, the new name counts if both are given.
    """
    return call["cache"] if "cache" in call else call.get("past_key_values")


def with_cache(call: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """A call's arguments by name, with `cache` replacing theirs or added to them."""
    given = [name for name in ("cache", "past_key_values") if name in call]
    return {**call, (given or [_current_name()])[0]: cache}


@lru_cache(maxsize=1)
def _current_name() -> str:
    from transformers.masking_utils import create_causal_mask

    return "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
