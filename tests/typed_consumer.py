"""A program that uses VLM-Pruner, for its author's mypy: `scripts/check.sh` checks it and never runs it.

Our types reach it, because an ignore that hides no error is an error (`warn_unused_ignores`).
"""

from __future__ import annotations

from typing import Any

import vlm_pruner as vp

method: vp.CentrifugalPruner = vp.CentrifugalPruner(keep_tokens=64)
version: str = vp.__version__
names: list[str] = list(vp.methods.names())


def kept(model: Any, inputs: dict[str, Any]) -> list[int]:
    with vp.prune(model, method) as pruning:
        model.generate(**inputs)
    return list(pruning.receipts[-1].images[0].indices)


vp.CentrifugalPruner(keep_tokens="64")  # type: ignore[arg-type]
vp.CentrifugalPruner(keep_token=64)  # type: ignore[call-arg]
wrong: int = vp.__version__  # type: ignore[assignment]
