"""`--model_args`: parsed and checked before anything loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar, get_type_hints

from vlm_pruner.console import DENSE
from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.frame_sizes import PixelLimits
from vlm_pruner.geometry.videos import NEWLINE_POSITIONS, POOL_MODES
from vlm_pruner.llava.eval.options import DEFAULT_METHOD, METHOD_FLAGS
from vlm_pruner.llava.sights import BLIND, RESIZE, Sight
from vlm_pruner.methods import Pruner, from_words
from vlm_pruner.methods.words import BUDGET, read

SPELLED = {field: flag for flag, field in METHOD_FLAGS.items()}
DTYPES = ("auto", "float32", "float16", "bfloat16")
ATTENTION = ("sdpa", "eager", "flash_attention_2")


class ArgumentError(PruningError):
    """`--model_args` that make no sense; the message names the value and the remedy."""


@dataclass(frozen=True)
class Arguments:
    """Arguments of every model. The method's settings are None unless given: their defaults live in its dataclass.

    pretrained: checkpoint folder or Hub name. dtype: "auto" means the family's usual one on a GPU, float32 on a CPU.
    device_map: as in transformers ("auto" spreads one model over all GPUs); replaces device.
    receipts: a JSON-lines file for the tokens kept in every document.
    """

    pretrained: str
    batch_size: int = 1
    device: str | None = None
    device_map: str | None = None
    dtype: str = "auto"
    attn_implementation: str = "sdpa"
    receipts: str | None = None
    seed: int = 0  # for methods that draw
    method: str | None = None
    reduction_ratio: float | None = None
    keep_tokens: int | None = None
    pruned_layer: int | None = None
    pivot_image_token: int | None = None
    threshold: float | None = None
    token_batch: int | None = None
    compat: str | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ArgumentError(f"batch_size={self.batch_size} must be at least 1")
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("attn_implementation", self.attn_implementation, ATTENTION)
        if self.device is not None and self.device_map is not None:
            raise ArgumentError(f"device={self.device} and device_map={self.device_map}: give one of them")

    @classmethod
    def defaults_beside(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on the given settings, read already."""
        return {}

    def inputs(self) -> dict[str, Any]:
        """The settings that decide what the model sees, for the result file: those of the family alone."""
        shared = {entry.name for entry in fields(Arguments)}
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name not in shared}


@dataclass(frozen=True)
class LlavaArguments(Arguments):
    """conv_template: the conversation template that the checkpoint was trained with, as in `llava.eval`."""

    conv_template: str = "vicuna_v1"


@dataclass(frozen=True)
class LlavaOnevisionArguments(LlavaArguments):
    """As lmms-eval's `llava_onevision`, with its defaults.

    max_frames_num: frames of every video, from the first to the last. mm_spatial_pool_mode: how they are pooled.
    mm_spatial_pool_stride: 2, the only stride that LLaVA uses.
    """

    conv_template: str = "qwen_1_5"
    max_frames_num: int = 32
    mm_spatial_pool_mode: str = "bilinear"
    mm_spatial_pool_stride: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames_num < 1:
            raise ArgumentError(f"max_frames_num={self.max_frames_num} must be at least 1")
        if self.mm_spatial_pool_stride != 2:
            raise ArgumentError(
                f"mm_spatial_pool_stride={self.mm_spatial_pool_stride} would be ignored: LLaVA always pools by 2"
            )
        _check_choice("mm_spatial_pool_mode", self.mm_spatial_pool_mode, POOL_MODES)


@dataclass(frozen=True)
class LlavaVideoArguments(LlavaOnevisionArguments):
    """As lmms-eval's `llava_vid`, with its defaults, which take the place of what the checkpoint says.

    video_fps: frames per second, as long as there are no more than max_frames_num. force_sample: always that many.
    mm_newline_position: where newline tokens stand. add_time_instruction: say in the prompt when the frames are.
    """

    max_frames_num: int = 20
    mm_spatial_pool_mode: str = "average"
    mm_newline_position: str = "grid"
    video_fps: float = 1.0
    force_sample: bool = False
    add_time_instruction: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.video_fps > 0:
            raise ArgumentError(f"video_fps={self.video_fps} must be above 0")
        _check_choice("mm_newline_position", self.mm_newline_position, NEWLINE_POSITIONS)


@dataclass(frozen=True)
class ChatArguments(Arguments):
    """min_pixels, max_pixels: images are scaled to between these (families that take images of any size).

    They hold for the frames of videos too, unless video_min_pixels, video_max_pixels (per frame) or total_pixels (of
    all frames) are given: `PixelLimits`. max_num_frames: evenly spread frames to take from a video; alternatively
    fps, frames per second. system_prompt: replaces the one in the checkpoint's chat template.
    """

    max_pixels: int | None = None
    min_pixels: int | None = None
    max_num_frames: int = 32
    fps: float | None = None
    system_prompt: str | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_num_frames < 1:
            raise ArgumentError(f"max_num_frames={self.max_num_frames} must be at least 1")
        if self.fps is not None and not self.fps > 0:
            raise ArgumentError(f"fps={self.fps} must be above 0")
        _ = self.pixels  # raises if they contradict each other

    @property
    def pixels(self) -> PixelLimits:
        return PixelLimits(**{field.name: getattr(self, field.name) for field in fields(PixelLimits)})

    def inputs(self) -> dict[str, Any]:
        """The family's settings, without those limits on videos that were not given."""
        optional = ("video_min_pixels", "video_max_pixels", "total_pixels")
        return {name: value for name, value in super().inputs().items() if value is not None or name not in optional}


@dataclass(frozen=True)
class Qwen3Arguments(ChatArguments):
    """As lmms-eval's `qwen3_vl`, with its defaults. The paper does not say what it used for Qwen3-VL.

    A default limit on pixels gives way to the other one, if that was given: max_pixels=9216 makes min_pixels 9216. With
    total_pixels and without fps, fps is 2. fps gives an even number of frames, 4 to max_num_frames.
    """

    max_pixels: int | None = 1605632
    min_pixels: int | None = 256 * 28 * 28
    system_prompt: str | None = "You are a helpful assistant."

    @classmethod
    def defaults_beside(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        least, most = given.get("min_pixels"), given.get("max_pixels")
        frames = {"fps": 2.0} if given.get("total_pixels") is not None and given.get("fps") is None else {}
        if least is None and most is not None:
            return {"min_pixels": min(cls.min_pixels or most, most), **frames}
        if most is None and least is not None:
            return {"max_pixels": max(cls.max_pixels or least, least), **frames}
        return frames


A = TypeVar("A", bound=Arguments)


def read_arguments(kind: type[A], given: Mapping[str, Any]) -> A:
    """Parses `given` as a `kind`. Raises PruningError for unknown names, and for missing or meaningless values."""
    known = {field.name: field for field in fields(kind)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise ArgumentError(f"unknown model_args: {', '.join(unknown)}; known ones: {', '.join(sorted(known))}")
    missing = [name for name, field in known.items() if field.default is MISSING and name not in given]
    if missing:
        raise ArgumentError(f"model_args lack {', '.join(missing)}: give for example pretrained=FOLDER")
    hints = get_type_hints(kind)
    values = {name: read(name, value, hints[name]) for name, value in given.items()}
    return kind(**{**kind.defaults_beside(values), **values})


def join(model_args: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Joins `--model_args` with lmms-eval's own `--batch_size` and `--device`, which must not contradict them.

    `--batch_size 1` is lmms-eval's default and means nothing.
    """
    joined = dict(model_args)
    for name, value in options.items():
        if value is None or (name == "batch_size" and str(value) == "1"):
            continue
        if name == "max_batch_size":
            raise ArgumentError(f"--max_batch_size {value}: batches have a fixed size here; give --batch_size alone")
        if str(joined.setdefault(name, value)) != str(value):
            raise ArgumentError(f"--{name} {value} and {name}={joined[name]} in --model_args disagree; give one")
    return joined


def as_numbers(settings: Mapping[str, Any]) -> dict[str, float]:
    """Settings for lmms-eval's result file, whose `throughput` takes numbers only: a word becomes `name=word`: 1."""
    numbers = {}
    for name, value in settings.items():
        if isinstance(value, str):
            numbers[f"{name}={value}"] = 1.0
        elif value is not None:
            numbers[name] = float(value)
    return numbers


def build_sight(arguments: Arguments) -> Sight | None:
    """How pictures are shown if the method is resize or blind; None if they are shown whole."""
    if arguments.method not in (RESIZE, BLIND):
        return None
    budget, given = _given(arguments)
    if given:
        name, value = next(iter(given.items()))
        raise ArgumentError(f"{name}={value} means nothing to method={arguments.method}; leave it out")
    return Sight(BLIND) if arguments.method == BLIND else Sight(RESIZE, **budget)


def build_method(arguments: Arguments) -> Pruner | None:
    """The method that the arguments describe; None for the dense model, as with a ratio of 0, and for sights."""
    if build_sight(arguments) is not None:
        return None
    budget, given = _given(arguments)
    if arguments.method == DENSE:
        if any(budget.values()):
            raise ArgumentError("method=dense keeps every token; leave reduction_ratio and keep_tokens out")
        return None
    if not budget:
        _refuse_without_budget(arguments.method, given)
    if budget in ({}, {"reduction_ratio": 0}):
        return None
    settings = {METHOD_FLAGS[flag]: value for flag, value in given.items()}
    return from_words(arguments.method or DEFAULT_METHOD, budget, settings, spelled=SPELLED, seed=arguments.seed)


def _given(arguments: Arguments) -> tuple[dict[str, Any], dict[str, Any]]:
    """The budget and the method's other settings, as far as they were given."""
    given = {flag: value for flag in METHOD_FLAGS if (value := getattr(arguments, flag)) is not None}
    return {flag: given.pop(flag) for flag in BUDGET if flag in given}, given


def _refuse_without_budget(method: str | None, given: Mapping[str, Any]) -> None:
    named = [f"{name}={value}" for name, value in (("method", method), *given.items()) if value is not None]
    if named:
        raise ArgumentError(
            f"{', '.join(named)} without a budget would run dense: add reduction_ratio (0.889 removes 8 of 9 tokens) "
            "or keep_tokens, or leave them out"
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ArgumentError(f"{name}={value} is not one of {', '.join(choices)}")
