"""docs/methods.md names every method, and its own method runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import vlm_pruner as vp
from tests.tiny_llava import inputs, prompt, tiny_llava
from vlm_pruner.methods import base

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "methods.md").read_text()


def test_every_method_is_in_the_table():
    rows = re.findall(r"^\| `([\w-]+)` \| (?:layer|two|three|the dec)", PAGE, re.M)
    assert sorted(rows) == vp.methods.names(every=True)


def test_the_method_of_your_own_runs(monkeypatch):
    monkeypatch.setattr(base, "_METHODS", dict(base._METHODS))  # the test's method stays out of the list
    code = PAGE.split("## Your own method")[1].split("```python\n")[1].split("```")[0]
    exec(code, {"__name__": "example"})
    method = vp.methods.get("longest")(keep_tokens=7)
    with torch.no_grad(), vp.prune(tiny_llava(), method) as pruning:
        pruning.model(**inputs(prompt(), images=[0]))
    assert pruning.receipts[0].images[0].n_after == 7
