"""The files of a benchmark, below its folder in the layout of LLaVA's evaluation guide."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_pruner.scoring.base import ScoreError

GUIDE = "eval.zip of LLaVA's evaluation guide"
COCO = "COCO val2014 (val2014.zip)"


@dataclass(frozen=True)
class File:
    """One file or folder.

    path: below the benchmark's folder. source: where to get it. count: entries of the release that the published scores
    used; None for folders and for files that are not counted. key: where in a JSON object the entries are.
    others: patterns that find the file under another name.
    """

    path: str
    source: str
    count: int | None = None
    key: str = ""
    others: tuple[str, ...] = ()

    def find(self, data: str | Path) -> Path:
        """The file below `data`, or `data` itself if it is a file, as with the field's own commands."""
        root = Path(data).expanduser()
        if root.is_file():
            return root
        if not root.is_dir():
            raise ScoreError(f"{root} is not a folder; --data takes the benchmark's own folder")
        for name in (self.path, *self.others):
            found = sorted(root.glob(name))
            if len(found) > 1:
                listed = ", ".join(path.name for path in found)
                raise ScoreError(f"{root} has several files {name} ({listed}); leave one")
            if found:
                return found[0]
        raise ScoreError(f"{root} has no {' or '.join((self.path, *self.others))}; it comes from {self.source}")


@dataclass(frozen=True)
class Needs:
    """All files of one benchmark.

    folder: the benchmark's own, in the folder of all benchmarks. script: its name in scripts/v1_5/eval. questions: the
    question file. labels: what the scorer reads besides. pictures: folders to which the questions' picture paths may be
    relative; the first that exists counts. picture_files: where the pictures come from. image_field: the key of the
    picture's path in a question. only: the start of the paths that are needed.
    """

    folder: str
    script: str
    questions: File
    labels: tuple[File, ...] = ()
    pictures: tuple[str, ...] = ()
    picture_files: File | None = None
    image_field: str = "image"
    only: str = ""

    @property
    def files(self) -> dict[str, str]:
        """Path -> source of every file; the question file comes first."""
        extra = () if self.picture_files is None else (self.picture_files,)
        return {file.path: file.source for file in (self.questions, *self.labels, *extra)}

    def image_folder(self, root: Path) -> Path | None:
        """The folder below the benchmark's `root` to which the questions' picture paths are relative."""
        return next((root / name for name in self.pictures if (root / name).is_dir()), None)
