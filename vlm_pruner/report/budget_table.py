"""The smallest budgets that keep the answers, as text and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlm_pruner.console import COLUMNS, shown, wrapped
from vlm_pruner.experiments.search import SEARCH, Budgets, Search, Trial
from vlm_pruner.report.results import head
from vlm_pruner.report.table import render

HEADER = ["method", "found", "confirmed", "removed", "FLOPs", "accuracy", "dense", "kept", "at least"]


def text(done: Budgets) -> str:
    """At most 80 columns: per method the budget found, the budget confirmed, and its accuracy."""
    goal, share = done.goal, f"{100 * done.goal.keep_share:g} %"
    asked = (
        f"model {shown(done.settings.model)}, {done.facts.visual} visual tokens per picture; "
        f"{done.n[0]} questions to search, {done.n[1]} to confirm"
    )
    notes = [
        f"found: the smallest budget shown to keep {share} of the dense accuracy on the first half of the pictures; "
        f"confirmed: on the other half, the smallest of it and the two steps above it that is (- if none)",
        f"the rest is of the confirmed one, held out: accuracy in %, mean over kinds; kept: share of dense in %; at "
        f"least: its one-sided {100 * goal.confidence:g} % bound",
        *(f"{search.label}: {remark}" for search in done.searches if (remark := _remark(search))),
    ]
    table = render(HEADER, [_row(search, done) for search in done.searches], width=COLUMNS)
    return "\n".join([wrapped(asked, "  "), "", table, "", *(wrapped(note, "  ") for note in notes)])


def _row(search: Search, done: Budgets) -> list[str]:
    found, confirmed = search.found, search.confirmed
    start = [search.label, "-" if found is None else str(found.arm.tokens)]
    if confirmed is None:
        return [*start, *["-"] * (len(HEADER) - 2)]
    arm, kept = confirmed.arm, confirmed.retention
    flops = "-" if arm.accounting is None else f"{100 * arm.accounting.flops_share:.0f}%"
    removed = f"{100 * (1 - arm.tokens / done.facts.visual):.1f}%"
    least = 100 * (done.goal.keep_share + kept.bound / kept.dense)
    percents = [f"{100 * value:.1f}" for value in (kept.accuracy, kept.dense, kept.accuracy / kept.dense)]
    return [*start, str(arm.tokens), removed, flops, *percents, f"{least:.1f}"]


def _remark(search: Search) -> str:
    """Why a method has no budget; empty if it has one."""
    if search.reason:
        return f"not run: {search.reason}"
    if search.found is None:
        return "no budget below all tokens is shown to keep the share; more questions show smaller differences"
    if search.confirmed is None:
        return "the held-out half does not confirm what the search found: ask more questions"
    return ""


def document(done: Budgets, wall_seconds: float) -> dict[str, Any]:
    """Everything about the search, ready for JSON."""
    return {
        **head("budget", done.header),
        "wall_seconds": wall_seconds,
        "goal": asdict(done.goal),
        "visual_tokens": done.facts.visual,
        "n": {"search": done.n[0], "held_out": done.n[1], "pictures": done.pictures},
        "methods": [_search(search, done.facts.visual) for search in done.searches],
        "journal": "answers.jsonl",
    }


def _search(search: Search, visual: int) -> dict[str, Any]:
    confirmed = search.confirmed
    tokens = None if confirmed is None else confirmed.arm.tokens
    return {
        "name": search.name,
        "label": search.label,
        "found": None if search.found is None else search.found.arm.tokens,
        "keep_tokens": tokens,
        "reduction_ratio": None if tokens is None else 1 - tokens / visual,
        "trials": [_trial(trial) for trial in search.trials],
        "remark": _remark(search),
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "half": "search" if trial.half == SEARCH else "held_out",
        "tokens": trial.arm.tokens,
        "flops_share": None if trial.arm.accounting is None else trial.arm.accounting.flops_share,
        **trial.retention.describe(),
    }
