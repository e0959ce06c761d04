"""Finds the option that a free-form reply means, without a judge model (VLMEvalKit's exact matching)."""

from __future__ import annotations

import re
from collections.abc import Mapping

MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
STATED = re.compile(r"answer\s+is\s+\**([A-D])\**", re.IGNORECASE)
REFUSED = "Z"
REFUSALS = (
    "Sorry, I can't help with images of people yet.", "I can't process this file.",
    "I'm sorry, but without the image provided", "Cannot determine the answer",
)  # fmt: skip
LAST_WORDS = 4  # an earlier letter counts as an article, not an answer


def infer_choice(reply: str, choices: Mapping[str, str]) -> str | None:
    """The letter that ``reply`` names, "Z" for a refusal, None if unclear. ``choices``: letter -> text."""
    return _by_letter(reply, choices) or _by_text(reply, choices)


def _by_letter(reply: str, choices: Mapping[str, str]) -> str | None:
    if any(refusal in reply for refusal in REFUSALS):
        return REFUSED
    words = reply.translate(MARKS).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - LAST_WORDS:
        return named[0]
    if not named and REFUSED in words:
        return REFUSED
    stated = STATED.search(reply)
    letter = stated.group(1).upper() if stated else None
    return letter if letter in choices else None


def _by_text(reply: str, choices: Mapping[str, str]) -> str | None:
    """The only option whose text occurs in the reply; ignores replies much longer than the options."""
    reply = reply.lower()
    if len(reply) > 2 * sum(len(text) for text in choices.values()):
        return None
    found = [letter for letter, text in choices.items() if text.lower() in reply]
    return found[0] if len(found) == 1 else None
