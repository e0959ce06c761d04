"""The lmms-eval plug-in, as far as it can be tested where lmms-eval is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_qwen_checkpoint
import torch
from odd_pictures import PICTURES
from PIL import Image
from versions import skip_before  # not tests.versions: something that lmms-eval needs installs a package `tests`

import vlm_pruner as vp
from llava.eval.images import open_image
from playground.mini import lmms_tasks
from vlm_pruner import lmms
from vlm_pruner.asking.processors import load_processor
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.frame_sizes import VideoLimits
from vlm_pruner.lmms import check
from vlm_pruner.lmms.arguments import (
    ArgumentError,
    Arguments,
    ChatArguments,
    LlavaArguments,
    LlavaOnevisionArguments,
    LlavaVideoArguments,
    Qwen3Arguments,
    as_numbers,
    build_method,
    join,
    read_arguments,
)
from vlm_pruner.lmms.decoding import Decoding
from vlm_pruner.lmms.documents import in_batches, read_requests
from vlm_pruner.lmms.ledger import Ledger, NotPruned, count_visuals
from vlm_pruner.lmms.prompts import known_as
from vlm_pruner.receipts import ImageReceipt

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "Qwen2-VL" / "eval_scripts"
TASKS = {
    "gqa": "gqa", "mmbench": "mmbench_en_test", "mme": "mme", "ocrbench": "ocrbench", "okvqa": "ok_vqa_val2014",
    "pope": "pope", "sqa": "scienceqa_img", "seed": "seedbench", "textvqa": "textvqa",
    "mvbench": "mvbench", "longvideobench": "longvideobench_val_v", "mlvu": "mlvu_dev", "videomme": "videomme",
}  # fmt: skip


def arguments(**given: Any) -> Arguments:
    return read_arguments(ChatArguments, {"pretrained": "somewhere", **given})


def test_the_entry_point_leads_to_the_models() -> None:
    (entry,) = [entry for entry in entry_points(group="lmms_eval.models") if entry.name == "vlm-pruner"]
    assert entry.load() is lmms.manifests
    folder = ROOT / "vlm_pruner" / "lmms"
    for classes in lmms.MODELS.values():
        for path in filter(None, classes):
            package, module, name = path.rsplit(".", 2)
            assert package == "vlm_pruner.lmms"
            assert f"class {name}(" in (folder / f"{module}.py").read_text()


def test_arguments_become_a_method() -> None:
    method = build_method(
        arguments(reduction_ratio=0.667, pruned_layer=3, pivot_image_token=6, threshold=1, token_batch=16)
    )
    assert method == vp.CentrifugalPruner(reduction_ratio=0.667, layer=3, pivots=6, threshold=1.0, token_batch=16)
    assert build_method(arguments(keep_tokens=64.0)) == vp.CentrifugalPruner(keep_tokens=64)
    released = build_method(arguments(keep_tokens=64, compat="released"))
    assert released == vp.CentrifugalPruner(keep_tokens=64, compat="released")


def test_a_method_that_draws_gets_the_seed() -> None:
    method = build_method(arguments(method="random", keep_tokens=8, seed=7))
    assert method == vp.methods.get("random")(keep_tokens=8, seed=7)


@pytest.mark.parametrize(
    "given", [{}, {"method": "dense"}, {"reduction_ratio": 0}, {"reduction_ratio": 0.0, "threshold": 0.8}]
)
def test_dense(given: dict[str, Any]) -> None:
    assert build_method(arguments(**given)) is None


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"threshold": 0.8, "token_batch": 16}, "threshold=0.8, token_batch=16"),
        ({"method": "fastv"}, "method=fastv"),
        ({"method": "dense", "keep_tokens": 64}, "method=dense"),
        ({"method": "fastv", "keep_tokens": 64, "threshold": 0.8}, "threshold means nothing to method 'fastv'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(PruningError, match=named):
        build_method(arguments(**given))


@pytest.mark.parametrize("given", [{"reduction_ratio": 1.5}, {"keep_tokens": 64, "reduction_ratio": 0.5}])
def test_budgets_are_judged_by_the_method(given: dict[str, Any]) -> None:
    with pytest.raises(PruningError, match="reduction_ratio"):
        build_method(arguments(**given))


def test_unknown_arguments_are_named_with_the_known_ones() -> None:
    with pytest.raises(ArgumentError, match=r"unknown model_args: treshold; known ones: .*threshold"):
        arguments(treshold=0.8)
    with pytest.raises(ArgumentError, match=r"unknown model_args: max_pixels; known ones: .*conv_template"):
        read_arguments(LlavaArguments, {"pretrained": "somewhere", "max_pixels": 3136})
    with pytest.raises(ArgumentError, match="lack pretrained"):
        read_arguments(ChatArguments, {})


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_pixels": 0.5}, "max_pixels=0.5 is not a whole number"),
        ({"threshold": "high"}, "threshold='high' is not a number"),
        ({"keep_tokens": True}, "keep_tokens=True"),
        ({"dtype": "int8"}, "dtype=int8"),
        ({"attn_implementation": "flash"}, "flash_attention_2"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": "auto"}, "batch_size='auto'"),
        ({"device": "cpu", "device_map": "auto"}, "give one of them"),
        ({"min_pixels": 100, "max_pixels": 50}, "min_pixels=100"),
        ({"max_num_frames": 0}, "max_num_frames=0"),
        ({"fps": 0}, "fps=0.0 must be above 0"),
        ({"video_min_pixels": 9, "video_max_pixels": 4}, "video_min_pixels=9 is more than video_max_pixels=4"),
        ({"total_pixels": 0}, "total_pixels=0 must be at least 1"),
    ],
)
def test_senseless_values_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(PruningError, match=named):
        arguments(**given)


def test_lmms_evals_own_options_join_the_arguments() -> None:
    given = {"pretrained": "x", "batch_size": 8}
    assert join(given, {"batch_size": 1, "max_batch_size": None, "device": "cpu"}) == {**given, "device": "cpu"}
    assert join({"pretrained": "x"}, {"batch_size": "4"}) == {"pretrained": "x", "batch_size": "4"}
    with pytest.raises(ArgumentError, match="--batch_size 4 and batch_size=8"):
        join(given, {"batch_size": "4"})
    with pytest.raises(ArgumentError, match="--max_batch_size 64"):
        join(given, {"max_batch_size": 64})


def test_tasks_decoding() -> None:
    greedy = Decoding.read({"until": "END", "temperature": 0.7, "do_sample": False, "image_aspect_ratio": "pad"}, 128)
    assert greedy == Decoding(128, until=("END",))
    options = greedy.options()
    assert options["do_sample"] is False and options["temperature"] is None and options["max_new_tokens"] == 128
    drawn = Decoding.read({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 5, "num_beams": 2}, 128).options()
    assert (drawn["do_sample"], drawn["temperature"], drawn["top_p"]) == (True, 0.7, 0.9)
    assert (drawn["max_new_tokens"], drawn["num_beams"]) == (5, 2)
    with pytest.raises(ValueError, match="num_return_sequences"):
        Decoding.read({"num_return_sequences": 3}, 128)


@pytest.mark.parametrize(
    ("until", "answer"), [([], "yes. And more"), (["\n\n", "."], "yes"), ([""], "yes. And more"), (["y"], "")]
)
def test_an_answer_ends_where_the_task_says(until: list[str], answer: str) -> None:
    assert Decoding.read({"until": until}, 128).cut(" yes. And more ") == answer


def request(doc_id: int, settings: dict[str, Any], simple: bool) -> SimpleNamespace:
    def look(doc: str) -> str:
        return doc.upper()

    middle = (settings, look) if simple else (look, settings)
    return SimpleNamespace(args=("context", *middle, doc_id, "task", "test"))


@pytest.mark.parametrize("simple", [True, False])
def test_requests_in_batches_that_are_decoded_alike(simple: bool) -> None:
    settings = [{"max_new_tokens": 4 if number % 2 else 8} for number in range(7)]
    requests = [request(number, one, simple) for number, one in enumerate(settings)]
    documents = read_requests(requests, {"task": {"test": list("abcdefg")}}, simple, 128)
    assert [document.look() for document in documents] == list("ABCDEFG")
    batches = [[document.position for document in batch] for batch in in_batches(documents, 3)]
    assert batches == [[0, 2, 4], [6], [1, 3, 5]]


def receipt(before: int, after: int) -> ImageReceipt:
    kept = list(range(after))
    return ImageReceipt(0, (5, before), 2, "vlm-pruner", before, after, kept, kept, [[0.0, 0.0]] * after)


def documents(count: int) -> list[Any]:
    requests = [request(number, {}, True) for number in range(count)]
    return read_requests(requests, {"task": {"test": ["a"] * count}}, True, 128)


def test_the_ledger_adds_up_and_writes_what_was_kept(tmp_path: Path) -> None:
    method = vp.CentrifugalPruner(keep_tokens=4)
    ledger = Ledger(method, str(tmp_path / "new" / "kept.jsonl"), rank=0, world_size=1)
    first, second, third = documents(3)
    with ledger:
        ledger.add(first, 2, [receipt(16, 4), receipt(24, 4)])
        ledger.add(second, 1, [receipt(4, 4)])
        ledger.add(third, 0, [])
        ledger.add(third, 0, [])  # lmms-eval asks again to fill up a process's share
    assert ledger.summary() == {"visual_tokens": 44 / 3, "kept_tokens": 4.0, "unpruned_share": 2 / 3}
    complaint = ledger.complaint()
    assert complaint is not None and "2 of 3 documents" in complaint and "1 have no picture at all" in complaint
    lines = [json.loads(line) for line in (tmp_path / "new" / "kept.jsonl").read_text().splitlines()]
    assert [(line["task"], line["doc_id"], len(line["images"])) for line in lines] == [
        ("task", 0, 2), ("task", 1, 1), ("task", 2, 0),
    ]  # fmt: skip
    assert lines[0]["images"][1] == receipt(24, 4).to_dict()


def test_every_process_writes_its_own_receipts(tmp_path: Path) -> None:
    for rank in (0, 1):
        Ledger(vp.CentrifugalPruner(keep_tokens=4), str(tmp_path / "kept.jsonl"), rank, 2)
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["kept.rank0.jsonl", "kept.rank1.jsonl"]


def test_receipts_of_the_same_settings_stay_and_count(tmp_path: Path) -> None:
    """lmms-eval's cache answers documents without asking the model: the second run adds nothing."""
    method, path = vp.CentrifugalPruner(keep_tokens=4), tmp_path / "kept.jsonl"
    first, second, third = documents(3)
    with Ledger(method, str(path), 0, 1) as ledger:
        ledger.add(first, 1, [receipt(16, 4)])
        ledger.add(second, 1, [receipt(8, 4)])
    expected, before = ledger.summary(), path.read_bytes()
    again = Ledger(method, str(path), 0, 1)
    assert again.summary() == {**expected, "receipts_of_earlier_runs": 2.0} and path.read_bytes() == before
    assert again.summary(["another task"]) == {}
    with again:  # partly cached: one document is asked again, one is new
        again.add(first, 1, [receipt(16, 4)])
        again.add(third, 1, [receipt(12, 4)])
    assert path.read_bytes().startswith(before) and path.read_bytes().count(b"\n") == 3
    assert again.summary() == {
        "visual_tokens": 12.0, "kept_tokens": 4.0, "unpruned_share": 0.0, "receipts_of_earlier_runs": 1.0,
    }  # fmt: skip


def test_receipts_of_other_settings_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "kept.jsonl"
    with Ledger(vp.CentrifugalPruner(keep_tokens=4), str(path), 0, 1) as ledger:
        ledger.add(documents(1)[0], 1, [receipt(16, 4)])
    before = path.read_bytes()
    other = Ledger(vp.CentrifugalPruner(keep_tokens=8), str(path), 0, 1)
    assert other.set_aside is not None and other.set_aside.read_bytes() == before
    assert other.summary() == {} and path.read_bytes() == b""


def test_a_picture_that_pruning_did_not_meet_is_an_error() -> None:
    ledger = Ledger(vp.CentrifugalPruner(keep_tokens=4), None, 0, 1)
    with pytest.raises(NotPruned, match="document 0 of task shows 2 images or videos, but pruning met 1"):
        ledger.add(documents(1)[0], 2, [receipt(16, 4)])


def test_the_dense_model_keeps_no_ledger(tmp_path: Path) -> None:
    ledger = Ledger(None, str(tmp_path / "kept.jsonl"), 0, 1)
    assert ledger.summary() == {} and ledger.complaint() is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", PICTURES)
def test_opened_pictures_give_the_pixels_of_their_files(name: str, released: bool, tmp_path: Path) -> None:
    """lmms-eval's documents hold opened pictures, our question files name files: the model sees the same."""
    path = PICTURES[name](tmp_path)
    from_file = open_image(tmp_path, path.name, as_released=released)
    from_document = open_image(Path(), Image.open(path), as_released=released)
    assert from_file.mode == from_document.mode == "RGB" and from_file.tobytes() == from_document.tobytes()
    assert len(set(from_file.tobytes())) > 1, "a picture of one colour would show nothing"


def test_visuals_are_counted() -> None:
    parts = [{"type": kind} for kind in ("image", "text", "video", "image")]
    assert count_visuals([{"role": "user", "content": parts}, {"role": "user", "content": parts[:2]}]) == 4


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_processor_without_torchvision_serves_images(family: str, tmp_path: Path) -> None:
    skip_before("5.18", "its Qwen processors need torchvision")
    folder = tiny_qwen_checkpoint.write(tmp_path, family)
    processor = load_processor(str(folder), max_pixels=2304)
    content = [{"type": "image", "image": Image.new("RGB", (90, 50))}, {"type": "text", "text": "red star"}]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True,
        processor_kwargs={"return_tensors": "pt", "padding": True},
    )  # fmt: skip
    t, h, w = inputs["image_grid_thw"][0].tolist()
    assert t == 1 and h * w * 16 <= 2304 < (h + 2) * (w + 2) * 16  # as near to max_pixels as the grid allows
    assert int((inputs["input_ids"] == tiny_qwen_checkpoint.IMAGE).sum()) == h * w // 4
    assert torch.equal(inputs["attention_mask"], torch.ones_like(inputs["input_ids"]))


def test_pixel_limits_that_do_not_fit(tmp_path: Path) -> None:
    skip_before("5.18", "its Qwen processors need torchvision")
    folder = tiny_qwen_checkpoint.write(tmp_path)
    with pytest.raises(ValueError, match="min_pixels=9999 is more than max_pixels=4096"):
        load_processor(str(folder), min_pixels=9999)


def script(name: str, *given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A script as a user runs it, of whose variables none is set but `environment`."""
    text = (SCRIPTS / "common.sh").read_text()
    own = {word for line in text.splitlines() if line.startswith("#   ") for word in line[4:17].split()}
    clean = {key: value for key, value in os.environ.items() if key not in own and not key.startswith("HF_")}
    variables = {**clean, "VENV_PYTHON": sys.executable, **environment}
    command = ["bash", str(SCRIPTS / f"lmms_eval_{name}.sh"), *given]
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)


def dry(name: str, *given: str, **environment: str) -> dict[str, str]:
    """The flags that a script would give to lmms-eval, with accelerate's under `launch`."""
    done = script(name, *given, DRY_RUN="1", **environment)
    assert done.returncode == 0, done.stderr
    words = done.stdout.replace("\\,", ",").split()
    launch, flags = words[: words.index("lmms_eval") + 1], words[words.index("lmms_eval") + 1 :]
    assert launch[1:3] == ["-m", "accelerate.commands.launch"]
    named = {flag: value for flag, value in zip(flags, [*flags[1:], ""], strict=True) if flag.startswith("--")}
    return {"launch": " ".join(launch[3:-2]), **named}


def test_there_is_a_script_for_each_task() -> None:
    assert {path.name for path in SCRIPTS.glob("lmms_eval_*.sh")} == {f"lmms_eval_{name}.sh" for name in TASKS}


@pytest.mark.parametrize("name", TASKS)
def test_each_script_runs_its_task_as_the_paper_did(name: str) -> None:
    flags = dry(name, "0.667", "0.8", "16")
    assert flags["--tasks"] == TASKS[name] and flags["--model"] == "vlm_pruner_qwen2_vl"
    assert flags["--batch_size"] == "1"
    expected = "pretrained=Qwen/Qwen2-VL-7B-Instruct,dtype=bfloat16,attn_implementation=sdpa,max_pixels=1003520,"
    assert flags["--model_args"] == f"{expected}method=vlm-pruner,reduction_ratio=0.667,threshold=0.8,token_batch=16"
    settings = dict(pair.split("=") for pair in flags["--model_args"].split(","))
    method = build_method(read_arguments(ChatArguments, settings))
    assert method == vp.CentrifugalPruner(reduction_ratio=0.667, threshold=0.8, token_batch=16)


def test_variables_become_flags() -> None:
    more = {
        "MODEL": "here/qwen", "FAMILY": "qwen2_5_vl", "METHOD": "random", "SEED": "3", "BATCH": "8", "PROCESSES": "4",
        "LIMIT": "10", "OUT": "there", "INCLUDE": "tasks", "TASK": "own", "RECEIPTS": "1", "MAX_PIXELS": "9",
    }  # fmt: skip
    flags = dry("pope", "0.9", "0.8", "16", "--gen_kwargs", "max_new_tokens=4", **more)
    assert "--num_processes 4" in flags["launch"] and "--multi_gpu" in flags["launch"]
    for flag, value in {
        "--model": "vlm_pruner_qwen2_5_vl", "--tasks": "own", "--batch_size": "8", "--limit": "10",
        "--include_path": "tasks", "--gen_kwargs": "max_new_tokens=4", "--output_path": "there/qwen/random_r0.9_s3/own",
    }.items():  # fmt: skip
        assert flags[flag] == value
    settings = "method=random,reduction_ratio=0.9"
    assert flags["--model_args"].endswith(
        f"max_pixels=9,seed=3,receipts={flags['--output_path']}/receipts.jsonl,{settings}"
    )


@pytest.mark.parametrize(("ratio", "method"), [("0", "vlm-pruner"), ("0.0", ""), ("0.889", "dense")])
def test_dense_runs(ratio: str, method: str) -> None:
    flags = dry("gqa", *([ratio] if float(ratio) == 0 else [ratio, "0.8", "16"]), METHOD=method, RECEIPTS="1")
    assert "method=" not in flags["--model_args"] and "receipts" not in flags["--model_args"]
    assert flags["--output_path"].endswith("/dense/gqa")


@pytest.mark.parametrize(
    ("name", "tables", "expected"),
    [
        ("vlm_pruner_llava_vid", {"default": {}, "llava_vid": {}}, "llava_vid"),
        ("vlm_pruner_qwen3_vl", {"default": {}}, "qwen3_vl"),
        ("vlm_pruner_llava_vid", {"vlm_pruner_llava_vid": {}, "llava_vid": {}}, "vlm_pruner_llava_vid"),
        ("vlm_pruner_qwen2_vl", None, "vlm_pruner_qwen2_vl"),
        ("llava_vid", {}, "llava_vid"),
        (None, {}, None),
    ],
)
def test_tasks_look_prompts_up_under_the_fields_names(name: str | None, tables: Any, expected: str | None) -> None:
    assert known_as(name, SimpleNamespace(lmms_eval_specific_kwargs=tables)) == expected


def test_defaults_are_lmms_evals_own_and_every_result_says_them() -> None:
    video = LlavaVideoArguments(pretrained="x").inputs()
    assert video == {
        "conv_template": "qwen_1_5", "max_frames_num": 20, "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_stride": 2, "mm_newline_position": "grid", "video_fps": 1.0, "force_sample": False,
        "add_time_instruction": False,
    }  # fmt: skip
    assert as_numbers(video)["mm_spatial_pool_mode=average"] == 1 and as_numbers(video)["force_sample"] == 0
    one = LlavaOnevisionArguments(pretrained="x").inputs()
    assert (one["max_frames_num"], one["mm_spatial_pool_mode"]) == (32, "bilinear")
    qwen = Qwen3Arguments(pretrained="x").inputs()
    assert qwen == {
        "min_pixels": 200704, "max_pixels": 1605632, "max_num_frames": 32, "fps": None,
        "system_prompt": "You are a helpful assistant.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "least", "most"),
    [
        ({"max_pixels": "9216"}, 9216, 9216),
        ({"max_pixels": "1003520"}, 200704, 1003520),
        ({"min_pixels": "2000000"}, 2000000, 2000000),
        ({"min_pixels": "4096"}, 4096, 1605632),
        ({"min_pixels": "100", "max_pixels": "9216"}, 100, 9216),
        ({"min_pixels": "none", "max_pixels": "9216"}, None, 9216),
        ({"max_pixels": "none"}, 200704, None),
    ],
)
def test_a_default_limit_on_pixels_gives_way_and_the_result_says_so(given: Any, least: Any, most: Any) -> None:
    found = read_arguments(Qwen3Arguments, {"pretrained": "x", **given}).inputs()
    assert (found["min_pixels"], found["max_pixels"]) == (least, most)
    with pytest.raises(PruningError, match="min_pixels=200704 is more than max_pixels=9216"):
        read_arguments(Qwen3Arguments, {"pretrained": "x", "min_pixels": 200704, "max_pixels": 9216})


def test_limits_on_videos_are_said_where_given() -> None:
    """lmms-eval samples two frames per second where the pixels of the whole video are limited."""
    given = {"pretrained": "x", "total_pixels": "9000000", "video_max_pixels": "4096"}
    found = read_arguments(Qwen3Arguments, given)
    assert found.inputs()["total_pixels"] == 9000000 and found.inputs()["fps"] == 2.0
    assert found.pixels.video == VideoLimits(4096, 4096, 9000000)
    assert read_arguments(Qwen3Arguments, {**given, "fps": "1"}).fps == 1.0
    assert read_arguments(ChatArguments, given).fps is None
    assert read_arguments(Qwen3Arguments, {"pretrained": "x"}).pixels.video == VideoLimits(200704, 1605632)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mm_spatial_pool_stride": "4"}, "mm_spatial_pool_stride=4 would be ignored"),
        ({"mm_newline_position": "row"}, "mm_newline_position=row is not one of grid"),
        ({"mm_spatial_pool_mode": "cubic"}, "mm_spatial_pool_mode=cubic is not one of bilinear"),
        ({"max_frames_num": "0"}, "max_frames_num=0 must be at least 1"),
        ({"video_fps": "0"}, "video_fps=0.0 must be above 0"),
        ({"add_faster_video": "True"}, "unknown model_args: add_faster_video"),
    ],
)
def test_video_settings_that_cannot_be(given: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        read_arguments(LlavaVideoArguments, {"pretrained": "x", **given})


@pytest.mark.parametrize("benchmark", ["mvbench", "longvideobench", "mlvu", "videomme"])
def test_video_benchmarks(benchmark: str) -> None:
    flags = dry(benchmark, "0.889", "0.8", "16", FAMILY="llava_vid", FRAMES="64", EXTRA="force_sample=True")
    assert flags["--model"] == "vlm_pruner_llava_vid" and flags["--tasks"].startswith(benchmark)
    assert "max_frames_num=64,force_sample=True" in flags["--model_args"]
    own = {"VIDEO_MIN_PIXELS": "1024", "VIDEO_MAX_PIXELS": "9216", "TOTAL_PIXELS": "90000"}
    flags = dry(benchmark, "0", FAMILY="qwen3_vl", **own)
    assert "video_min_pixels=1024,video_max_pixels=9216,total_pixels=90000" in flags["--model_args"]
    flags = dry(benchmark, "0", FAMILY="qwen3_vl", FPS="2", MIN_PIXELS="4096")
    assert "max_pixels" not in flags["--model_args"] and "min_pixels=4096,fps=2" in flags["--model_args"]


def test_llava_has_no_pixel_limit_and_cpu_is_possible() -> None:
    flags = dry("gqa", "0.667", "0.8", "16", FAMILY="llava", DEVICE="cpu", DTYPE="float32")
    assert flags["--model"] == "vlm_pruner_llava" and "max_pixels" not in flags["--model_args"]
    assert "--cpu" in flags["launch"] and "dtype=float32" in flags["--model_args"]


@pytest.mark.parametrize("given", [[], ["0.889"], ["0.889", "0.8"], ["--limit", "3"]])
def test_usage(given: list[str]) -> None:
    done = script("pope", *given)
    assert done.returncode == 2 and "usage:" in done.stderr and done.stderr.count("\n") == 1


def test_what_is_missing_offline_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = script("gqa", "0", HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), OUT=str(tmp_path / "out"))
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "checkpoint Qwen/Qwen2-VL-7B-Instruct is not in" in done.stderr and "docs/lmms_eval.md" in done.stderr
    wanted = "lmms_eval is not installed" if find_spec("lmms_eval") is None else "the data of gqa, lmms-lab"
    assert wanted in done.stderr


TASK = "dataset_path: somebody/Some-Data\ntask: quiz\n"


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A task, one that includes it, one on local files, and a group of them."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "quiz.yaml").write_text(TASK)
    (folder / "_template").write_text("dataset_path: 'other/Data'\n")
    (folder / "odd_name.yaml").write_text('task: "quiz_b"\ninclude: _template\n')
    (folder / "local.yaml").write_text("task: local\ndataset_path: json\n")
    (folder / "all.yaml").write_text("group: every\ntask:\n- quiz\n- quiz_b\n")
    return folder


def missing(model: str, wanted: str, folder: Path, **environment: str) -> list[str]:
    found = check.missing(model, wanted.split(","), folder, environment)
    return [line for line in found if "not installed" not in line]


def test_data_in_the_cache_are_not_missing(tasks: Path, tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    model = str(tmp_path / "model")
    Path(model).mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    found = missing(model, "every,local", tasks, **offline)
    assert len(found) == 2 and "the data of quiz, somebody/Some-Data" in found[0] and "other/Data" in found[1]
    assert not missing(model, "every,local", tasks)  # online they are downloaded
    (tmp_path / "home" / "hub" / "datasets--somebody--Some-Data" / "snapshots").mkdir(parents=True)
    (tmp_path / "home" / "datasets" / "other___data").mkdir(parents=True)
    assert not missing(model, "every,local", tasks, **offline)


def test_unknown_tasks_are_named(tasks: Path) -> None:
    (line,) = missing("org/name", "quizz", tasks)
    assert line.startswith("no task quizz in ")


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "checkpoints/nothing/here"])
def test_a_checkpoint_that_is_not_there(model: str, tasks: Path) -> None:
    assert missing(model, "quiz", tasks) == [f"there is no checkpoint {model}; choose another with MODEL"]


def test_a_folder_without_a_checkpoint(tasks: Path, tmp_path: Path) -> None:
    (line,) = missing(str(tmp_path), "quiz", tasks)
    assert "has no config.json" in line


def test_hub_names_are_looked_up_offline_only(tasks: Path, tmp_path: Path) -> None:
    home = {"HF_HOME": str(tmp_path)}
    assert not missing("org/name", "local", tasks, **home)
    (line,) = missing("org/name", "local", tasks, HF_HUB_OFFLINE="1", **home)
    assert line.startswith("checkpoint org/name is not in ")
    (tmp_path / "hub" / "models--org--name" / "snapshots").mkdir(parents=True)
    assert not missing("org/name", "local", tasks, HF_HUB_OFFLINE="1", **home)


def test_mini_tasks_ask_what_the_mini_benchmarks_ask(tmp_path: Path) -> None:
    written = lmms_tasks.write(tmp_path, count=2)
    for task, count in written.items():
        docs = [json.loads(line) for line in (tmp_path / f"{task}.json").read_text().splitlines()]
        assert len(docs) == count > 0
        assert check.data_of(tmp_path / f"{task}.yaml") is None
        for doc in docs:
            assert doc["answer"] and len(doc["images"]) == (2 if task == "mini_pairs" else 1)
            assert all((tmp_path / image).is_file() for image in doc["images"])
    asked = (tmp_path / "benchmarks" / "gqa" / "llava_gqa_testdev_balanced.jsonl").read_text().splitlines()
    docs = [json.loads(line) for line in (tmp_path / "mini_gqa.json").read_text().splitlines()]
    assert [doc["question"] for doc in docs] == [json.loads(line)["text"] for line in asked]
