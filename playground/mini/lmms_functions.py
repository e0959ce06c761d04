"""What the mini tasks of lmms-eval do with a document. `lmms_tasks` copies this file beside them; it stands alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).resolve().parent


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(FOLDER / name).convert("RGB") for name in doc["images"]]


def question(doc: dict[str, Any]) -> str:
    return str(doc["question"])


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"exact_match": float(plain(results[0]) == plain(doc["answer"]))}


def plain(text: str) -> str:
    return text.strip().rstrip(".").lower()
