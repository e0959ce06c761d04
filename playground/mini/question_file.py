"""Writes question files: pictures, and a list of questions numbered from 0."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from playground.mini.questions import Question

Asked = Iterable[tuple[str, Question]]  # kind, and question


def write_questions(folder: Path, lines: Iterable[dict[str, Any]]) -> int:
    """Writes `folder`/questions.jsonl. Returns the number of questions."""
    numbered = [json.dumps({"question_id": number, **line}) + "\n" for number, line in enumerate(lines)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(numbered))
    return len(numbered)


def write_about_pictures(folder: Path, pictures: Iterable[tuple[Image.Image, Asked]]) -> int:
    """Writes `folder`/questions.jsonl, and the pictures into `folder`/images. Returns the number of questions."""

    def lines() -> Iterator[dict[str, Any]]:
        for index, (picture, asked) in enumerate(pictures):
            name = write_picture(picture, folder / "images" / f"{index:06d}.png")
            for kind, question in asked:
                yield {"image": name, "text": question.prompt, "kind": kind, "answer": question.answer}

    return write_questions(folder, lines())


def write_picture(image: Image.Image, path: Path) -> str:
    """Returns the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", compress_level=1)
    return path.name


def writing_command(
    description: str | None, what: str, count: int, write: Callable[[Path, int], int]
) -> Callable[[list[str] | None], None]:
    """The `main` of a module that writes questions. what: what it writes `count` of by default, such as scenes."""

    def main(argv: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument(f"--{what}", type=int, default=count, metavar="N", help="(%(default)s)")
        parser.add_argument("--out", type=Path, required=True, help="folder to write to")
        args = parser.parse_args(argv)
        print(f"{args.out}/questions.jsonl: {write(args.out, getattr(args, what))} questions")

    return main
