"""Smaller pictures for families of any size: the processor makes no more tokens of them than allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests import checkpoints, tiny_qwen
from tests.versions import skip_before
from vlm_pruner.asking.processed import Prompts
from vlm_pruner.asking.smaller import Shrinker, best_grid
from vlm_pruner.errors import PruningError
from vlm_pruner.llava.sights import Sight
from vlm_pruner.lmms.arguments import ChatArguments, build_method, build_sight

SIZES = ((64, 64), (200, 50), (30, 90), (5, 5))


@pytest.fixture(scope="module", params=tiny_qwen.FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    skip_before("5.18", "its Qwen processors need torchvision")
    return checkpoints.write(tmp_path_factory.mktemp(request.param) / "model", request.param)


@pytest.mark.parametrize(
    "given", [{"reduction_ratio": 0.75}, {"reduction_ratio": 0.0}, {"keep_tokens": 1}, {"keep_tokens": 7}]
)
def test_a_smaller_picture_has_as_many_tokens_as_are_allowed(folder: Path, given: dict[str, float]) -> None:
    whole, small = Prompts.open(folder, "tiny"), Prompts.open(folder, "tiny")
    shrink = Shrinker(small.processor, Sight("resize", **given))
    for size in SIZES:
        picture = Image.new("RGB", size)
        before = whole.prompt(picture, "What").visual_tokens
        assert shrink.tokens(picture) == before
        after = small.prompt(shrink(picture), "What").visual_tokens
        wanted = given.get("keep_tokens") or max(1, round(before * (1 - given["reduction_ratio"])))
        assert 0.7 * min(wanted, before) <= after <= min(wanted, before)


@pytest.mark.parametrize("aspect", [0.2, 1.0, 1.5, 6.0])
def test_the_grid_uses_its_tokens_and_keeps_the_shape(aspect: float) -> None:
    for tokens in (4, 36, 100, 331):
        rows, columns = best_grid(tokens, aspect)
        assert 0.8 * tokens <= rows * columns <= tokens
        assert 0.6 < columns / rows / aspect < 1.7
    assert best_grid(64, 1.0) == (8, 8) and best_grid(1, 3.0) == (1, 1)


def test_fixed_sizes_and_tiles_are_refused(tmp_path: Path) -> None:
    prompts = Prompts.open(checkpoints.write(tmp_path / "model", "llava_next"), "tiny")
    with pytest.raises(ValueError, match="does not scale pictures by their number of pixels"):
        Shrinker(prompts.processor, Sight("resize", keep_tokens=4))


def test_lmms_arguments() -> None:
    resize = ChatArguments("x", method="resize", reduction_ratio=0.75)
    assert build_sight(resize) == Sight("resize", reduction_ratio=0.75) and build_method(resize) is None
    blind = ChatArguments("x", method="blind", reduction_ratio=0.75)
    assert (
        build_sight(blind) == Sight("blind") and build_sight(ChatArguments("x", method="random", keep_tokens=4)) is None
    )
    for given in ({"method": "resize"}, {"method": "resize", "keep_tokens": 4, "threshold": 0.8}):
        with pytest.raises(PruningError):
            build_method(ChatArguments("x", **given))
