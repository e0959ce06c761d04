"""Pages that are made while the documentation is built: each command's help, a reference from docstrings, and the
leaderboard of the comparison on the embedded model.

Our docstrings are plain text with `code` in backticks, not reStructuredText, so autodoc would misread them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def commands_page() -> str:
    from vlm_pruner import cli

    os.environ["COLUMNS"] = "80"
    text = "# Commands\n\nWhat `vlm-pruner COMMAND --help` prints.\n"
    for name in cli.COMMANDS:
        module = cli.load(name)
        parser = argparse.ArgumentParser(prog=f"vlm-pruner {name}", **cli.described(name, module))
        module.add_arguments(parser)
        text += f"\n## {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n"
    return text


def reference_page() -> str:
    """Public names, methods and errors: signature and docstring of each."""
    import vlm_pruner as vp
    from vlm_pruner import receipts
    from vlm_pruner.asking import Answer, Chat, load
    from vlm_pruner.decoder.pruning import Pruning, PruningWarning

    sections = {
        "Pruning": [vp.prune, Pruning, PruningWarning, vp.load_processor, vp.TokenLayout],
        "Methods": [
            vp.methods.get, vp.methods.names, vp.methods.from_words, vp.methods.Pruner,
            *(vp.methods.get(name) for name in vp.methods.names()), vp.methods.CDPruner, vp.methods.Selection,
        ],
        "Receipts": [receipts.Receipt, receipts.ImageReceipt],
        "Asking": [load, Chat, Answer],
        "Errors": [vp.errors.PruningError, vp.errors.UnsupportedModelError, vp.errors.CacheError],
    }  # fmt: skip
    text = "# Reference\n\nPublic names, from their docstrings. `vlm_pruner` imports each on first use.\n"
    for heading, things in sections.items():
        text += f"\n## {heading}\n"
        for thing in things:
            text += f"\n### {thing.__name__}\n\n{_described(thing)}"
    return text


def _described(thing: Any) -> str:
    text = f"`{thing.__module__}.{thing.__qualname__}`\n\n```text\n{_signature(thing)}\n```\n"
    text += f"\n{_prose(inspect.getdoc(thing) or '')}\n"
    if inspect.isclass(thing) and not issubclass(thing, BaseException | Warning):
        for name, member in vars(thing).items():
            documented = inspect.getdoc(member)
            if name.startswith("_") or not (inspect.isfunction(member) or isinstance(member, property)):
                continue
            if documented:
                shown = f"{name}{inspect.signature(member)}" if inspect.isfunction(member) else name
                text += f"\n#### {thing.__name__}.{name}\n\n```text\n{_folded(shown)}\n```\n\n{_prose(documented)}\n"
    return text


def _prose(docstring: str) -> str:
    """Markdown of a docstring: paragraphs, `name: meaning` as a list, indented lines as code."""
    return "\n\n".join(_paragraph(part.splitlines()) for part in re.split(r"\n\s*\n", docstring) if part.strip())


def _paragraph(lines: list[str]) -> str:
    if all(line.startswith("    ") for line in lines):
        return "\n".join(["```python", *(line.removeprefix("    ") for line in lines), "```"])
    if not any(re.match(r"\w+:\s", line) for line in lines):
        return "\n".join(_plain(line.strip()) for line in lines)
    made: list[str] = []
    for line in lines:
        field = re.match(r"(\w+):\s+(.*)", line)
        if field:
            made.append(f"- **{field[1]}**: {_plain(field[2])}")
        else:
            made.append(f"{'  ' if made else ''}{_plain(line.strip())}")
    return "\n".join(made)


def _plain(line: str) -> str:
    """Markdown that reads as the line does: only code spans keep their meaning."""
    parts = line.split("`")
    return "`".join(part if place % 2 else re.sub(r"([*_<\[\]])", r"\\\1", part) for place, part in enumerate(parts))


def _signature(thing: Any) -> str:
    if is_dataclass(thing):
        inside = [f"    {entry.name}: {_type(entry.type)}{_default(entry)}," for entry in fields(thing)]
        return "\n".join([f"{thing.__name__}(", *inside, ")"])
    try:
        return _folded(f"{thing.__name__}{inspect.signature(thing)}")
    except ValueError:
        return str(thing.__name__)


def _folded(signature: str) -> str:
    """One argument a line if it is long; annotations without their quotes."""
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
    if len(signature) <= 78:
        return signature
    name, _, rest = signature.partition("(")
    inside, _, after = rest.rpartition(")")
    depth, arguments, current = 0, [], ""
    for letter in inside:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and depth == 0:
            arguments.append(current.strip())
            current = ""
        else:
            current += letter
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in [*arguments, current.strip()]), f"){after}"])


def _type(kind: Any) -> str:
    return kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))


def _default(entry: Any) -> str:
    from dataclasses import MISSING

    if entry.default is not MISSING:
        return f" = {entry.default!r}"
    return "" if entry.default_factory is MISSING else f" = {entry.default_factory.__name__}()"


def leaderboard_page() -> str:
    """All methods of the kept comparison, best first at each budget."""
    data = json.loads((HERE.parent / "fig" / "data" / "compare.json").read_text(encoding="utf-8"))
    arms, asked = {arm["key"]: arm for arm in data["arms"]}, data["benchmarks"][0]
    dense, *cells = data["cells"]
    kinds = list(asked["kinds"])
    text = (
        f"# Leaderboard\n\n{asked['n']} questions about {asked['pictures']} pictures of the embedded world, answered "
        f"by the [embedded model](mini.md), best first. Dense: {_interval(dense['accuracy'])}. Accuracy: mean over "
        "kinds of question in %, with 95 % intervals; differences are paired, and bold where the interval excludes 0. "
        "Two methods whose intervals overlap may stand in either order. [The comparison](comparison.md) says how it "
        f"was made and what is fair. {data['date'][:10]}, {data['environment']['hardware']['processor']}.\n"
    )
    heads = ["method", "accuracy", "- VLM-Pruner", "- dense", "FLOPs", *kinds]
    for budget in dict.fromkeys(arms[cell["arm"]]["budget"] for cell in cells if arms[cell["arm"]]["budget"]):
        own = [cell for cell in cells if arms[cell["arm"]]["budget"] == budget]
        rows = [_ranked(arms[cell["arm"]], cell, kinds) for cell in sorted(own, key=lambda c: -c["accuracy"]["mean"])]
        table = [heads, ["---"] * len(heads), *rows]
        text += f"\n## {budget} tokens\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in table) + "\n"
    return text


def _ranked(arm: dict[str, Any], cell: dict[str, Any], kinds: list[str]) -> list[str]:
    ours, dense = cell["against"].get("vlm-pruner"), cell["against"]["dense"]
    flops = arm["accounting"]["flops_share"]
    return [
        arm["label"], _interval(cell["accuracy"]), _difference(ours) if ours else "", _difference(dense),
        f"{100 * flops:.0f} %", *(f"{100 * cell['kinds'][kind]['mean']:.0f}" for kind in kinds),
    ]  # fmt: skip


def _interval(found: dict[str, float], sign: str = "") -> str:
    mean, low, high = (100 * found[name] for name in ("mean", "low", "high"))
    return f"{mean:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _difference(found: dict[str, float]) -> str:
    """Bold where the interval excludes 0."""
    shown = _interval(found, "+")
    return f"**{shown}**" if found["low"] > 0 or found["high"] < 0 else shown


def write(*_: Any) -> None:
    """Writes a page only if it has changed, so that a second build reads little."""
    for name, text in (
        ("commands.md", commands_page()),
        ("reference.md", reference_page()),
        ("leaderboard.md", leaderboard_page()),
    ):
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
