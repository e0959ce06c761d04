"""The catalogue of methods: what each needs, and which families it fits. For the terminal and the documentation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from vlm_pruner import methods
from vlm_pruner.adapters.families import FAMILIES, Family
from vlm_pruner.console import wrapped
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.view import FROM_TOWER
from vlm_pruner.report import table
from vlm_pruner.report.table import render

_QUESTION = {"attend", "attend_next", "text_embeddings"}  # fields that a prompt without a question leaves empty
_NUMBERS = {2: "two", 3: "three", 4: "four"}
DEPTH = 32  # of the decoder for which stages are counted


def ordered() -> list[type[Pruner]]:
    """All methods, ours first, then by name."""
    names = sorted(methods.names(every=True), key=lambda name: (name != "vlm-pruner", name))
    return [methods.get(name) for name in names]


def _before(method: type[Pruner]) -> str:
    """The layer, or layers, before which it drops tokens."""
    try:
        layers: tuple[int, ...] = method(keep_tokens=64).layers(DEPTH)
    except PruningError:  # it takes more than a budget
        layers = (method.layer,)
    if len(layers) > 1:
        return f"{_NUMBERS.get(len(layers), len(layers))} layers from {layers[0]} on"
    return f"layer {method.layer}" if method.layer else "the decoder"


def does(method: type[Pruner]) -> str:
    """The first sentence of the class's docstring."""
    text = " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0].replace(" | ", " or ")


def _needs(method: type[Pruner]) -> str:
    """Its requirements on the model or the prompt; a question is text after the picture."""
    words = {
        "class token": FROM_TOWER & method.needs,
        "question": _QUESTION & method.needs,
        "video": method.videos_only,
    }
    return ", ".join(word for word, needed in words.items() if needed)


def _fitting(method: type[Pruner]) -> list[str]:
    """Names of the families that it fits."""
    return [family.name for family in FAMILIES if not family.refusal(method)]


def _fits(method: type[Pruner]) -> str:
    """Names of the families that it fits, as code, or "all"; `qwen*` stands for all of Qwen's."""
    names = _fitting(method)
    if len(names) == len(FAMILIES):
        return "all"
    qwen = [family.name for family in FAMILIES if family.name.startswith("qwen")]
    if set(qwen) <= set(names):
        names = [name for name in names if name not in qwen] + ["qwen*"]
    return ", ".join(f"`{name}`" for name in names)


def _count(method: type[Pruner]) -> str:
    """The number of families that it fits, such as "7 of 11", or "all"."""
    count = len(_fitting(method))
    return "all" if count == len(FAMILIES) else f"{count} of {len(FAMILIES)}"


def text(chosen: list[type[Pruner]], families: Iterable[Family] = FAMILIES) -> str:
    """For a terminal: methods, each with a line of facts and one or two of words, then families."""
    facts = [
        (one.name, _before(one), _count(one), _needs(one).replace("class token", "tower") or "-") for one in chosen
    ]
    table = render(("method", "drops before", "families", "needs"), facts, left=4).splitlines()
    blocks = [table[0]]
    for one, line in zip(chosen, table[1:], strict=True):
        more = f" It takes {one.requires}." if one.requires else ""
        paper = f" arXiv {one.arxiv}" if one.arxiv else ""
        blocks.append(f"{line}\n{wrapped(does(one) + more + paper, '  ', '  ')}")
    legend = "tower: with a class token. question: text after the picture. video: frames."
    return "\n".join([*blocks, "", legend, "", _families(families)])


def _families(families: Iterable[Family]) -> str:
    rows = [(one.name, _yes(one.class_token), _yes(one.videos), one.models) for one in families]
    return render(("family", "class token", "videos", "models"), rows, left=4)


def _yes(fact: bool) -> str:
    return "yes" if fact else "-"


def markdown() -> str:
    """The table of methods in docs/methods.md."""
    header = ("name", "drops before", "what it does", "needs", "families", "arXiv")
    return table.markdown(header, map(_row, ordered()))


def _row(one: type[Pruner]) -> tuple[str, ...]:
    needs = ", ".join(filter(None, (_needs(one), one.requires)))
    link = f"[{one.arxiv}](https://arxiv.org/abs/{one.arxiv})" if one.arxiv else ""
    return f"`{one.name}`", _before(one), does(one), needs, _fits(one), link


def families_markdown() -> str:
    """The table of families in docs/families.md."""
    header = ("family", "published checkpoints (examples)", "class", "class token", "videos")
    rows = [(f"`{o.name}`", o.models, f"`{o.classes}`", _yes(o.class_token), _yes(o.videos)) for o in FAMILIES]
    return table.markdown(header, rows)


BEGIN, END = "<!-- written by `vlm-pruner methods --write docs` -->", "<!-- end of the table -->"


def written(page: str, table: str) -> str:
    """The page with `table` between the two marks. Raises ValueError if they are not there."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"
