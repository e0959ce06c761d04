"""Questions about pictures, each with one right answer, and balanced samples of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Question:
    """One question. `text` ends with an instruction on the answer's form, as in LLaVA's evaluation prompts."""

    question_id: int
    image: Path
    text: str
    kind: str
    answer: str

    def accepts(self, answer: str) -> bool:
        """Exact match, ignoring outer white space and case."""
        return answer.strip().lower() == self.answer.strip().lower()


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
            question_id=int(fields["question_id"]),
            image=path.parent / "images" / fields["image"],
            text=str(fields["text"]),
            kind=str(fields["kind"]),
            answer=str(fields["answer"]),
        )
    except (json.JSONDecodeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {number} is not a question: {error}; fix or remove the line") from error
    except KeyError as error:
        raise ValueError(f"{path}, line {number} lacks the field {error}; fix or remove the line") from error


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
