"""Mini benchmarks: held-out scenes and questions in the file formats of the nine benchmarks that LLaVA is evaluated on.

`python -m playground.mini.benchmarks --out playground/data/mini` writes one folder per benchmark, laid out as LLaVA's
evaluation guide lays out `playground/data/eval`, and a folder `mini/` with the plain question list of the main job.
Scenes come from seeds and surfaces that training never uses. The same command always writes the same questions.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from playground.mini.question_file import write_picture
from playground.mini.questions import KINDS, Question, absent, ask, verify
from playground.mini.world import TEST_GALLERY, Scene, gallery, make_scene

TEST_SEED = 20_251_202
YES_NO = ("existence", "relation")
MME_SUBTASKS = ("existence", "count", "position", "color", "OCR")


def scenes(name: str, count: int) -> Iterator[tuple[np.random.Generator, Scene]]:
    """`count` test scenes of a benchmark, each with the generator that its questions are drawn from."""
    for index in range(count):
        rng = np.random.default_rng([TEST_SEED, *name.encode(), index])
        yield rng, make_scene(rng, gallery(TEST_GALLERY))


def certain(rng: np.random.Generator, scene: Scene, kind: str, tries: int = 20) -> Question | None:
    """A question of `kind`, unless the scene really has nothing to ask about."""
    return next((question for _ in range(tries) if (question := ask(rng, scene, kind)) is not None), None)


def balanced(rng: np.random.Generator, scene: Scene, kind: str, index: int) -> Question | None:
    """As `certain`; of yes/no kinds every second scene wants a yes, so that saying always the same earns 50 %."""
    if kind not in YES_NO:
        return certain(rng, scene, kind)
    wanted = ("yes", "no")[(index + YES_NO.index(kind)) % 2]
    drawn = (certain(rng, scene, kind) for _ in range(20))
    return next((question for question in drawn if question and question.answer == wanted), None)


def write_mini(out: Path, count: int) -> int:
    """One question of each kind per scene; the main job's list."""
    lines = []
    for index, (rng, scene) in enumerate(scenes("mini", count)):
        name = write_picture(scene.image, out / "images" / f"{index:06d}.png")
        for kind in KINDS:
            if question := balanced(rng, scene, kind, index):
                line = {"question_id": len(lines), "image": name, "text": question.prompt, "kind": kind}
                lines.append(line | {"answer": question.answer})
    return _lines(out / "questions.jsonl", lines)


def write_pope(out: Path, count: int) -> int:
    """Per scene and category one thing that is there and one that is not; categories differ in how near the miss is."""
    asked, labels = [], {category: [] for category in ("random", "popular", "adversarial")}
    for index, (rng, scene) in enumerate(scenes("pope", count)):
        name = write_picture(scene.image, out / "val2014" / f"MINI_val2014_{index:012d}.png")
        for category, truths in labels.items():
            for question in (_present(rng, scene), absent(rng, scene, category)):
                number = len(truths) + 1
                truths.append({"question_id": number, "image": name, "text": question.text, "label": question.answer})
                # The label files count from 1 each; ids of the question file are unique, as the real ones are.
                unique = number + 1_000_000 * sorted(labels).index(category)
                line = {"question_id": unique, "image": name, "text": question.prompt, "category": category}
                asked.append(line)
    for category, truths in labels.items():
        _lines(out / "coco" / f"coco_pope_{category}.json", truths)
    return _lines(out / "llava_pope_test.jsonl", sorted(asked, key=lambda line: line["category"]))


def _present(rng: np.random.Generator, scene: Scene) -> Question:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    return Question("existence", f"Is there a {thing.color} {thing.shape} in the image?", "yes")


def write_gqa(out: Path, count: int) -> int:
    """Existence, attribute and relation, with GQA's structural and semantic types."""
    types = {"existence": ("verify", "obj"), "attribute": ("query", "attr"), "relation": ("verify", "rel")}
    asked, truths = [], {}
    for index, (rng, scene) in enumerate(scenes("gqa", count)):
        name = write_picture(scene.image, out / "data" / "images" / f"n{index}.png")
        for kind, (structural, semantic) in types.items():
            if question := balanced(rng, scene, kind, index):
                number = f"{20_000_000 + len(asked)}"
                asked.append({"question_id": number, "image": name, "text": question.prompt, "category": "default"})
                truths[number] = {
                    "question": question.text,
                    "imageId": f"n{index}",
                    "answer": question.answer,
                    "isBalanced": True,
                    "types": {"structural": structural, "semantic": semantic, "detailed": question.subtask or kind},
                }
    _json(out / "data" / "testdev_balanced_questions.json", truths)
    return _lines(out / "llava_gqa_testdev_balanced.jsonl", asked)


def write_textvqa(out: Path, count: int) -> int:
    """The number and the word of each scene; ten people agree on the answer."""
    asked, truths = [], []
    for index, (_, scene) in enumerate(scenes("textvqa", count)):
        identity = f"{index:016x}"
        name = write_picture(scene.image, out / "train_images" / f"{identity}.png")
        for question in _readings(scene):
            asked.append({"question_id": identity, "image": name, "text": question.prompt, "category": "default"})
            truths.append(
                {
                    "question": question.text,
                    "question_id": len(truths),
                    "image_id": identity,
                    "image_width": scene.image.width,
                    "image_height": scene.image.height,
                    "answers": [question.answer] * 10,
                    "set_name": "val",
                }
            )
    header = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "mini"}
    _json(out / "TextVQA_0.5.1_val.json", header | {"data": truths})
    return _lines(out / "llava_textvqa_val_v051_ocr.jsonl", asked)


def _readings(scene: Scene) -> list[Question]:
    kinds = {"number" if sign.is_number else "word": sign.text.lower() for sign in scene.signs}
    return [Question("reading", f"What {kind} is written in the image?", text) for kind, text in kinds.items()]


def write_mme(out: Path, count: int) -> int:
    """Per scene and subtask a question that is true and one that is not."""
    asked, root = [], out / "MME_Benchmark_release_version" / "MME_Benchmark"
    for index, (rng, scene) in enumerate(scenes("MME", count)):
        for subtask in MME_SUBTASKS:
            pair = [verify(rng, scene, subtask, truth) for truth in (True, False)]
            if None in pair:
                continue
            name = f"{subtask}/{index:04d}.png"
            write_picture(scene.image, root / name)
            texts = [f"{q.text} Please answer yes or no.\t{q.answer.capitalize()}" for q in pair]
            (root / subtask / f"{index:04d}.txt").write_text("\n".join(texts) + "\n")
            asked += [{"question_id": name, "image": name, "text": q.prompt, "category": subtask} for q in pair]
    return _lines(out / "llava_mme.jsonl", asked)


def write_mmbench(out: Path, count: int) -> int:
    """Multiple choice in MMBench's table, pictures inside; each question once (no circular repetitions)."""
    names = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]
    rows = []
    for index, (rng, scene) in enumerate(scenes("mmbench", count)):
        if question := certain(rng, scene, "choice"):
            buffer = io.BytesIO()
            scene.image.save(buffer, "PNG")
            picture = base64.b64encode(buffer.getvalue()).decode()
            row = [index, question.text, "", *question.options, question.answer, f"object_{question.subtask}", picture]
            rows.append([*row, "finegrained_perception (instance-level)", "dev"])
    out.mkdir(parents=True, exist_ok=True)
    with (out / "mmbench_dev_20230712.tsv").open("w", newline="") as table:
        writer = csv.writer(table, delimiter="\t")
        writer.writerows([names, *rows])
    return len(rows)


def write_ocrbench(out: Path, count: int) -> int:
    """Text recognition: the number and the word of each scene."""
    entries: list[dict[str, Any]] = []
    for index, (_, scene) in enumerate(scenes("OCRBench", count)):
        name = f"IIIT5K/{index}.png"
        write_picture(scene.image, out / "OCRBench_Images" / name)
        for question in _readings(scene):
            entry = {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "question": question.text}
            entries.append(entry | {"image_path": name, "answers": [question.answer], "id": len(entries)})
    _json(out / "OCRBench" / "OCRBench.json", entries)
    return len(entries)


def write_seed(out: Path, count: int) -> int:
    """Multiple choice with SEED's type numbers: attributes (3) and counting (5)."""
    asked, truths = [], []
    for index, (rng, scene) in enumerate(scenes("seed_bench", count)):
        if question := certain(rng, scene, "choice"):
            identity = f"{index:06d}_mini"
            write_picture(scene.image, out / "SEED-Bench-image" / identity)
            asked.append({"question_id": index, "image": f"SEED-Bench-image/{identity}", "text": question.prompt})
            options = {f"choice_{letter}": text for letter, text in zip("abcd", question.options, strict=True)}
            truth = {"question": question.text, "answer": question.answer, "data_id": identity, "data_type": "image"}
            kind = 5 if question.subtask == "count" else 3
            truths.append(truth | options | {"question_id": str(index), "question_type_id": kind})
    types = {"Instance Attributes": 3, "Instances Counting": 5}
    _json(out / "SEED-Bench.json", {"questions": truths, "question_type": types})
    return _lines(out / "llava-seed-bench.jsonl", asked)


def write_scienceqa(out: Path, count: int) -> int:
    """Multiple choice in ScienceQA's problem list and LLaVA's conversations; every question has its picture."""
    problems, conversations = {}, []
    for index, (rng, scene) in enumerate(scenes("scienceqa", count)):
        question = certain(rng, scene, "choice")
        if question is None:
            continue
        number = str(index + 1)
        write_picture(scene.image, out / "images" / "test" / number / "image.png")
        fields = {"question": question.text, "choices": list(question.options), "hint": "", "image": "image.png"}
        fields |= {"answer": "ABCD".index(question.answer), "subject": "mini world", "split": "test"}
        problems[number] = fields | {"task": "closed choice", "grade": "grade1", "topic": question.subtask}
        body = question.exam_prompt.rsplit("\n", 1)[0]  # the loader adds the letter sentence itself
        turns = [{"from": "human", "value": f"{body}\n<image>"}]
        turns.append({"from": "gpt", "value": f"The answer is {question.answer}."})
        conversations.append({"id": number, "image": f"{number}/image.png", "conversations": turns})
    _json(out / "problems.json", problems)
    _json(out / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})
    _json(out / "llava_test_CQM-A.json", conversations)
    return len(problems)


def write_okvqa(out: Path, count: int) -> int:
    """Attributes and counts; ten people agree on the answer."""
    asked, truths = [], []
    for index, (rng, scene) in enumerate(scenes("okvqa", count)):
        name = f"val2014/MINI_val2014_{index:012d}.png"
        write_picture(scene.image, out / name)
        for place, kind in enumerate(("attribute", "count")):
            if question := certain(rng, scene, kind):
                number = index * 10 + place
                asked.append({"image": name, "question": question.text, "question_id": number})
                people = [
                    {"answer_id": i + 1, "raw_answer": question.answer, "answer": question.answer} for i in range(10)
                ]
                truths.append({"image_id": index, "question_id": number, "answers": people, "question_type": kind})
    _json(out / "mscoco_val2014_annotations.json", {"annotations": truths, "data_subtype": "val2014"})
    return _lines(out / "okvqa_val.jsonl", asked)


WRITERS: dict[str, Callable[[Path, int], int]] = {
    "mini": write_mini,
    "gqa": write_gqa,
    "scienceqa": write_scienceqa,
    "textvqa": write_textvqa,
    "pope": write_pope,
    "MME": write_mme,
    "mmbench": write_mmbench,
    "OCRBench": write_ocrbench,
    "seed_bench": write_seed,
    "okvqa": write_okvqa,
}
# Scenes of each: enough that a benchmark has at least 60 questions, few enough for two CPU cores.
DEFAULT_SCENES = {"mini": 100, "gqa": 40, "scienceqa": 80, "textvqa": 40, "pope": 20, "MME": 16} | dict.fromkeys(
    ("mmbench", "seed_bench"), 80
)


def write(out: Path, names: list[str], count: int | None = None) -> dict[str, int]:
    """Write the benchmarks `names` under `out`; `count` scenes each, or the defaults. Returns questions written."""
    return {name: _write_whole(out, name, count or DEFAULT_SCENES.get(name, 40)) for name in names}


def _write_whole(out: Path, name: str, count: int) -> int:
    """A new folder gets its name when it is complete: a killed run leaves nothing that looks whole."""
    if (out / name).exists():  # perhaps with answers in it
        return WRITERS[name](out / name, count)
    fresh = out / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    number = WRITERS[name](fresh, count)
    fresh.rename(out / name)
    return number


def _lines(path: Path, rows: list[dict[str, Any]]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to, e.g. playground/data/mini")
    parser.add_argument("--only", nargs="+", choices=list(WRITERS), default=list(WRITERS), metavar="NAME")
    parser.add_argument("--scenes", type=int, help="scenes per benchmark (default: enough for 60 questions or more)")
    args = parser.parse_args(argv)
    for name, number in write(args.out, args.only, args.scenes).items():
        print(f"{args.out / name}: {number} questions")


if __name__ == "__main__":
    main()
