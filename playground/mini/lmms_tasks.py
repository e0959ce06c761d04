"""Mini benchmarks as tasks of lmms-eval, to run it offline.

`python -m playground.mini.lmms_tasks --out playground/data/mini_lmms` writes the pictures, a data file and a YAML per
task; `--include_path playground/data/mini_lmms` makes lmms-eval find them. `mini_gqa` and `mini_pope` ask what the mini
benchmarks of those names ask, word for word. `mini_pairs` shows two pictures at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from playground.mini import benchmarks, lmms_functions

_YAML = """\
task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_visual: !function {functions}.pictures
doc_to_text: !function {functions}.question
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
  temperature: 0
  do_sample: false
process_results: !function {functions}.score
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 0.0
"""
_FUNCTIONS = "mini_functions"


def write(out: Path, count: int, data: Path | None = None) -> dict[str, int]:
    """Tasks and the number of their questions, from `count` scenes each.

    data: mini benchmarks that exist already; otherwise they are written into `out`.
    """
    if data is None:
        data = out / "benchmarks"
        benchmarks.write(data, ["gqa", "pope"], count=count)
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(lmms_functions.__file__, out / f"{_FUNCTIONS}.py")
    gqa = _gqa(data / "gqa", out)
    tasks = {"mini_gqa": gqa, "mini_pope": _pope(data / "pope", out), "mini_pairs": _pairs(gqa)}
    for task, docs in tasks.items():
        path = out.resolve() / f"{task}.json"
        path.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        yaml = _YAML.format(task=task, data=path, functions=_FUNCTIONS)
        (out / f"{task}.yaml").write_text(yaml, encoding="utf-8")
    return {task: len(docs) for task, docs in tasks.items()}


def _gqa(folder: Path, out: Path) -> list[dict[str, Any]]:
    truths = json.loads((folder / "data" / "testdev_balanced_questions.json").read_text(encoding="utf-8"))
    asked = _lines(folder / "llava_gqa_testdev_balanced.jsonl")
    pictures = folder / "data" / "images"
    return [_doc(line, pictures, truths[line["question_id"]]["answer"], out) for line in asked]


def _pope(folder: Path, out: Path) -> list[dict[str, Any]]:
    labels = {}
    for file in sorted((folder / "coco").iterdir()):
        category = file.stem.rpartition("_")[2]
        labels |= {(category, line["image"], line["text"]): line["label"] for line in _lines(file)}
    docs = []
    for line in _lines(folder / "llava_pope_test.jsonl"):
        question = line["text"].partition("\n")[0]
        docs.append(_doc(line, folder / "val2014", labels[line["category"], line["image"], question], out))
    return docs


def _doc(line: dict[str, Any], pictures: Path, answer: str, out: Path) -> dict[str, Any]:
    picture = os.path.relpath(
        pictures / line["image"], out
    )  # paths from a folder to its neighbour: Path learned them in 3.12
    identity = str(line["question_id"])
    return {"question_id": identity, "images": [picture], "question": line["text"], "answer": answer}


def _pairs(docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring documents' pictures with the first one's question."""
    return [{**doc, "images": doc["images"] + after["images"]} for doc, after in zip(docs, docs[3:], strict=False)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("playground/data/mini_lmms"))
    parser.add_argument("--count", type=int, default=20, help="scenes per task (default: %(default)s)")
    args = parser.parse_args()
    for task, documents in write(args.out, args.count).items():
        print(f"{task}: {documents} documents")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
