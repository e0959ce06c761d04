"""Tiny Qwen2-VL, Qwen2.5-VL, Qwen3-VL and LLaVA-NeXT inside vLLM answer as in transformers, at every budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.vllm import tiny
from tests.vllm.engine import answers, engine, in_transformers, lengths, request, vllm

WISHES: dict[str, Any] = {
    "dense": None,
    "off": "off",
    "5 tokens": {"keep_tokens": 5},
    "half": {"reduction_ratio": 0.5},
    "divprune": {"method": "divprune", "keep_tokens": 6},
    "random": {"method": "random", "keep_tokens": 4, "seed": 7},
}
CASES = [(number, name) for number in range(len(tiny.PROMPTS)) for name in WISHES]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def reference(family, tmp_path_factory):
    """(folder, answers and lengths by case, the same renumbered)."""
    from transformers import AutoProcessor

    folder = tmp_path_factory.mktemp(family)
    model = tiny.write(folder, family)
    processor = AutoProcessor.from_pretrained(folder)
    ask = [(tiny.prompt(family, number), tiny.pictures(number) or None, WISHES[name]) for number, name in CASES]
    kept = [in_transformers(model, processor, *one) for one in ask]
    renumbered = [in_transformers(model, processor, *one, renumber=True) for one in ask]
    return folder, kept, renumbered


def requests(family: str) -> list[dict[str, Any]]:
    return [request(tiny.prompt(family, number), tiny.pictures(number), WISHES[name]) for number, name in CASES]


@pytest.fixture(scope="module", params=[{}, {"max_num_batched_tokens": 64, "max_num_seqs": 8}], ids=["", "chunked"])
def made(request, reference):
    """The second cuts prompts, and pictures, into chunks."""
    with engine(reference[0], max_model_len=512, **request.param) as found:
        yield found


def test_prompts_are_as_long_as_in_transformers(made, family, reference):
    assert lengths(made, requests(family)) == [length for _, length in reference[1]]


def test_answers_are_those_of_transformers(made, family, reference):
    """All at once, which puts budgets of one picture side by side; again from warm caches; then one by one."""
    wanted = [answer for answer, _ in reference[1]]
    assert answers(made, requests(family)) == wanted
    assert answers(made, requests(family)) == wanted
    made.reset_prefix_cache()
    made.reset_mm_cache()
    assert answers(made, requests(family)[::5], one_by_one=True) == wanted[::5]


def test_the_reference_would_show_wrong_positions(reference):
    differ = [kept[0] != other[0] for kept, other in zip(reference[1], reference[2], strict=True)]
    assert sum(differ) > len(CASES) // 4


def test_videos_are_not_pruned_and_say_so(made, family):
    if family not in ("qwen2_vl", "qwen2_5_vl"):
        pytest.skip("its videos need more than frames")
    told = {"fps": 1.0, "duration": 4.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    film = (np.zeros((4, 64, 64, 3), np.uint8), {**told, "video_backend": "opencv", "do_sample_frames": False})
    text = "<|turn|> user <|vision_start|><|video_pad|><|vision_end|> w1 <|close|> <|turn|> assistant"
    asked = {"prompt": text, "multi_modal_data": {"video": film}}
    with pytest.raises(vllm.exceptions.VLLMValidationError, match="videos are not pruned in vLLM"):
        answers(made, [{**asked, "mm_processor_kwargs": {"pruning": {"keep_tokens": 5}}}])
    assert answers(made, [asked]) == answers(made, [{**asked, "mm_processor_kwargs": {"pruning": "off"}}])
