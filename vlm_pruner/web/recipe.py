"""The Python and the shell lines that repeat the page's answers."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from vlm_pruner.methods import Pruner


@dataclass(frozen=True)
class Recipe:
    """model, dtype, device: arguments of `vlm_pruner.asking.load`. picture: path, or the name of a visitor's file.

    method: `keep_tokens` and `layer` as set on the page, all else by default.
    """

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
        settings = f"keep_tokens={self.method.keep_tokens}, layer={self.method.layer}"
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
        words += ["--method", self.method.name, "--keep", str(self.method.keep_tokens)]
        words += ["--layer", str(self.method.layer)]
        return shlex.join([*words, "--max-new-tokens", str(self.max_new_tokens)])

    def _loading(self) -> Mapping[str, str]:
        given = {"device": self.device if self.device != "cpu" else None, "dtype": self.dtype}
        return {name: value for name, value in given.items() if value is not None}
