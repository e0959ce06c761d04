"""`vlm-pruner methods`: what it says of methods and families is true, fits a terminal, and is what the docs say."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlm_pruner as vp
from tests import families
from tests.every_method import make, of_videos
from vlm_pruner import cli
from vlm_pruner.adapters.families import FAMILIES, find_family
from vlm_pruner.errors import PruningError
from vlm_pruner.report import catalogue

DOCS = Path(__file__).resolve().parents[1] / "docs"


def test_it_lists_every_method_and_family_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    firsts = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    assert firsts == {
        "method",
        "family",
        "tower:",
        *vp.methods.names(every=True),
        *(family.name for family in FAMILIES),
    }
    assert max(map(len, lines)) <= 80


def test_methods_by_name_and_by_family(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "fastv"]) == 0
    assert "fastv" in (told := capsys.readouterr().out) and "divprune" not in told
    assert cli.main(["methods", "--family", "qwen2_vl"]) == 0
    told = capsys.readouterr().out
    assert "divprune" in told and "fastervlm" not in told and "internvl" not in told
    assert cli.main(["methods", "--family", "qwen"]) == 2
    assert "unknown family 'qwen'; known families: llava, " in capsys.readouterr().err


def test_the_list_is_that_of_the_tests() -> None:
    assert {family.name for family in FAMILIES} == {family.name for family in families.FAMILIES}
    for family in families.FAMILIES:
        assert type(family.model).__name__ == find_family(family.name).classes
        assert family.videos == find_family(family.name).videos or family.name == "internvl"


@pytest.mark.parametrize("family", families.FAMILIES, ids=lambda family: family.name)
def test_what_it_says_of_a_family_is_true(family: families.Family) -> None:
    """The model refuses what the table refuses, and takes all else."""
    for name in [*vp.methods.names(), *of_videos()]:
        said = find_family(family.name).refusal(vp.methods.get(name))
        if said:
            with pytest.raises(PruningError, match=r"class token|compares the frames of videos, and"):
                vp.prune(family.model, make(name))
        else:
            vp.prune(family.model, make(name))


def test_the_documentation_has_these_tables() -> None:
    for name, table in (
        ("methods", catalogue.markdown()),
        ("families", catalogue.families_markdown()),
    ):
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        assert catalogue.written(page, table) == page, "run: vlm-pruner methods --write docs"


def test_every_method_says_what_it_does() -> None:
    for one in catalogue.ordered():
        does = catalogue.does(one)
        assert does.endswith(".") and len(does) > 20 and "(" not in does[:5], one.name
