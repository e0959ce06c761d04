"""The VQA soft score of TextVQA and OK-VQA: normalises replies and rates their agreement with ten people."""

from __future__ import annotations

import re
from collections.abc import Sequence

PEOPLE = 10

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
PERIOD = re.compile(r"\.(?!\d)")
# The official code passes a flag (re.UNICODE, 32) in place of the count, so later full stops stay.
PERIODS_REMOVED = 32

COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(COUNTED)}}
ARTICLES = {"a", "an", "the"}

# A word that lacks exactly one apostrophe of a form becomes that form.
CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't "
    "he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't "
    "must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've "
    "somebody'd've somebody'll somebody's someone'd someone'd've someone'll someone's something'd "
    "something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're "
    "they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've "
    "who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll "
    "y'all'd've you'd you'd've you'll you're you've"
)


REPAIRED = {
    form[:i] + form[i + 1 :]: form for form in CONTRACTIONS.split() for i, letter in enumerate(form) if letter == "'"
}
REPAIRED["somebody'd"] = "somebodyd"  # reversed in the official table


def normalise(text: str) -> str:
    """Brings a reply or a human answer into the form used for comparison."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _remove_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(REPAIRED.get(word, word) for word in words if word not in ARTICLES)


def _remove_punctuation(text: str) -> str:
    """Deletes a mark everywhere if a space is next to it anywhere, else replaces it by a space; then full stops."""
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if beside_space else " ")
    return PERIOD.sub("", result, count=PERIODS_REMOVED)


def soft_score(prediction: str, answers: Sequence[str]) -> float:
    """Mean over the ten people of min(1, matches among the other nine / 3); both sides normalised by the caller."""
    matches = sum(answer == prediction for answer in answers)
    seen_by_matching, seen_by_others = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    if not matches:
        return 0.0
    return (matches * seen_by_matching + (len(answers) - matches) * seen_by_others) / len(answers)
