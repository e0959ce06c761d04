"""MME: two yes/no questions per picture in fourteen subtasks; accuracy, and accuracy of both questions at once."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from vlm_pruner.scoring.base import Coverage, Headline, Score, ScoreError, Table
from vlm_pruner.scoring.needs import GUIDE, File, Needs
from vlm_pruner.scoring.records import Answer, read_answers, read_text
from vlm_pruner.scoring.stats import mean, mean_stderr

FILES = File("MME_Benchmark_release_version", "MME's authors, on request (MME_Benchmark_release_version)")
NEEDS = Needs(
    folder="MME", script="mme", questions=File("llava_mme.jsonl", GUIDE, 2374), labels=(FILES,),
    pictures=("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version"),
)  # fmt: skip

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
SUBTASKS = (*PERCEPTION, *COGNITION)
ROOTS = ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark", ".")
INSTRUCTIONS = re.compile(
    r"please answer yes or no\.|answer the question using a single word or phrase\.", re.IGNORECASE
)

Key = tuple[str, str, str]  # subtask, picture's name without suffix, question


def parse_reply(text: str) -> str:
    """ "yes", "no" or "other"; longer replies are judged by their first four characters."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")


def question_key(text: str) -> str:
    """A question without its instruction, which differs between the two files."""
    return " ".join(INSTRUCTIONS.sub(" ", text).split())


def score(data: str | Path, answers: str | Path, allow_errors: int = 0) -> Score:
    """Scores against ``MME_Benchmark_release_version/``; a question without an answer is neither yes nor no."""
    truth = _read_truth(Path(data).expanduser())
    read = read_answers(answers, allow_errors)
    for answer in read.readable:
        where, (task, picture, question) = f"{answers}, line {answer.line}", _key(answer)
        if task not in SUBTASKS:
            raise ScoreError(f"{where}: question id {answer.question_id!r} begins with none of MME's subtasks")
        if (task, picture, question) not in truth:
            raise ScoreError(f"{where}: {task} has no picture {picture!r} with the question {question!r}")
    replies, coverage = read.join(truth, _key, data)
    items = [_item(key, expected, replies.get(key)) for key, expected in truth.items()]
    absent = [task for task in SUBTASKS if not any(key[0] == task for key in truth)]
    notes = (f"no files of {', '.join(absent)}: the sums are not those of all subtasks",) if absent else ()
    return _summary(items, coverage, notes)


def _read_truth(data: Path) -> dict[Key, str]:
    """Reads the expected answers of every subtask present."""
    root = next((data / name for name in ROOTS if any((data / name / task).is_dir() for task in SUBTASKS)), None)
    if root is None:
        raise ScoreError(f"{data} has no MME_Benchmark_release_version/ with folders such as existence/ and count/")
    truth: dict[Key, str] = {}
    for task in SUBTASKS:
        folder = root / task / "questions_answers_YN"
        for path in sorted((folder if folder.is_dir() else root / task).glob("*.txt")):
            pairs = _read_pairs(path)
            truth.update({(task, path.stem, question_key(question)): answer for question, answer in pairs})
    return truth


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for line in filter(str.strip, read_text(path).split("\n")):
        question, tab, answer = line.rpartition("\t")
        answer = answer.strip().lower().replace(".", "")
        if not tab or answer not in ("yes", "no"):
            raise ScoreError(f"{path}: {line!r} is not 'question<TAB>Yes' or 'question<TAB>No'")
        pairs.append((question, answer))
    if len(pairs) != 2:
        raise ScoreError(f"{path} has {len(pairs)} questions; MME has two per picture")
    return pairs


def _key(answer: Answer) -> Key:
    parts = str(answer.question_id).split("/")
    return parts[0], Path(parts[-1]).stem, question_key(answer.prompt)


def _item(key: Key, expected: str, reply: Answer | None) -> dict[str, Any]:
    label = "other" if reply is None else parse_reply(reply.reply)
    return {"subtask": key[0], "image": key[1], "question": key[2], "ground_truth": expected, "label": label,
            "correct": label == expected}  # fmt: skip


def _summary(items: list[dict[str, Any]], coverage: Coverage, notes: tuple[str, ...]) -> Score:
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        pictures[item["subtask"]][item["image"]].append(item["correct"])
    per_subtask, errors = {}, {}
    for task, images in pictures.items():
        per_subtask[task], errors[task] = _subtask(list(images.values()))
    halves = {"perception": PERCEPTION, "cognition": COGNITION, "total": SUBTASKS}
    sums = {name: sum(per_subtask[t]["score"] for t in tasks if t in per_subtask) for name, tasks in halves.items()}
    # Subtasks have their own pictures, so their errors are independent.
    sum_errors = {
        name: sum(errors[t]["score"] ** 2 for t in tasks if t in errors) ** 0.5 for name, tasks in halves.items()
    }
    columns = ("images", "acc", "acc_plus", "score")
    rows: list[tuple[object, ...]] = [
        (task, *(row[name] for name in columns), errors[task]["score"]) for task, row in per_subtask.items()
    ]
    rows += [(name, None, None, None, sums[name], sum_errors[name]) for name in halves]
    return Score(
        benchmark="mme",
        metrics={**sums, "per_subtask": per_subtask},
        stderr={**sum_errors, "per_subtask": errors},
        n=len(items),
        headline=Headline("perception + cognition", sums["total"], sum_errors["total"]),
        table=Table(("subtask", "images", "acc", "acc+", "score", "s.e."), tuple(rows)),
        coverage=coverage,
        notes=(*notes, *coverage.notes("they count as wrong")),
        items=items,
    )


def _subtask(images: list[list[bool]]) -> tuple[dict[str, float], dict[str, float]]:
    """Scores of one subtask (0 to 100, their sum to 200) and standard errors from the spread over pictures."""
    acc = [100.0 * sum(image) / len(image) for image in images]
    plus = [100.0 * all(image) for image in images]
    both = [a + b for a, b in zip(acc, plus, strict=True)]
    row = {"images": len(images), "acc": mean(acc), "acc_plus": mean(plus), "score": mean(acc) + mean(plus)}
    return row, {"acc": mean_stderr(acc), "acc_plus": mean_stderr(plus), "score": mean_stderr(both)}
