"""The plug-in inside the real lmms-eval, offline, on the CPU. scripts/test_lmms_eval.sh makes its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

if find_spec("lmms_eval") is None:
    pytest.skip("lmms_eval is not installed; scripts/test_lmms_eval.sh makes an environment", allow_module_level=True)

import tiny_llava_qwen
import tiny_qwen_checkpoint
import torch
from llava_tiny import write_tokenizer
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager
from odd_pictures import PICTURES
from PIL import Image
from versions import skip_before

import vlm_pruner as vp
from llava.eval import model_vqa_loader
from playground.mini import lmms_tasks
from vlm_pruner import cli, lmms
from vlm_pruner.decoder.pruning import PruningWarning
from vlm_pruner.errors import PruningError
from vlm_pruner.images import read_image
from vlm_pruner.lmms.arguments import ArgumentError, ChatArguments
from vlm_pruner.lmms.chat import ChatModel, ChatModelSimple, Qwen2VL, Qwen3VL, Qwen25VL
from vlm_pruner.lmms.decoding import Decoding
from vlm_pruner.lmms.documents import Document
from vlm_pruner.lmms.llava import Llava

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED = ROOT / "playground" / "mini" / "checkpoint"
ARMS = {"dense": "", "pruned": ",keep_tokens=64"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    lmms_tasks.write(folder, count=4)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_checkpoint.write(tmp_path_factory.mktemp("qwen"))


def evaluate(model: str, model_args: str, task: str, folder: Path, **more: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False, model_name=model)
    options = {"batch_size": 1, "bootstrap_iters": 0, "log_samples": True, **more}
    return simple_evaluate(model=model, model_args=model_args, tasks=[task], task_manager=manager, **options)


def answers(results: dict[str, Any], task: str) -> list[str]:
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"][0] for sample in samples]


@pytest.mark.parametrize("name", lmms.MODELS)
@pytest.mark.parametrize("simple", [False, True])
def test_every_model_is_found_by_its_name(name: str, simple: bool) -> None:
    found = get_model(name, force_simple=simple)
    assert found.is_simple == (simple or name.startswith("vlm_pruner_llava"))


@pytest.mark.parametrize("arm", ARMS)
def test_llava_scores_as_our_own_runner(arm: str, tasks: Path, tmp_path: Path) -> None:
    """The same questions through lmms-eval's command and through `llava.eval`: the same answers, the same accuracy."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlm_pruner_llava", "--tasks", "mini_gqa"]
    command += ["--model_args", f"pretrained={EMBEDDED},device=cpu{ARMS[arm]}", "--include_path", str(tasks)]
    command += ["--log_samples", "--output_path", str(tmp_path), "--verbosity", "DEBUG"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = tmp_path.rglob("*_results.json")
    result = json.loads(file.read_text())
    (samples,) = tmp_path.rglob("*_samples_mini_gqa.jsonl")
    lines = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    theirs = [line["filtered_resps"] for line in lines]  # one answer each, which the file holds without its list

    data, own = tasks / "benchmarks" / "gqa", tmp_path / "own.jsonl"
    flags = ["--model-path", str(EMBEDDED), "--image-folder", str(data / "data" / "images"), "--device", "cpu"]
    flags += ["--question-file", str(data / "llava_gqa_testdev_balanced.jsonl"), "--answers-file", str(own)]
    flags += ["--max_new_tokens", "16", *(["--sparse", "--keep_tokens", "64"] if arm == "pruned" else [])]
    assert model_vqa_loader.main(flags) == 0
    ours = [json.loads(line)["text"] for line in own.read_text().splitlines()]
    assert theirs == ours and len(ours) > 8
    scored = tmp_path / "score.json"
    assert cli.main(["score", "gqa", "--data", str(data), "--answers", str(own), "--json", str(scored)]) == 0
    accuracy = json.loads(scored.read_text())["metrics"]["accuracy"]
    assert result["results"]["mini_gqa"]["exact_match,none"] == pytest.approx(accuracy)
    kept = {"dense": None, "pruned": 64}[arm]
    assert result["throughput"].get("avg_kept_tokens") == kept


@pytest.mark.parametrize("flags", [["resize", "--keep_tokens", "64"], ["blind"], ["pool", "--keep_tokens", "64"]])
def test_llava_shows_and_pools_less_as_our_own_runner(flags: list[str], tasks: Path, tmp_path: Path) -> None:
    """The three baselines, through either door."""
    given = f"pretrained={EMBEDDED},device=cpu,method={flags[0]}{',keep_tokens=64' if len(flags) > 1 else ''}"
    results = evaluate("vlm_pruner_llava", given, "mini_gqa", tasks, limit=6, batch_size=3)
    data, own = tasks / "benchmarks" / "gqa", tmp_path / "own.jsonl"
    command = ["--model-path", str(EMBEDDED), "--image-folder", str(data / "data" / "images"), "--device", "cpu"]
    command += ["--question-file", str(data / "llava_gqa_testdev_balanced.jsonl"), "--answers-file", str(own)]
    assert model_vqa_loader.main([*command, "--max_new_tokens", "16", "--sparse", "--method", *flags]) == 0
    lines = [json.loads(line) for line in own.read_text().splitlines()]
    assert answers(results, "mini_gqa") == [line["text"] for line in lines[:6]]
    counts = [sample["token_counts"][0]["input_tokens"] for sample in results["samples"]["mini_gqa"]]
    shown = {"resize": 64, "blind": 0, "pool": 576}[flags[0]]
    assert all(shown < count < shown + 100 for count in counts)


def test_llava_that_cannot_shrink_pictures_says_so_before_the_first_document(tmp_path: Path) -> None:
    folder = tiny_llava_qwen.write(tmp_path / "model")
    write_tokenizer(folder)
    with pytest.raises(ValueError, match="cuts pictures into tiles"):
        get_model("vlm_pruner_llava_onevision")(pretrained=str(folder), device="cpu", method="resize", keep_tokens=4)
    with pytest.raises(PruningError, match="keep_tokens=577, but a picture has only 576"):
        get_model("vlm_pruner_llava")(pretrained=str(EMBEDDED), device="cpu", method="resize", keep_tokens=577)


def expected(folder: Path, docs: list[dict[str, Any]], images: Path, method: Any) -> list[str]:
    """Answers one by one, straight from transformers and `prune`."""
    from contextlib import nullcontext

    from transformers import AutoModelForImageTextToText

    from vlm_pruner.asking.processors import load_processor

    processor = load_processor(str(folder), max_pixels=9216)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    texts = []
    for doc in docs:
        pictures = [{"type": "image", "image": Image.open(images / name).convert("RGB")} for name in doc["images"]]
        message = {"role": "user", "content": [*pictures, {"type": "text", "text": doc["question"]}]}
        inputs = processor.apply_chat_template(
            [[message]], add_generation_prompt=True, tokenize=True, return_dict=True,
            processor_kwargs={"return_tensors": "pt", "padding": True},
        )  # fmt: skip
        with torch.no_grad(), nullcontext() if method is None else vp.prune(model, method):
            ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)
        new = ids[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("task", ["mini_gqa", "mini_pairs"])
@pytest.mark.parametrize("arm", ARMS)
def test_qwen_answers_as_transformers_alone(arm: str, task: str, qwen: Path, tasks: Path) -> None:
    """One by one, in ragged batches, as messages and as plain prompts; with one picture and with two."""
    docs = [json.loads(line) for line in (tasks / f"{task}.json").read_text().splitlines()]
    method = vp.CentrifugalPruner(keep_tokens=64) if arm == "pruned" else None
    wanted = expected(qwen, docs, tasks, method)
    assert len(set(wanted)) > 1  # or a mix-up of rows would not show
    given = f"pretrained={qwen},device=cpu,max_pixels=9216{ARMS[arm]}"
    for more in ({}, {"batch_size": 5}, {"force_simple": True, "batch_size": 3}):
        results = evaluate("vlm_pruner_qwen2_vl", given, task, tasks, **more)
        assert answers(results, task) == wanted, more
    pictures = len(docs[0]["images"])
    assert results["throughput"].get("avg_kept_tokens") == (64 * pictures if method else None)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_rest_of_the_family_runs_pruned(family: str, tasks: Path, tmp_path: Path) -> None:
    folder = tiny_qwen_checkpoint.write(tmp_path, family)
    given = f"pretrained={folder},device=cpu,max_pixels=9216,reduction_ratio=0.75,method=divprune,pruned_layer=2"
    one, many = (evaluate(f"vlm_pruner_{family}", given, "mini_pairs", tasks, batch_size=size) for size in (1, 4))
    assert answers(one, "mini_pairs") == answers(many, "mini_pairs")
    assert one["throughput"]["avg_kept_tokens"] == one["throughput"]["avg_visual_tokens"] / 4
    assert one["throughput"]["avg_max_pixels"] == 9216  # what was used is in the result


def test_receipts_lie_beside_the_results(qwen: Path, tasks: Path, tmp_path: Path) -> None:
    given = f"pretrained={qwen},device=cpu,max_pixels=9216,keep_tokens=64,receipts={tmp_path}/kept.jsonl"
    results = evaluate("vlm_pruner_qwen2_vl", given, "mini_pairs", tasks, batch_size=4)
    lines = [json.loads(line) for line in (tmp_path / "kept.jsonl").read_text().splitlines()]
    assert {line["doc_id"] for line in lines} == {sample["doc_id"] for sample in results["samples"]["mini_pairs"]}
    assert all([image["n_after"] for image in line["images"]] == [64, 64] for line in lines)
    counts = results["samples"]["mini_pairs"][0]["token_counts"][0]
    assert counts["input_tokens"] > sum(image["n_before"] for image in lines[0]["images"])


def test_a_second_run_from_the_cache_keeps_receipts_and_averages(qwen: Path, tasks: Path, tmp_path: Path) -> None:
    given = f"pretrained={qwen},device=cpu,max_pixels=9216,keep_tokens=64,receipts={tmp_path}/kept.jsonl"
    first, second = (
        evaluate("vlm_pruner_qwen2_vl", given, "mini_pairs", tasks, use_cache=str(tmp_path / "cache")) for _ in range(2)
    )
    assert answers(first, "mini_pairs") == answers(second, "mini_pairs")
    lines = (tmp_path / "kept.jsonl").read_text().splitlines()
    assert len(lines) == len(first["samples"]["mini_pairs"])
    averages = [name for name in first["throughput"] if name.startswith(("avg_visual", "avg_kept", "avg_unpruned"))]
    assert len(averages) == 3 and all(first["throughput"][name] == second["throughput"][name] for name in averages)
    assert second["throughput"]["avg_receipts_of_earlier_runs"] == len(lines)
    assert "avg_receipts_of_earlier_runs" not in first["throughput"]


@pytest.mark.parametrize("name", PICTURES)
def test_documents_pictures_are_read_as_files_are(name: str, tmp_path: Path) -> None:
    """Plain prompts and messages give the processor what `read_image` makes of the file."""
    path = PICTURES[name](tmp_path)
    expected = read_image(path).tobytes()
    document = documents(Image.open(path))
    for model in (ChatModel, ChatModelSimple):
        instance = object.__new__(model)
        instance.arguments = ChatArguments("x")
        (message,) = instance.messages(document(model.is_simple))
        (picture,) = (part["image"] for part in message["content"] if part["type"] == "image")
        assert picture.mode == "RGB" and picture.tobytes() == expected


def documents(picture: Image.Image) -> Callable[[bool], Document]:
    """A document that shows the picture, for plain prompts or for messages."""
    message = {"role": "user", "content": [{"type": "image", "url": picture}, {"type": "text", "text": "?"}]}

    def make(is_simple: bool) -> Document:
        return Document(0, "task", "test", 0, "?", Decoding(1), lambda: [picture] if is_simple else [message])

    return make


def test_generation_settings_are_obeyed(qwen: Path, tasks: Path) -> None:
    given = f"pretrained={qwen},device=cpu,max_pixels=4096"
    whole = answers(evaluate("vlm_pruner_qwen2_vl", given, "mini_gqa", tasks), "mini_gqa")
    short = evaluate("vlm_pruner_qwen2_vl", given, "mini_gqa", tasks, gen_kwargs="max_new_tokens=3")
    assert answers(short, "mini_gqa") == [" ".join(text.split()[:3]) for text in whole]
    end = whole[0].split()[1]
    cut = evaluate("vlm_pruner_qwen2_vl", given, "mini_gqa", tasks, gen_kwargs=f"until={end}")
    assert answers(cut, "mini_gqa") == [text.partition(end)[0].strip() for text in whole]
    beams = "num_beams=3,max_new_tokens=5"
    one = evaluate("vlm_pruner_qwen2_vl", f"{given},keep_tokens=16", "mini_pairs", tasks, gen_kwargs=beams)
    many = evaluate(
        "vlm_pruner_qwen2_vl", f"{given},keep_tokens=16", "mini_pairs", tasks, gen_kwargs=beams, batch_size=4
    )
    assert answers(one, "mini_pairs") == answers(many, "mini_pairs")


def test_small_pictures_are_kept_whole_and_it_is_said(qwen: Path, tasks: Path) -> None:
    given = f"pretrained={qwen},device=cpu,max_pixels=1024,keep_tokens=64"
    with pytest.warns(PruningWarning, match="keep_tokens=64"):
        results = evaluate("vlm_pruner_qwen2_vl", given, "mini_gqa", tasks, limit=2)
    assert results["throughput"]["avg_unpruned_share"] == 1


def test_a_crash_is_raised(qwen: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("selection is broken")

    monkeypatch.setattr(vp.CentrifugalPruner, "select", broken)
    for model, given in (("vlm_pruner_qwen2_vl", f"{qwen},max_pixels=4096"), ("vlm_pruner_llava", f"{EMBEDDED}")):
        with pytest.raises(RuntimeError, match="selection is broken"):
            evaluate(model, f"pretrained={given},device=cpu,keep_tokens=16", "mini_gqa", tasks, limit=1)


def test_pruning_that_does_nothing_is_raised(qwen: Path, tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_pruner.adapters.qwen_vl.QwenVLAdapter.spans", lambda self, args, kwargs: [[]])
    with (
        pytest.warns(PruningWarning, match="nothing was pruned"),
        pytest.raises(RuntimeError, match="shows 1 images or videos, but pruning met 0"),
    ):
        evaluate("vlm_pruner_qwen2_vl", f"pretrained={qwen},device=cpu,keep_tokens=16", "mini_gqa", tasks, limit=1)


@pytest.mark.parametrize(
    ("model", "given", "named"),
    [
        ("vlm_pruner_qwen2_vl", "keep_tokens=16,treshold=0.8", "unknown model_args: treshold"),
        ("vlm_pruner_qwen3_vl", "keep_tokens=16", "is a qwen2_vl, and this model takes qwen3_vl"),
        ("vlm_pruner_qwen2_vl", "keep_tokens=16,pruned_layer=4", "layer=4"),
        ("vlm_pruner_qwen2_vl", "keep_tokens=2", "pivots=4"),
    ],
)
def test_settings_are_judged_before_the_first_document(model: str, given: str, named: str, qwen: Path) -> None:
    with pytest.raises(ValueError, match=named):
        get_model(model).create_from_arg_string(f"pretrained={qwen},device=cpu,{given}", {"batch_size": 1})


def test_other_kinds_of_requests_are_refused(qwen: Path) -> None:
    model = get_model("vlm_pruner_qwen2_vl")(pretrained=str(qwen), device="cpu")
    for kind in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="Qwen2VL does not do"):
            kind([])


def test_llava_places_images_where_the_task_does() -> None:
    model = Llava(pretrained=str(EMBEDDED), device="cpu")
    picture = Image.new("RGB", (40, 30), "red")

    def document(context: str, pictures: list[Image.Image]) -> Any:
        from vlm_pruner.lmms.decoding import Decoding
        from vlm_pruner.lmms.documents import Document

        return Document(0, "t", "test", 0, context, Decoding(4), lambda: pictures)

    before = document("<image>\nIs there a red star in the image?", [picture])
    plain = document("Is there a red star in the image?", [picture])
    assert model.answer([before], before.decoding) == model.answer([plain], plain.decoding)
    with pytest.raises(ValueError, match="places 2 images in its text, but has 1"):
        two = document("<image> <image> same?", [picture])
        model.answer([two], two.decoding)


def script(tasks: Path, out: Path, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        **os.environ, "VENV_PYTHON": sys.executable, "MODEL": str(EMBEDDED), "FAMILY": "llava", "DEVICE": "cpu",
        "DTYPE": "float32", "TASK": "mini_gqa", "INCLUDE": str(tasks), "OUT": str(out), "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(out / "home"), "PROCESSES": "2", "RECEIPTS": "1", "OMP_NUM_THREADS": "1", **environment,
    }  # fmt: skip
    command = ["bash", str(ROOT / "Qwen2-VL" / "eval_scripts" / "lmms_eval_gqa.sh"), *given]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)


def test_the_script_with_two_processes_answers_as_one(tasks: Path, tmp_path: Path) -> None:
    done = script(tasks, tmp_path, "0.889", "0.8", "16", BATCH="4")
    assert done.returncode == 0 and "result: " in done.stdout, done.stdout + done.stderr
    (file,) = tmp_path.rglob("*_samples_mini_gqa.jsonl")
    lines = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda line: line["doc_id"])
    given = f"pretrained={EMBEDDED},device=cpu,reduction_ratio=0.889,threshold=0.8,token_batch=16"
    alone = answers(evaluate("vlm_pruner_llava", given, "mini_gqa", tasks), "mini_gqa")
    assert [line["filtered_resps"] for line in lines] == alone
    kept = [
        json.loads(line) for path in tmp_path.rglob("receipts.rank*.jsonl") for line in path.read_text().splitlines()
    ]
    assert sorted(line["doc_id"] for line in kept) == list(range(len(alone)))
    assert {image["n_after"] for line in kept for image in line["images"]} == {64}


def test_a_crash_of_one_process_fails_the_script(tasks: Path, tmp_path: Path) -> None:
    """Only one process meets the broken document; the other one must not wait for it."""
    broken = tmp_path / "tasks"
    lmms_tasks.write(broken, count=2)
    docs = [json.loads(line) for line in (broken / "mini_gqa.json").read_text().splitlines()]
    docs[1]["images"] = ["nowhere.png"]
    (broken / "mini_gqa.json").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    done = script(broken, tmp_path / "out", "0")
    assert done.returncode != 0 and "nowhere.png" in done.stdout + done.stderr
    assert not list(tmp_path.rglob("*_results.json"))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of 48 x 48, four per second."""
    import av
    import numpy as np

    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 48
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 48, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def about(film: Path) -> Document:
    """A document that shows the film, then a picture."""
    parts = [{"type": "video", "url": str(film)}, {"type": "image", "url": Image.new("RGB", (40, 30))}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "red star"}]}]
    return Document(0, "t", "test", 0, "", Decoding(4), lambda: messages)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_videos(family: str, film: Path, tmp_path: Path) -> None:
    folder = tiny_qwen_checkpoint.write(tmp_path / "model", family)
    model = ChatModel(pretrained=str(folder), device="cpu", max_num_frames=8, reduction_ratio=0.5)
    (reply,) = model.answer([about(film)], Decoding(4))
    assert reply.visuals == len(reply.kept) == 2
    assert {int(coords[0]) for coords in reply.kept[0].coords} == {0, 1, 2, 3}  # of 8 frames, two by two
    assert len(reply.kept[1].coords[0]) == 2
    assert all(one.n_after == one.n_before // 2 for one in reply.kept)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_limits_on_frames_and_what_the_result_says_of_them(family: str, film: Path, tmp_path: Path) -> None:
    """A frame of 48 x 48 has 36 tokens. A limit on pictures holds for frames, unless they have their own."""
    skip_before("5.18", "its Qwen processors need torchvision")
    folder = tiny_qwen_checkpoint.write(tmp_path / "model", family)
    kind = {"qwen2_vl": Qwen2VL, "qwen2_5_vl": Qwen25VL, "qwen3_vl": Qwen3VL}[family]
    for given, per_step, of_picture in (
        ({"max_pixels": 1024, "min_pixels": 64}, 16, 12),
        ({"max_pixels": 4096, "min_pixels": 64, "video_max_pixels": 576}, 9, 20),
        ({"max_pixels": 1024, "min_pixels": 64, "video_max_pixels": 2304}, 36, 12),
        ({"max_pixels": 4096, "min_pixels": 64, "video_min_pixels": 4096}, 64, 20),
        ({"max_pixels": 4096, "min_pixels": 64, "total_pixels": 8 * 512, "fps": 8}, 16, 20),
    ):
        model = kind(pretrained=str(folder), device="cpu", max_num_frames=8, reduction_ratio=0.5, **given)
        (reply,) = model.answer([about(film)], Decoding(4))
        frames = 8
        if "fps" in given and family != "qwen3_vl":  # all twelve, which share the pixels
            frames, per_step = 12, 9
        assert [one.n_before for one in reply.kept] == [frames // 2 * per_step, of_picture], given
        said = model.inputs()
        assert (said["video_frames"], said["pixels_per_frame"]) == (frames, 64 * per_step), given
        assert {name: said[name] for name in given} == given
    plain = ChatModel(pretrained=str(folder), device="cpu")
    assert (plain.inputs()["min_pixels"], plain.inputs()["max_pixels"]) == (256, 4096)  # the checkpoint's


def test_a_folder_of_frames_is_a_film(tmp_path: Path) -> None:
    skip_before("5.18", "its Qwen processors need torchvision")
    folder = tiny_qwen_checkpoint.write(tmp_path / "model", "qwen3_vl")
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(11):
        Image.new("RGB", (48, 48), (20 * number,) * 3).save(frames / f"{number}.png")
    model = Qwen3VL(pretrained=str(folder), device="cpu", max_num_frames=8, max_pixels=1024, keep_tokens=8)
    (reply,) = model.answer([about(frames)], Decoding(4))
    assert reply.kept[0].n_before == 4 * 16 and model.inputs()["video_frames"] == 8


@pytest.mark.parametrize("given", [{"video_max_pixels": 4096}, {"total_pixels": 4096}])
def test_limits_on_frames_are_refused_where_frames_have_one_size(given: dict[str, int]) -> None:
    model = object.__new__(ChatModel)
    model.arguments = ChatArguments("x", **given)
    model.processor = SimpleNamespace(image_processor=SimpleNamespace(size={"height": 30, "width": 30}))
    with pytest.raises(ArgumentError, match="scales frames to fixed sizes"):
        model._video_limits()


_FILM_TASK = """\
task: films
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function film_functions.films
doc_to_text: !function film_functions.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 4}}
process_results: !function film_functions.score
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
lmms_eval_specific_kwargs:
  default: {{end: "Answer with a letter."}}
  llava_vid: {{end: "The best answer is:"}}
metadata:
  - version: 0.0
"""
_FILM_FUNCTIONS = """\
def films(doc):
    return [doc["film"]]


def question(doc, lmms_eval_specific_kwargs=None):
    return doc["question"] + " " + lmms_eval_specific_kwargs["end"]


def score(doc, results):
    return {"exact_match": 0.0}
"""


@pytest.mark.parametrize(
    ("model", "end"),
    [("vlm_pruner_llava_vid", "The best answer is:"), ("vlm_pruner_llava_onevision", "Answer with a letter.")],
)
def test_films_are_asked_about_as_the_field_asks(model: str, end: str, tmp_path: Path) -> None:
    """A folder of frames through lmms-eval: prompt, frames and tokens are those of its own models."""
    checkpoint = tiny_llava_qwen.write(tmp_path)
    write_tokenizer(checkpoint)
    (tmp_path / "film").mkdir()
    for number in range(9):
        Image.new("RGB", (40, 30), (number,) * 3).save(tmp_path / "film" / f"{number}.png")
    doc = {"film": str(tmp_path / "film"), "question": "w1 w2", "answer": "A"}
    (tmp_path / "films.json").write_text(json.dumps(doc) + "\n")
    (tmp_path / "films.yaml").write_text(_FILM_TASK.format(data=tmp_path / "films.json"))
    (tmp_path / "film_functions.py").write_text(_FILM_FUNCTIONS)
    receipts = tmp_path / "receipts.jsonl"
    given = f"pretrained={checkpoint},device=cpu,max_frames_num=5,reduction_ratio=0.5,receipts={receipts}"
    pooled = ",mm_spatial_pool_mode=bilinear" if model.endswith("vid") else ""
    results = evaluate(model, given + pooled, "films", tmp_path)
    (sample,) = results["samples"]["films"]
    assert end in json.dumps(sample)
    (image,) = json.loads(receipts.read_text().splitlines()[-1])["images"]
    assert image["n_before"] == 5 * 3 * 4 and image["n_after"] == 30  # five frames of 3 x 3 tokens, a newline per row
    throughput = results["throughput"]
    assert throughput["avg_max_frames_num"] == 5 and throughput["avg_mm_spatial_pool_mode=bilinear"] == 1


def test_smaller_pictures_and_none(tasks: Path, qwen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """method=resize and method=blind: the visual tokens of the prompts, which nothing prunes."""
    counts: list[int] = []
    real = ChatModel._inputs

    def counted(self: Any, prompts: Any) -> Any:
        inputs = real(self, prompts)
        counts.append(int((inputs["input_ids"] == self.config.image_token_id).sum()))
        return inputs

    monkeypatch.setattr(ChatModel, "_inputs", counted)
    seen = {}
    for given in ("", ",method=resize,reduction_ratio=0.75", ",method=resize,keep_tokens=5", ",method=blind"):
        counts.clear()
        evaluate("vlm_pruner_qwen2_vl", f"pretrained={qwen},device=cpu{given}", "mini_gqa", tasks, limit=2)
        seen[given] = list(counts)
    whole, quarter, five, none = seen.values()
    assert len(whole) == 2 and all(0.17 * w <= q <= 0.25 * w for w, q in zip(whole, quarter, strict=True))
    assert all(0 < count <= 5 for count in five) and none == [0, 0]
