"""What README and docs/ name exists: modules, files, links, commands with their flags. The log keeps its form."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from vlm_pruner.cli import COMMANDS, load

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to older Pythons

ROOT = Path(__file__).resolve().parents[1]
BUILT = ("commands.md", "leaderboard.md", "reference.md")  # made while the documentation is built
PAGES = [ROOT / "README.md", *(ROOT / f"{name}.md" for name in ("CONTRIBUTING", "CHANGELOG", "SECURITY", "AGENTS"))]
PAGES += [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in BUILT]
PAGES += [*sorted(ROOT.glob("*/README.md")), ROOT / "playground" / "photos" / "README.md"]
FOLDERS = "vlm_pruner|llava|tests|benchmarks|scripts|docs|fig|playground|Qwen2-VL"
MADE = re.compile(r"playground/(data|mini/runs)\b")  # written by commands, ignored by git
WIDEST = 100  # columns of a code block that a page shows without scrolling

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> list[str]:
    """The lines of a page's code blocks, continued lines joined, and its code spans."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [" ".join(span.split()) for span in spans]


@each_page
def test_modules_exist(page: Path) -> None:
    """`vlm_pruner.a.b` is a module, or a name in one; so is what follows `python -m`."""
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"(?<![\w/.])((?:vlm_pruner|llava|playground|Qwen2VL_VLMPruner)(?:\.\w+)+)", text)):
        if not name.endswith((".py", ".md")):
            resolve(name)


def resolve(name: str) -> object:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[cut:]:
            assert hasattr(found, attribute), f"{name} does not exist"
            found = getattr(found, attribute)
        return found
    raise AssertionError(f"{name} does not exist")


@each_page
def test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in set(re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*\w/?)", text)):
        if not MADE.match(path):
            assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}, which does not exist"


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}, which does not exist"


def options(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    load(command).add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings} | {"--help", "--traceback"}


@each_page
def test_commands_and_flags_exist(page: Path) -> None:
    for line in code(page):
        called = re.search(r"\bvlm-pruner ([a-z-]+)(?: (.*))?$", line)
        if called is None or called[1] in ("is", "cannot", "--version"):
            continue
        assert called[1] in COMMANDS, f"{page.name}: vlm-pruner has no subcommand {called[1]} ({line})"
        words = shlex.split((called[2] or "").split(" #")[0])
        flags = {word.split("=")[0] for word in words if word.startswith("--")}
        unknown = flags - options(called[1])
        assert not unknown, f"{page.name}: vlm-pruner {called[1]} has no {', '.join(unknown)}"


def test_the_front_page_leads_to_every_page() -> None:
    """The groups are kept manually. The documentation's build refuses a page in none, but few people build it."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```\{toctree\}\n(.*?)^```", index, re.MULTILINE | re.DOTALL)
    listed = [line for block in blocks for line in block.splitlines() if line and not line.startswith(":")]
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")} | {name.removesuffix(".md") for name in BUILT}
    assert len(listed) == len(set(listed)) and set(listed) == pages - {"index"}


@each_page
def test_code_blocks_fit_the_page(page: Path) -> None:
    for block in re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            assert len(line) <= WIDEST, f"{page.name}: {len(line)} columns: {line}"


def entries() -> list[tuple[str, list[str]]]:
    """(heading, lines) of each entry of the log."""
    parts = re.split(r"^## (.*)$", (ROOT / "docs" / "LOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return [(head, body.strip().splitlines()) for head, body in zip(parts[::2], parts[1::2], strict=True)]


@pytest.mark.parametrize(("heading", "lines"), entries(), ids=[heading[:40] for heading, _ in entries()])
def test_log_entries_are_short_and_complete(heading: str, lines: list[str]) -> None:
    """Date, question and commit in the heading; a command and a conclusion or a finding; ten lines at most."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d · .+ \([0-9a-f]{7}\)", heading), heading
    assert len([line for line in lines if line.strip()]) <= 10, f"{heading} has more than ten lines"
    text = "\n".join(lines)
    assert "**Command**" in text
    assert re.search(r"\*\*(Conclusion|New|Speed)\*\*", text), heading


def test_the_log_is_newest_first() -> None:
    dates = [heading[:10] for heading, _ in entries()]
    assert dates == sorted(dates, reverse=True)


def test_contributing_says_why_every_dependency_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = {re.split(r"[\[<>=; ]", entry)[0] for entries in lists for entry in entries} - {"vlm-pruner"}
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Dependencies")[1]
    missing = names - set(re.findall(r"[\w-]+", table))
    assert not missing, f"CONTRIBUTING.md does not say why {', '.join(sorted(missing))} is a dependency"
