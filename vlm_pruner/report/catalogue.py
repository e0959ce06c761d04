"""Which methods there are, what each needs, and which families it fits: for the terminal and for the documentation."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from vlm_pruner import methods
from vlm_pruner.adapters.families import FAMILIES, Family
from vlm_pruner.errors import PruningError
from vlm_pruner.methods import Pruner
from vlm_pruner.methods.view import FROM_TOWER
from vlm_pruner.report import table
from vlm_pruner.report.table import WIDTH, render

_QUESTION = {"attend", "attend_next", "text_embeddings"}  # fields that a prompt without a question leaves empty
_NUMBERS = {2: "two", 3: "three", 4: "four"}
DEPTH = 32  # of the decoder for which stages are counted


@dataclass(frozen=True)
class Entry:
    """A method as the tables show it.

    before: the layer, or layers, before which it drops tokens. does: the first sentence of its docstring. needs: of the
    model or the prompt, where a question is text after the picture. requires: of the caller. fits: names of families.
    count: how many they are.
    """

    name: str
    before: str
    does: str
    needs: str
    fits: str
    arxiv: str
    requires: str
    count: str


def entries() -> list[Entry]:
    """All methods, ours first, then by name."""
    names = sorted(methods.names(every=True), key=lambda name: (name != "vlm-pruner", name))
    return [entry(methods.get(name)) for name in names]


def entry(method: type[Pruner]) -> Entry:
    return Entry(
        method.name,
        _before(method),
        _does(method),
        _needs(method),
        _fits(method),
        method.arxiv,
        method.requires,
        _count(method),
    )


def _before(method: type[Pruner]) -> str:
    try:
        layers: tuple[int, ...] = method(keep_tokens=64).layers(DEPTH)
    except PruningError:  # it takes more than a budget
        layers = (method.layer,)
    if len(layers) > 1:
        return f"{_NUMBERS.get(len(layers), len(layers))} layers from {layers[0]} on"
    return f"layer {method.layer}" if method.layer else "the decoder"


def _does(method: type[Pruner]) -> str:
    """The first sentence of the class's docstring."""
    text = " ".join(inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) ", text)[0].replace(" | ", " or ")


def _needs(method: type[Pruner]) -> str:
    words = {
        "class token": FROM_TOWER & method.needs,
        "question": _QUESTION & method.needs,
        "video": method.videos_only,
    }
    return ", ".join(word for word, needed in words.items() if needed)


def _fits(method: type[Pruner]) -> str:
    """Names of the families that it fits, or "all"."""
    fitting = [family for family in FAMILIES if not family.refusal(method)]
    return "all" if len(fitting) == len(FAMILIES) else _shown(fitting)


def _count(method: type[Pruner]) -> str:
    """How many families it fits, where they are not all."""
    fitting = sum(not family.refusal(method) for family in FAMILIES)
    return "all" if fitting == len(FAMILIES) else f"{fitting} of {len(FAMILIES)}"


def _shown(families: Iterable[Family]) -> str:
    """Names of families, Qwen's as one where all of them are meant."""
    names = [family.name for family in families]
    qwen = [family.name for family in FAMILIES if family.name.startswith("qwen")]
    if set(qwen) <= set(names):
        names = [name for name in names if name not in qwen] + ["qwen*"]
    return ", ".join(names)


def text(chosen: list[Entry], families: Iterable[Family] = FAMILIES) -> str:
    """For a terminal: methods, each with a line of facts and one or two of words, then families."""
    facts = [(one.name, one.before, one.count, one.needs.replace("class token", "tower") or "-") for one in chosen]
    table = render(("method", "drops before", "families", "needs"), facts, left=4).splitlines()
    blocks = [table[0]]
    for one, line in zip(chosen, table[1:], strict=True):
        more = f" It takes {one.requires}." if one.requires else ""
        paper = f" arXiv {one.arxiv}" if one.arxiv else ""
        blocks.append(
            f"{line}\n{textwrap.fill(one.does + more + paper, WIDTH, initial_indent='  ', subsequent_indent='  ')}"
        )
    legend = "tower: with a class token. question: text after the picture. video: frames."
    return "\n".join([*blocks, "", legend, "", _families(families)])


def _families(families: Iterable[Family]) -> str:
    rows = [(one.name, _yes(one.class_token), _yes(one.videos), one.models) for one in families]
    return render(("family", "class token", "videos", "models"), rows, left=4)


def _yes(fact: bool) -> str:
    return "yes" if fact else "-"


def markdown(chosen: list[Entry]) -> str:
    """The table of methods in docs/methods.md."""
    header = ("name", "drops before", "what it does", "needs", "families", "arXiv")
    return table.markdown(header, [_row(one) for one in chosen])


def _row(one: Entry) -> tuple[str, ...]:
    needs = ", ".join(filter(None, (one.needs, one.requires)))
    return f"`{one.name}`", one.before, one.does, needs, _code(one.fits), _link(one)


def families_markdown() -> str:
    """The table of families in docs/families.md."""
    header = ("family", "published checkpoints (examples)", "class", "class token", "videos")
    rows = [(f"`{o.name}`", o.models, f"`{o.classes}`", _yes(o.class_token), _yes(o.videos)) for o in FAMILIES]
    return table.markdown(header, rows)


def _code(fits: str) -> str:
    """Family names in the font of code."""
    return re.sub(r"\b(?!all\b)[a-z][\w*]+", lambda name: f"`{name.group()}`", fits)


def _link(one: Entry) -> str:
    return f"[{one.arxiv}](https://arxiv.org/abs/{one.arxiv})" if one.arxiv else ""


BEGIN, END = "<!-- written by `vlm-pruner methods --write docs` -->", "<!-- end of the table -->"


def written(page: str, table: str) -> str:
    """The page with `table` between the two marks. Raises ValueError if they are not there."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.split(END)[1]}"
