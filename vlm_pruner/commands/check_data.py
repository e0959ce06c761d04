"""``vlm-pruner check-data``: which files of the nine benchmarks are missing, down to the pictures of each question."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = """examples:
  vlm-pruner check-data                                   # all nine below playground/data/eval
  vlm-pruner check-data pope gqa --data /mnt/benchmarks --all
"""

MISSING = 1  # exit code


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark needs below its folder, in the layout of LLaVA's evaluation guide.

    files: path -> where it comes from; the first one is the question file, unless that is a table with its pictures.
    pictures: the folders that the questions' picture paths may start from; the first that exists counts.
    image_field: the name of that path in a question. only: paths that start otherwise are not needed.
    """

    folder: str
    files: dict[str, str]
    pictures: tuple[str, ...] = ()
    image_field: str = "image"
    only: str = ""


LLAVA = "eval.zip of LLaVA's evaluation guide"
COCO = "COCO val2014 (val2014.zip)"
MME = "MME's authors, on request (MME_Benchmark_release_version)"

BENCHMARKS = {
    "gqa": Benchmark(
        "gqa",
        {"llava_gqa_testdev_balanced.jsonl": LLAVA, "data/testdev_balanced_questions.json": "GQA (questions1.2.zip)",
         "data/images": "GQA (images.zip)"},
        ("data/images",),
    ),
    "scienceqa": Benchmark(
        "scienceqa",
        {"llava_test_CQM-A.json": LLAVA, "problems.json": "ScienceQA (data/scienceqa)",
         "pid_splits.json": "ScienceQA (data/scienceqa)", "images/test": "ScienceQA (test.zip)"},
        ("images/test",),
    ),
    "textvqa": Benchmark(
        "textvqa",
        {"llava_textvqa_val_v051_ocr.jsonl": LLAVA, "TextVQA_0.5.1_val.json": "TextVQA (v0.5.1)",
         "train_images": "TextVQA (train_val_images.zip)"},
        ("train_images",),
    ),
    "pope": Benchmark(
        "pope",
        {"llava_pope_test.jsonl": LLAVA, "coco/coco_pope_adversarial.json": "POPE (output/coco)",
         "coco/coco_pope_popular.json": "POPE (output/coco)", "coco/coco_pope_random.json": "POPE (output/coco)",
         "val2014": COCO},
        ("val2014",),
    ),
    "mme": Benchmark(
        "MME", {"llava_mme.jsonl": LLAVA, "MME_Benchmark_release_version": MME},
        ("MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version"),
    ),
    "mmbench": Benchmark("mmbench", {"mmbench_dev_20230712.tsv": "MMBench (mmbench_dev_20230712.tsv)"}),
    "ocrbench": Benchmark(
        "OCRBench",
        {"OCRBench/OCRBench.json": "OCRBench (OCRBench.json)", "OCRBench_Images": "OCRBench (OCRBench_Images.zip)"},
        ("OCRBench_Images",), "image_path",
    ),
    "seed": Benchmark(
        "seed_bench",
        {"llava-seed-bench.jsonl": LLAVA, "SEED-Bench.json": "SEED-Bench",
         "SEED-Bench-image": "SEED-Bench (SEED-Bench-image.zip)"},
        (".",), only="SEED-Bench-image/",
    ),
    "okvqa": Benchmark(
        "okvqa",
        {"okvqa_val.jsonl": "python -m llava.eval.convert_okvqa_questions",
         "mscoco_val2014_annotations.json": "OK-VQA (testing annotations)", "val2014": COCO},
        (".",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """Missing files with their sources, missing pictures, and how many pictures the questions name."""

    files: dict[Path, str]
    pictures: list[Path]
    asked: int

    @property
    def complete(self) -> bool:
        return not self.files and not self.pictures


def check(benchmark: Benchmark, data: Path) -> Finding:
    """Look below ``data / benchmark.folder``; pictures only if the question file and their folder are there."""
    root = data / benchmark.folder
    missing = {root / name: source for name, source in benchmark.files.items() if not (root / name).exists()}
    folder = next((root / name for name in benchmark.pictures if (root / name).is_dir()), None)
    questions = root / next(iter(benchmark.files))
    if folder is None or questions in missing:
        return Finding(missing, [], 0)
    names = sorted({name for name in _pictures(questions, benchmark) if name.startswith(benchmark.only)})
    return Finding(missing, [folder / name for name in names if not (folder / name).is_file()], len(names))


def _pictures(questions: Path, benchmark: Benchmark) -> Iterator[str]:
    """Picture paths of a question file; some questions have none."""
    text = questions.read_text(encoding="utf-8")
    lines = [text] if questions.suffix == ".json" else [line for line in text.split("\n") if line.strip()]
    try:
        loaded = [json.loads(line) for line in lines]
        records = loaded[0] if questions.suffix == ".json" else loaded
        yield from (str(record[benchmark.image_field]) for record in records if record.get(benchmark.image_field))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{questions} is not a question file ({error}); download it again") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "benchmarks", nargs="*", metavar="BENCHMARK", help=f"which (default: all): {', '.join(BENCHMARKS)}"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("playground/data/eval"), metavar="DIR",
        help="folder of the benchmarks' folders (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="list every missing picture, not only the first three")


def run(args: argparse.Namespace) -> int:
    unknown = [name for name in args.benchmarks if name not in BENCHMARKS]
    if unknown:
        raise ValueError(f"no benchmark is called {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}")
    complete = True
    for name in args.benchmarks or BENCHMARKS:
        finding = check(BENCHMARKS[name], args.data)
        complete &= finding.complete
        print(describe(name, finding, None if args.all else 3))
    return 0 if complete else MISSING


def describe(name: str, finding: Finding, most: int | None = 3) -> str:
    """One line for what is there, one for each missing file, and ``most`` of the missing pictures."""
    if finding.complete:
        return f"{name}: complete" + (f", {finding.asked} pictures" if finding.asked else "")
    lines = [f"{name}: missing:", *(f"  {path}   from {source}" for path, source in finding.files.items())]
    if finding.pictures:
        shown = finding.pictures[:most]
        lines.append(
            f"  {len(finding.pictures)} of {finding.asked} pictures" + ("" if most is None else ", among them:")
        )
        lines += [f"    {path}" for path in shown]
    return "\n".join(lines)
