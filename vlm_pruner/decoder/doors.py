"""Guards every method that runs a model, so that no call bypasses pruning.

`model.forward(...)`, which PEFT and others use, does not run forward pre-hooks. So while a context is open, `forward`
and `generate` themselves are wrapped, on that one object, and compiled versions of it run eagerly.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

from torch import nn

from vlm_pruner.errors import PruningError

Call = Callable[..., Any]
_NOTHING = object()


def guard(owner: nn.Module, name: str, around: Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]) -> Call:
    """Makes `owner.name(...)` run `around(original, args, kwargs)`. Returns a function that restores the original."""
    own, original = vars(owner).get(name, _NOTHING), getattr(owner, name)

    @functools.wraps(original)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, args, kwargs)

    guarded.__signature__ = (  # type: ignore[attr-defined]
        signature_of(getattr(type(owner), name)) if own is _NOTHING else _with_self(inspect.signature(original))
    )
    method = MethodType(guarded, owner)
    vars(owner)[name] = method

    def undo() -> None:
        if vars(owner).get(name) is not method:
            return  # another wrapper came on top, such as accelerate's `prepare`; ours now passes calls through
        del vars(owner)[name]
        if own is not _NOTHING:
            vars(owner)[name] = own

    return undo


@functools.lru_cache(maxsize=256)
def signature_of(function: Call) -> inspect.Signature:
    """Cached, because computing the signature of a class's function takes longer than opening the rest of a context."""
    return inspect.signature(function)


def _with_self(signature: inspect.Signature) -> inspect.Signature:
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    return signature.replace(parameters=[itself, *signature.parameters.values()])


class Hook:
    """A pre-hook that runs while `active()`, and prevents copies of its model."""

    def __init__(self, function: Call, active: Callable[[], bool]) -> None:
        self._function = function
        self._active = active

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments) if self._active() else None

    def __reduce_ex__(self, protocol: Any) -> Any:
        refuse_copies()


def refuse_copies(*ignored: Any) -> NoReturn:
    """Replaces the method that copy and pickle call."""
    raise PruningError(
        "this model is being pruned, and a copy would take pruning's hooks along; copy or pickle it before the pruning "
        "context is opened or after it is closed (save_pretrained works inside)"
    )


_LOCK = threading.Lock()
_EAGER: dict[str, Any] = {"contexts": 0, "stance": None}


def run_compiled_versions_eagerly() -> Call:
    """While contexts are open, compiled versions of a model run as plain Python, hooks included.

    A compiled version ignores hooks added later, and one compiled inside the context would keep them. The setting is
    process-wide. Returns a function that ends it for this context.
    """
    import torch

    if "torch._dynamo" not in sys.modules and not hasattr(torch.compiler, "set_stance"):
        return lambda: None
    with _LOCK:
        if _EAGER["contexts"] == 0:
            _EAGER["stance"] = torch.compiler.set_stance("force_eager")
            _EAGER["stance"].__enter__()
        _EAGER["contexts"] += 1
    return _end_of_eager


def _end_of_eager() -> None:
    with _LOCK:
        _EAGER["contexts"] -= 1
        if _EAGER["contexts"] == 0:
            _EAGER["stance"].__exit__(None, None, None)
            _EAGER["stance"] = None
