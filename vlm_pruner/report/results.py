"""A finished experiment as text, as JSON and on disk. Every command that runs one reports it through here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vlm_pruner.console import shown, wrapped
from vlm_pruner.cost.accounting import planned_steps
from vlm_pruner.experiments.arms import Arm
from vlm_pruner.experiments.experiment import Experiment
from vlm_pruner.experiments.questions import Question, QuestionSet
from vlm_pruner.experiments.timings import Measured
from vlm_pruner.experiments.verdicts import UNCLEAR, Rules, comparisons
from vlm_pruner.provenance import environment
from vlm_pruner.report.compare_table import terminal

Content = str | Mapping[str, Any]


def document(experiment: Experiment, command: str) -> dict[str, Any]:
    """Everything about the run, ready for JSON."""
    facts, settings, where = experiment.facts, experiment.settings, experiment.answerer.where
    return {
        **head(command, experiment.header),
        "wall_seconds": experiment.wall_seconds,
        "model": {"path": shown(settings.model), **where, "visual_tokens": facts.visual,
                  "depth": facts.shape.layers if facts.shape else None, "text_tokens": facts.text,
                  "decoder": asdict(facts.shape) if facts.shape else None},
        "statistics": {**asdict(settings.rules), "unit": "picture", "comparisons": comparisons(experiment.cells)},
        "n": len(experiment.judged),
        "benchmarks": [_benchmark(b) for b in experiment.benchmarks],
        "items": [_item(b.name, q) for b in experiment.benchmarks for q in b.questions],
        "arms": [_arm(arm, experiment.measured.get(arm.key)) for arm in experiment.arms],
        "not_run": [asdict(one) for one in experiment.not_run],
        "cells": [cell.describe() for cell in experiment.cells],
        "prune_or_resize": [match.describe() for match in experiment.matches],
        "journal": "answers.jsonl",
    }  # fmt: skip


def head(command: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The first fields of every command's results."""
    return {
        "command": f"vlm-pruner {command}",
        "format": 1,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "config": dict(config),
    }


def text(experiment: Experiment, more: Iterable[str] = ()) -> str:
    """The tables, and what their columns mean. more: further lines of explanation."""
    head = f"model {shown(experiment.settings.model)}, {experiment.facts.visual} visual tokens per picture"
    lines = [head, "", terminal(experiment.cells, experiment.measured), "", *notes(experiment), *more]
    return "\n".join(lines)


def write(experiment: Experiment, files: Mapping[str, Content], drawn: Iterable[Path] = ()) -> None:
    """Writes files by name, closes the journal, and prints the files. drawn: pictures that exist already."""
    out = experiment.settings.out
    write_into(out, files)
    experiment.finish()
    names = [*(out / name for name in files), out / "answers.jsonl", *drawn]
    print(f"\n{experiment.wall_seconds:.0f} s in all; written:", *(f"  {shown(name)}" for name in names), sep="\n")


def write_into(folder: Path, files: Mapping[str, Content]) -> None:
    """Writes files by name: texts as they are, all else as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def notes(experiment: Experiment) -> list[str]:
    """Explains the columns, counts the verdicts, and names the arms that did not run and why."""
    rules = experiment.settings.rules
    pictures = len({question.image for question in experiment.judged})
    text = experiment.facts.text
    said = [
        "accuracy: exact match, mean over kinds, in %; loyal: answers equal to the dense model's, in %",
        f"avg: visual tokens, mean over decoder layers; FLOPs: of a prefill with {text} text tokens, in % of dense",
        f"differences: points, paired, [{100 * rules.level:g} % interval] by bootstrap over {pictures} pictures, "
        f"{rules.resamples} resamples; + better, - worse, ~ not distinguishable at this n; by kind: against dense",
        _chance(experiment, rules),
    ]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for one in experiment.not_run:
        by_reason.setdefault((one.label, one.reason), []).append(one.budget)
    not_run = [f"not run: {label} at {', '.join(at)}: {reason}" for (label, reason), at in by_reason.items()]
    return [*(wrapped(note, "  ") for note in said), *not_run]


def _chance(experiment: Experiment, rules: Rules) -> str:
    count = comparisons(experiment.cells)
    clear = sum(d.verdict != UNCLEAR for cell in experiment.cells for d in cell.against.values())
    if not rules.holm:
        expected = count * (1 - rules.level)
        return (
            f"{count} comparisons, {clear} of them clear; with no differences at all, about {expected:.0f} would look "
            "clear by chance: vlm-pruner compare --holm corrects for that"
        )
    said = f"verdicts after Holm's correction for {count} comparisons: {clear} are clear"
    if 2 * count / (rules.resamples + 1) > 1 - rules.level:
        said += f"; too few resamples for any to be clear: give --resamples {100 * count} or more"
    return said


def _benchmark(benchmark: QuestionSet) -> dict[str, Any]:
    kinds = [question.kind for question in benchmark.questions]
    return {
        "name": benchmark.name,
        "path": shown(benchmark.path),
        "n": len(kinds),
        "pictures": len({question.image for question in benchmark.questions}),
        "kinds": {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)},
    }


def _item(benchmark: str, question: Question) -> dict[str, Any]:
    own = {"question_id": question.question_id, "image": shown(question.image), "text": question.text}
    return {"benchmark": benchmark, **own, "kind": question.kind, "answer": question.answer}


def _arm(arm: Arm, measured: Measured | None) -> dict[str, Any]:
    account = arm.accounting
    steps = [] if account is None else planned_steps(arm.method, account.visual, len(account.kept))
    if arm.shown is not None:
        steps = [[0, arm.tokens]]
    return {
        "key": arm.key,
        **arm.describe(),
        "budget": arm.key.partition("@")[2] if arm.has_budget else None,
        "chosen": arm.chosen,
        "tokens": steps[-1][1] if steps else arm.tokens,
        "budget_tokens": arm.tokens,
        "steps": steps,
        "accounting": None if account is None else account.to_dict(),
        **({} if measured is None else asdict(measured)),
    }
