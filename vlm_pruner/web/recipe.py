"""The Python and the shell lines that repeat the page's answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from vlm_pruner.methods import Pruner


@dataclass(frozen=True)
class Recipe:
    """model, dtype, device: arguments of `vlm_pruner.asking.load`. picture: path, or the name of a visitor's file."""

    model: str
    picture: str
    question: str
    method: Pruner
    max_new_tokens: int
    device: str = "cpu"
    dtype: str | None = None

    def python(self) -> str:
        """A program that prints both answers and the kept tokens."""
        options = "".join(f", {name}={value!r}" for name, value in self._loading().items())
        settings = ", ".join(f"{name}={value!r}" for name, value in own_settings(self.method).items())
        return f"""\
import vlm_pruner as vp
from vlm_pruner.images import read_image
from vlm_pruner.asking import load

chat = load({self.model!r}{options})
picture = read_image({self.picture!r})
question = {self.question!r}
method = vp.methods.get({self.method.name!r})({settings})

dense = chat.ask(picture, question, max_new_tokens={self.max_new_tokens})
pruned = chat.ask(picture, question, method, max_new_tokens={self.max_new_tokens})
print("dense: ", dense.text)
print("pruned:", pruned.text)
print("kept, in order of selection:", *(image.order for image in pruned.images))
"""

    def shell(self) -> str:
        """The equivalent `vlm-pruner ask` command."""
        words = ["vlm-pruner", "ask", self.picture, "--question", self.question, "--model", self.model]
        for name, value in self._loading().items():
            words += [f"--{name}", value]
        keep, layer = (str(value) for value in own_settings(self.method).values())
        words += ["--method", self.method.name, "--keep", keep, "--layer", layer]
        return shlex.join([*words, "--max-new-tokens", str(self.max_new_tokens)])

    def _loading(self) -> Mapping[str, str]:
        given = {"device": self.device if self.device != "cpu" else None, "dtype": self.dtype}
        return {name: value for name, value in given.items() if value is not None}


def own_settings(method: Pruner) -> dict[str, int]:
    """The settings that the page offers; all others are the method's defaults."""
    assert method.keep_tokens is not None
    return {"keep_tokens": method.keep_tokens, "layer": method.layer}
