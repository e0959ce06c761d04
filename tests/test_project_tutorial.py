"""The tutorial's Python runs from top to bottom, as do the notebooks made from it; they are up to date."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.test_project_readme import llava  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", DOCS / "make_notebooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["tutorial", "receipts"])
def test_notebooks_are_what_their_pages_say(maker: ModuleType, name: str) -> None:
    committed = (DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert committed == maker.text(name), "run python docs/make_notebooks.py"


@pytest.mark.parametrize("name", ["tutorial", "receipts"])
def test_every_cell_runs(
    name: str, llava: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:  # fmt: skip
    """With a tiny model in place of the download."""
    monkeypatch.chdir(llava)
    Image.effect_noise((400, 300), 80).convert("RGB").save(llava / "picture.jpg")
    cells = json.loads((DOCS / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    blocks = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(blocks) >= 5 and "llava-hf/llava-1.5-7b-hf" in blocks[0]
    blocks[0] = blocks[0].replace("llava-hf/llava-1.5-7b-hf", str(llava))
    names: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{name}, cell {number}", "exec"), names)
    said = capsys.readouterr().out
    if name == "tutorial":
        assert "64 of 576 visual tokens from layer 2" in said
        assert "keep_tokens=2 is less than pivots=4" in said
        assert (llava / "kept.png").is_file()
    else:
        assert (llava / "merged.png").is_file() and (llava / "first.png").is_file()
