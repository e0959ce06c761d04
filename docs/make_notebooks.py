"""Makes the notebooks from the pages that they repeat: text becomes text cells, Python blocks become code cells.

python docs/make_notebooks.py           # writes docs/notebooks/*.ipynb
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
NOTEBOOKS = {"tutorial": ("tutorial",), "receipts": ("tutorial#3", "receipts")}


def cells(page: str) -> list[tuple[str, str]]:
    """("markdown" or "code", text) of a page; `page#3` ends before its section 4, and is code alone."""
    name, _, sections = page.partition("#")
    text = (HERE / f"{name}.md").read_text(encoding="utf-8")
    if sections:
        text = text.split(f"\n## {int(sections) + 1}.")[0]
    found = re.split(r"^```python\n(.*?)^```\n", text, flags=re.MULTILINE | re.DOTALL)
    made = [("code" if place % 2 else "markdown", part.strip()) for place, part in enumerate(found)]
    return [(kind, part) for kind, part in made if part and (kind == "code" or not sections)]


def notebook(name: str) -> dict[str, Any]:
    content = [cell for page in NOTEBOOKS[name] for cell in cells(page)]
    return {
        "cells": [_cell(f"{name}-{number}", kind, text) for number, (kind, text) in enumerate(content)],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(identity: str, kind: str, text: str) -> dict[str, Any]:
    # A notebook lies one folder below the pages.
    text = text if kind == "code" else re.sub(r"\]\((?!https?:|#|/)", "](../", text).replace("](../notebooks/", "](")
    own = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": identity, "metadata": {}, "source": text.splitlines(keepends=True), **own}


def text(name: str) -> str:
    return json.dumps(notebook(name), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    (HERE / "notebooks").mkdir(exist_ok=True)
    for name in NOTEBOOKS:
        (HERE / "notebooks" / f"{name}.ipynb").write_text(text(name), encoding="utf-8")


if __name__ == "__main__":
    main()
