"""Questions about pictures, each with one right answer, and balanced samples of them."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

WORD = r"\w+"
MATCHES = ("exact", "letter", "contains")


@dataclass(frozen=True)
class Question:
    """One question. `text` ends with an instruction on the answer's form, as in LLaVA's evaluation prompts.

    match: when an answer is right. "exact": it is `answer`, ignoring outer white space and case. "letter": it starts
    with the letter `answer`, alone, in brackets or before a full stop. "contains": the words of `answer` occur in it.
    """

    question_id: int
    image: Path
    text: str
    kind: str
    answer: str
    match: str = "exact"

    def accepts(self, answer: str) -> bool:
        given, right = answer.strip().lower(), self.answer.strip().lower()
        if self.match == "letter":
            letter = re.match(r"\(?([a-z])(?![a-z'’])", given)
            return letter is not None and letter[1] == right
        if self.match == "contains":
            return f" {' '.join(re.findall(WORD, right))} " in f" {' '.join(re.findall(WORD, given))} "
        return given == right


@dataclass(frozen=True)
class QuestionSet:
    """A question file, and the questions from it to ask."""

    name: str
    path: Path
    questions: list[Question]


def question_sets(paths: Iterable[Path], at_most: int, seed: int) -> list[QuestionSet]:
    """A balanced sample of each file, named by its folder and sorted by kind. Raises ValueError if two share a name."""
    found: list[QuestionSet] = []
    for path in paths:
        everything = read_questions(path)
        name = path.resolve().parent.name
        if any(other.name == name for other in found):
            raise ValueError(f"two question files are called {name!r} by their folder ({path}); rename one folder")
        sample, kinds = balanced_sample(everything, min(at_most, len(everything)), seed), kinds_of(everything)
        found.append(QuestionSet(name, path, sorted(sample, key=lambda q: kinds.index(q.kind))))
    return found


def read_questions(path: Path) -> list[Question]:
    """Reads a question file of JSON lines; pictures are in `images/` beside it.

    Raises FileNotFoundError if the file is missing, ValueError (with the line's number) if a line is broken, a
    question_id repeats, or the file is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"question file not found: {path}")
    questions = [
        _parse(line, path, number)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    ]
    if not questions:
        raise ValueError(f"question file is empty: {path}")
    _check_unique(questions, path)
    return questions


def _parse(line: str, path: Path, number: int) -> Question:
    try:
        fields = json.loads(line)
        return Question(
            question_id=int(fields.get("question_id", number)),
            image=_inside(path.parent / "images", str(fields["image"])),
            text=str(fields["text"]),
            kind=str(fields.get("kind", "all")),
            answer=str(fields["answer"]),
            match=_known(str(fields.get("match", "exact")), str(fields["answer"])),
        )
    except (AttributeError, TypeError, ValueError, OverflowError, RecursionError) as error:
        reason = "it is no object {...}" if isinstance(error, AttributeError) else error
        raise ValueError(f"{path}, line {number} is not a question: {reason}; fix or remove the line") from error
    except KeyError as error:
        raise ValueError(f"{path}, line {number} lacks the field {error}; fix or remove the line") from error


def _inside(folder: Path, name: str) -> Path:
    """`folder/name`. Raises ValueError for a name that leads out of the folder."""
    if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"image {name!r} leaves the folder {folder.name}/; names are relative and without '..'")
    return folder / name


def _known(match: str, answer: str) -> str:
    if match not in MATCHES:
        raise ValueError(f"match {match!r} is not one of {', '.join(MATCHES)}")
    if match == "letter" and not re.fullmatch(r"\s*[A-Za-z]\s*", answer):
        raise ValueError(f"match is letter, and the answer {answer!r} is not a single letter")
    return match


def check_pictures(sets: Iterable[QuestionSet]) -> None:
    """Raises FileNotFoundError that names the first missing picture and counts the others, before a model is loaded."""
    missing = list(dict.fromkeys(q.image for one in sets for q in one.questions if not q.image.is_file()))
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"no picture {missing[0]}{more}; pictures belong in images/ beside the question file")


def _check_unique(questions: Iterable[Question], path: Path) -> None:
    seen: set[int] = set()
    for question in questions:
        if question.question_id in seen:
            raise ValueError(f"{path}: question_id {question.question_id} occurs twice; ids must be unique")
        seen.add(question.question_id)


def kinds_of(questions: Iterable[Question]) -> list[str]:
    """The kinds in order of first appearance."""
    return list(dict.fromkeys(question.kind for question in questions))


def balanced_sample(questions: Sequence[Question], count: int, seed: int) -> list[Question]:
    """`count` questions, as many of each kind as possible, drawn by `seed` and returned in the order of the file.

    A kind with too few questions contributes all it has, and the others fill up. Raises ValueError unless `count` is
    between 1 and the number of questions.
    """
    if not 1 <= count <= len(questions):
        raise ValueError(f"cannot draw {count} questions: there are {len(questions)}; ask for 1 to {len(questions)}")
    generator = random.Random(seed)
    piles = {kind: [q for q in questions if q.kind == kind] for kind in kinds_of(questions)}
    for pile in piles.values():
        generator.shuffle(pile)
    chosen: list[Question] = []
    while len(chosen) < count:
        for pile in piles.values():
            if pile and len(chosen) < count:
                chosen.append(pile.pop())
    position = {question.question_id: index for index, question in enumerate(questions)}
    return sorted(chosen, key=lambda question: position[question.question_id])
