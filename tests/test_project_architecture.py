"""docs/architecture.md names the rooms that exist, in the order of the import contract; so does its drawing."""

from __future__ import annotations

import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to older Pythons

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NO_ROOMS = ("__init__.py", "__pycache__", "py.typed")
OUTSIDE = ("llava", "Qwen2VL_VLMPruner")  # packages of their own, with a floor in the same contract


def rooms_on_disk() -> set[str]:
    entries = [entry for entry in (ROOT / "vlm_pruner").iterdir() if entry.name not in NO_ROOMS]
    return {f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries if not entry.name.startswith(".")}


def rooms_on_page() -> list[tuple[int, str]]:
    """(floor, room) of each row of the table, top floor first."""
    return [(int(floor), room) for floor, room in re.findall(r"^\| (\d+) \| `([^`]+)` \|", PAGE, re.MULTILINE)]


def contracts() -> list[dict[str, Any]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = settings["tool"]["importlinter"]["contracts"]
    return found


def layers() -> list[set[str]]:
    """The floors of the contract, top first, each a set of modules."""
    (contract,) = (contract for contract in contracts() if contract["type"] == "layers")
    return [set(re.split(r"\s*\|\s*", layer)) for layer in contract["layers"]]


def module(room: str) -> str:
    return room if room in OUTSIDE else f"vlm_pruner.{room.removesuffix('/').removesuffix('.py')}"


def drawing() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_architecture", ROOT / "docs" / "draw_architecture.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules["draw_architecture"] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    return made


def test_the_page_lists_every_room_and_no_other() -> None:
    listed = [room for _, room in rooms_on_page()]
    assert len(listed) == len(set(listed)), "a room is listed twice"
    assert set(listed) == rooms_on_disk() | set(OUTSIDE)


def test_every_room_has_a_floor_in_the_contract() -> None:
    assert set().union(*layers()) == {module(room) for room in rooms_on_disk()} | set(OUTSIDE)


def test_the_page_has_the_floors_of_the_contract() -> None:
    floors = layers()
    expected = {name: len(floors) - place for place, names in enumerate(floors) for name in names}
    listed = rooms_on_page()
    assert {module(room): floor for floor, room in listed} == expected
    assert [floor for floor, _ in listed] == sorted((floor for floor, _ in listed), reverse=True)


def test_every_room_on_the_page_has_a_purpose_of_its_own() -> None:
    purposes = re.findall(r"^\| \d+ \| `[^`]+` \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert len(purposes) == len(set(purposes)) == len(rooms_on_page())


def test_the_drawing_has_every_room_on_its_floor() -> None:
    drawn = [room.name for storey in drawing().STOREYS for room in storey]
    names = {"Qwen2-VL/": "Qwen2VL_VLMPruner"}
    floor = {room: number for number, room in rooms_on_page()}
    assert {names.get(name, name) for name in drawn} == set(floor) - {"__main__.py", "llava"}
    storeys = [[floor[names.get(room.name, room.name)] for room in storey] for storey in drawing().STOREYS]
    for upper, lower in pairwise(storeys):
        assert min(upper) > max(lower), "a storey of the drawing holds a room from below the next one"


def test_the_drawing_is_what_its_script_draws() -> None:
    committed = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert committed == drawing().draw(), "run python docs/draw_architecture.py"


def test_the_command_of_the_drawing_is_told_step_by_step() -> None:
    """Every number in the drawing has its step on the page."""
    stops = sorted(stop for storey in drawing().STOREYS for room in storey for stop in room.stops)
    section = PAGE.split("## The way of a command")[1].split("\n## ")[0]
    steps = [int(number) for number in re.findall(r"^(\d+)\. ", section, re.MULTILINE)]
    assert stops == steps == list(range(1, len(steps) + 1))


def test_files_of_rooms_exist() -> None:
    """The page names files by their room, as in `decoder/stage.py`."""
    for path in set(re.findall(r"`(\w+/\w+\.py)`", PAGE)):
        if path.split("/")[0] not in ("docs", "tests"):
            assert (ROOT / "vlm_pruner" / path).exists(), f"{path} does not exist"
