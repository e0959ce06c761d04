"""`llava` is another name of `vlm_pruner.llava`, in a clone only: the names that the field's scripts use.

`llava.model.builder` and `vlm_pruner.llava.model.builder` are one module object, so a class has one identity whichever
name imported it. The wheel leaves this package out: it must not overwrite an installed LLaVA.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

import vlm_pruner.llava as _home

__path__ = _home.__path__


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds `llava.NAME` as the module `vlm_pruner.llava.NAME`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{__name__}."):
            return None
        spec = importlib.util.find_spec(self._true(name))
        if spec is None:
            return None
        alias = ModuleSpec(name, self, origin=spec.origin, is_package=spec.submodule_search_locations is not None)
        alias.submodule_search_locations = spec.submodule_search_locations
        return alias

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the new module, which is discarded, by the true one."""
        sys.modules[module.__name__] = importlib.import_module(self._true(module.__name__))

    def get_code(self, fullname: str) -> CodeType | None:
        """The true module's code: `python -m llava.eval.NAME` runs it."""
        return self._loader(fullname).get_code(self._true(fullname))

    def get_source(self, fullname: str) -> str | None:
        return self._loader(fullname).get_source(self._true(fullname))

    def _loader(self, name: str) -> importlib.abc.InspectLoader:
        spec = importlib.util.find_spec(self._true(name))
        assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
        return spec.loader

    @staticmethod
    def _true(name: str) -> str:
        return f"{_home.__name__}{name.removeprefix(__name__)}"


sys.meta_path.insert(0, _Alias())
