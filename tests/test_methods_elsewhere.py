"""Methods that live elsewhere: in a file, in an installed package, or just put into the folder."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import pickle
import re
import subprocess
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vlm_pruner as vp
from tests.test_methods_words import DOORS, KEEP
from tests.tiny_llava import inputs, prompt, tiny_llava
from vlm_pruner import cli
from vlm_pruner.cost.budgets import Budget
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.arms import ModelFacts, make_arm
from vlm_pruner.methods import base, words
from vlm_pruner.web import settings

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.split("```python\n")[1].split("```")[0]
PLAIN = re.sub(r"^@register.*\n", "", EXAMPLE, flags=re.MULTILINE)


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))
    for name in [name for name in sys.modules if name.startswith("vlm_pruner_file")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "contrast.py"
    path.write_text(EXAMPLE)
    return path


def kept(method: vp.methods.Pruner) -> list[int]:
    with torch.no_grad(), vp.prune(tiny_llava(), method) as pruning:
        pruning.model(**inputs(prompt(), images=[0]))
    return list(pruning.receipts[0].images[0].order)


def test_the_pages_example_runs(file: Path) -> None:
    method = words.from_words(f"{file}:ContrastPruner:radius=2", {"keep_tokens": 7})
    assert method.name == "contrast" and method.radius == 2.0 and len(kept(method)) == 7
    assert vp.methods.get("contrast") is type(method)
    with pytest.raises(PruningError, match=r"radius=0\.0 must be above 0"):
        words.from_words(f"{file}:ContrastPruner:radius=0", {"keep_tokens": 7})


@pytest.mark.parametrize("kind", ["dict[str, int]", "int | str", "torch.Tensor | None"])
def test_a_setting_of_a_type_that_has_no_words_is_refused(kind: str, file: Path) -> None:
    file.write_text(EXAMPLE.replace("radius: float", f"radius: {kind}"))
    with pytest.raises(PruningError, match=r"radius has the type .*(dict|int|Tensor).*; set it in Python"):
        words.from_words(f"{file}:ContrastPruner:radius=2", {"keep_tokens": 7})


@pytest.mark.parametrize("door", [name for name in DOORS if name != "page"])
def test_every_door_reads_files_but_the_page(door: str, file: Path) -> None:
    method = DOORS[door](f"{file}:ContrastPruner", "radius=3")
    assert method is not None and (type(method).__name__, method.keep_tokens, method.radius) == (
        "ContrastPruner",
        KEEP,
        3,
    )


def test_the_page_runs_no_files(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "prune", lambda model, method: None)
    with pytest.raises(PruningError, match=r"names a file, and a page that runs files .* entry point"):
        settings.make(SimpleNamespace(model=None), f"{file}:ContrastPruner", KEEP, 2)  # type: ignore[arg-type]
    assert not any(name.startswith("vlm_pruner_file") for name in sys.modules)


def test_a_method_without_a_name_is_called_as_it_was_typed(tmp_path: Path) -> None:
    path = tmp_path / "plain.py"
    path.write_text(PLAIN)
    name = f"{path}:ContrastPruner"
    assert words.from_words(name, {"keep_tokens": 7}).name == name and name not in vp.methods.names()
    assert words.printed_name(f"{name}:radius=3") == "plain.py:ContrastPruner radius=3"


def test_results_record_the_file(file: Path) -> None:
    arm = make_arm(f"{file}:ContrastPruner", Budget("tokens", 9), ModelFacts(25))
    described = json.loads(json.dumps(arm.describe()))
    assert described["source"] == {"file": "contrast.py", "sha256": hashlib.sha256(EXAMPLE.encode()).hexdigest()}
    assert "source" not in make_arm("random", Budget("tokens", 9), ModelFacts(25)).describe()


def test_other_processes_load_it_too(file: Path) -> None:
    """`compare` hands its arms to processes that have not seen the file."""
    method = words.from_words(f"{file}:ContrastPruner:radius=3", {"keep_tokens": 7})
    assert pickle.loads(pickle.dumps(method)) == method
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(repr, method).result(60) == repr(method)


def test_a_subclass_in_the_same_file_is_restored_as_itself(tmp_path: Path) -> None:
    path = tmp_path / "two.py"
    path.write_text(PLAIN + "\n\n@dataclass(frozen=True)\nclass Wider(ContrastPruner):\n    radius: float = 9.0\n")
    words.maker(f"{path}:ContrastPruner")
    module = sys.modules[words.find(f"{path}:ContrastPruner").__module__]
    wider = module.Wider(keep_tokens=7)
    assert type(pickle.loads(pickle.dumps(wider))) is module.Wider


@pytest.mark.parametrize(
    ("code", "asked", "told"),
    [
        (None, "Missing", "does not exist; give the path of a Python file, as in my_file.py:MyPruner"),
        (EXAMPLE, "Other", r"not a method; .*mine.py has .*mine.py:ContrastPruner"),
        ("import vlm_pruner", "Other", "has no class that inherits from Pruner"),
        ("1 / 0", "Other", "mine.py fails: ZeroDivisionError: division by zero"),
        (
            EXAMPLE.replace('"contrast"', '"fastv"'),
            "ContrastPruner",
            "mine.py fails: ValueError: two methods are called",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(code: str | None, asked: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    if code is not None:
        path.write_text(code)
    with pytest.raises(PruningError, match=told):
        words.maker(f"{path}:{asked}")


def test_a_near_name_is_offered() -> None:
    with pytest.raises(PruningError, match=r"unknown method 'fastvv'; known methods: .*; did you mean 'fastv'\?"):
        vp.methods.get("fastvv")


# Entry points


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that offers methods of packages, as `importlib.metadata` finds them."""
    (tmp_path / "offered.py").write_text(EXAMPLE + "\n\nclass NoMethod: ...\n")
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "broken.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)

    def offer(**points: str) -> None:
        found = {name: EntryPoint(name, value, base.GROUP) for name, value in points.items()}
        monkeypatch.setattr(base, "_installed", lambda: found)

    yield offer
    for name in ("offered", "plain", "broken"):
        sys.modules.pop(name, None)


def test_an_installed_method_is_one_of_the_others(installed, monkeypatch) -> None:
    installed(contrast="offered:ContrastPruner", nameless="plain:ContrastPruner")
    assert {"contrast", "nameless"} <= set(vp.methods.names())
    assert vp.methods.get("nameless").name == "nameless"
    monkeypatch.setattr(settings, "prune", lambda model, method: None)
    for door in DOORS.values():
        assert door("contrast", "radius=3") == vp.methods.get("contrast")(keep_tokens=KEEP, radius=3)


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ({"broken": "broken:X"}, r"'broken' .* cannot be loaded: ModuleNotFoundError: .*a_package_that_is_not_there"),
        ({"other": "offered:NoMethod"}, "is not a class that inherits from vlm_pruner.methods.Pruner"),
        ({"other": "offered:ContrastPruner"}, "registers itself as 'contrast'; give both the same name"),
    ],
)
def test_a_broken_package_takes_nothing_else_along(installed, points: dict[str, str], told: str) -> None:
    installed(**points)
    with pytest.warns(UserWarning, match=told):
        assert "fastv" in vp.methods.names()
    assert vp.methods.get("fastv").label == "FastV"
    with pytest.raises(PruningError, match=told):
        vp.methods.get(next(iter(points)))


def test_a_package_cannot_take_the_place_of_a_method(installed) -> None:
    installed(fastv="plain:ContrastPruner")
    assert vp.methods.get("fastv").__module__ == "vlm_pruner.methods.fastv"
    with pytest.warns(UserWarning, match="has the name of another method; rename the entry point"):
        vp.methods.names()


def test_entry_points_are_asked_for_by_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(base, "entry_points", lambda group: asked.append(group) or ())
    base._installed.cache_clear()
    try:
        base._installed()
    finally:
        base._installed.cache_clear()
    assert asked == ["vlm_pruner.methods"] and '"vlm_pruner.methods"' in PAGE


# In the folder


def test_a_file_in_the_folder_is_found_listed_and_tested(tmp_path: Path) -> None:
    """In a copy of the package: by name, in `vlm-pruner methods`, and in the lists that the shared tests take."""
    for name in ("vlm_pruner", "tests", "llava", "Qwen2-VL"):
        (tmp_path / name).mkdir()
        for entry in (ROOT / name).iterdir():
            if entry.name not in ("__pycache__", "methods"):
                (tmp_path / name / entry.name).symlink_to(entry)
    methods = tmp_path / "vlm_pruner" / "methods"
    methods.mkdir()
    for entry in (ROOT / "vlm_pruner" / "methods").glob("*.py"):
        (methods / entry.name).symlink_to(entry)
    (methods / "contrast.py").write_text(EXAMPLE)
    check = """
        import sys; sys.path.insert(0, ".")
        import vlm_pruner, tests.every_method as every
        from vlm_pruner import cli
        assert vlm_pruner.methods.get("contrast").label == "Contrast"
        assert "contrast" in vlm_pruner.methods.names()
        assert "contrast" in {method.name for method in every.of_decoder()}
        sys.exit(cli.main(["methods", "contrast"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(check)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:4] == ["contrast", "layer", "2", "all"]


def test_methods_are_listed_by_the_command_too(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", f"{file}:ContrastPruner"]) == 0
    assert "Keeps the tokens whose state differs most from the mean state" in " ".join(capsys.readouterr().out.split())
