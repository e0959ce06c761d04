"""Methods that live in a user's own file, named as `my_file.py:MyPruner`."""

from __future__ import annotations

import hashlib
import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from vlm_pruner.errors import PruningError
from vlm_pruner.methods.base import Pruner, is_registered

_NAMED = re.compile(r"(?P<file>.+?\.py)(?::(?P<method>[^:=]*))?(?=:|$)")


def split(name: str) -> tuple[str, list[str]]:
    """Separates a method's name from its settings: `fastv:layer=3`, or `my_file.py:MyPruner:layer=3`."""
    found = _NAMED.match(name)
    base = found.group() if found else name.partition(":")[0]
    return base, name[len(base) + 1 :].split(":") if len(name) > len(base) else []


def is_file(name: str) -> bool:
    """Whether `name` means a method in a file."""
    return _NAMED.fullmatch(name) is not None


def load(name: str) -> type[Pruner]:
    """The method class that `my_file.py:MyPruner` names. Runs the file, once per process.

    Raises PruningError if there is no such file or method, or if the file fails.
    """
    found = _NAMED.fullmatch(name)
    assert found is not None
    path = Path(found["file"]).expanduser().resolve()
    if not path.is_file():
        raise PruningError(f"{found['file']} does not exist; give the path of a Python file, as in my_file.py:MyPruner")
    module = _run(path)
    defined = {key: value for key, value in vars(module).items() if _is_method(value, module)}
    if found["method"] not in defined:
        known = ", ".join(f"{found['file']}:{key}" for key in defined) or "no class that inherits from Pruner"
        raise PruningError(f"{name} is not a method; {found['file']} has {known}")
    return _named(defined[found["method"]], name, path)


def _is_method(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Pruner) and value.__module__ == module.__name__


def _run(path: Path) -> ModuleType:
    """The file as a module. It has a name of its own, so that it hides no module that can be imported."""
    name = f"vlm_pruner_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise PruningError(f"{path.name} fails: {type(error).__name__}: {error}") from error
    return module


def _named(method: type[Pruner], name: str, path: Path) -> type[Pruner]:
    """The class with a name for result files, and pickled by file, so that other processes can load it."""
    if not is_registered(method):
        method.name = method.label = name
    method.source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    method.__reduce__ = lambda self: (_restored, (f"{path}:{type(self).__name__}", vars(self)))  # type: ignore[method-assign]
    return method


def _restored(name: str, state: dict[str, Any]) -> Pruner:
    method = object.__new__(load(name))
    vars(method).update(state)
    return method
