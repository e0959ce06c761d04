"""A model divided among processes by DeepSpeed ZeRO-3, for models that no single device holds.

    accelerate launch --use_deepspeed --deepspeed_config_file scripts/zero3.json --num_processes 2 \\
        -m llava.eval.model_vqa_loader ...

Each process holds a part of every decoder layer's weights, and all gather a layer's weights whenever it runs. So every
process must run the same layers equally often: all make the same number of calls with the same number of pictures, and
a call continues until the last process has its answer (transformers' `synced_gpus`). Everything outside the layers,
about a tenth of a large model, is whole in every process, because how often it runs depends on the pictures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlm_pruner.llava.eval.errors import UsageError
from vlm_pruner.llava.eval.processes import Team, under_deepspeed
from vlm_pruner.llava.eval.questions import Item, Question
from vlm_pruner.llava.eval.runner import Engine, Steps, prepare

if TYPE_CHECKING:
    import torch
    from torch import nn

P = TypeVar("P")
Loaded = tuple[Any, Any, Any, int]

COMMAND = (
    "accelerate launch --use_deepspeed --deepspeed_config_file scripts/zero3.json --num_processes N -m llava.eval.NAME"
)


def check(team: Team) -> None:
    """Raises UsageError if ZeRO-3 was asked for and cannot run here."""
    if not under_deepspeed():
        return
    if find_spec("deepspeed") is None:
        raise UsageError("accelerate was started with DeepSpeed, which is not installed: pip install deepspeed")
    if team.size == 1:
        raise UsageError(f"DeepSpeed divides a model among processes, and this is the only one: {COMMAND}")
    configuration()


def configuration(dtype: torch.dtype | None = None) -> dict[str, Any]:
    """DeepSpeed's configuration for a model in `dtype` (float32), from the file that accelerate was given."""
    name = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not name:
        raise UsageError(f"accelerate was started with DeepSpeed, but without a configuration file: {COMMAND}")
    try:
        config: dict[str, Any] = json.loads(Path(name).read_text(encoding="utf-8"))
        stage = config["zero_optimization"]["stage"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--deepspeed_config_file {name} is no DeepSpeed configuration ({error!r})") from None
    if stage != 3:
        raise UsageError(
            f"--deepspeed_config_file {name} has ZeRO stage {stage}, which divides no weights: answers need stage 3"
        )
    precision = {"torch.float16": "fp16", "torch.bfloat16": "bf16"}.get(str(dtype))
    return config if precision is None else {**config, precision: {"enabled": True}}


def load(load_whole: Callable[[], Loaded], dtype: torch.dtype) -> Loaded:
    """The result of `load_whole`, its model (the second of four) divided: `from_pretrained` does so while loading."""
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    config = configuration(dtype)
    held = HfDeepSpeedConfig(config)  # transformers holds a weak reference, and asks it in `generate` too
    loaded = load_whole()
    model = loaded[1]
    engine = deepspeed.initialize(model=model, config=config)[0]
    _keep_whole_outside(model.get_decoder().layers, model)
    model.eval().held = (engine, held)
    return loaded


def _keep_whole_outside(layers: nn.Module, model: nn.Module) -> None:
    """Gathers the weights outside the layers for good, and takes away the hooks that would gather and divide them.

    The model's own hook stays: it starts a step, once per forward.
    """
    divided = {id(weight) for weight in layers.parameters()}
    rest: list[Any] = [weight for weight in model.parameters() if id(weight) not in divided]
    for weight in rest:
        weight.ds_persist = True
    rest[0].all_gather(param_list=rest)
    inside = {id(module) for module in layers.modules()}
    for module in model.modules():
        if id(module) not in inside and module is not model:
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()


def by_pictures(items: Sequence[Item]) -> list[list[Item]]:
    """Groups questions by their number of pictures: methods that read attention run a layer again for each picture.

    Broken questions join the first group: they run nothing.
    """
    groups: dict[int, list[Item]] = {}
    for item in items:
        if isinstance(item, Question):
            groups.setdefault(len(item.images) + len(item.videos), []).append(item)
    broken = [item for item in items if not isinstance(item, Question)]
    if broken:
        groups.setdefault(min(groups, default=0), []).extend(broken)
    return [groups[number] for number in sorted(groups)]


def steps(engine: Engine[P], items: Sequence[Item], team: Team, batch_size: int) -> Steps[P] | None:
    """The calls that every process makes for its share of `items`. None if none of them can be asked."""
    spare = next((ready for item in items if (ready := prepare(engine, item).tensors) is not None), None)
    share = -(-len(items) // team.size)
    return None if spare is None else Steps(-(-share // batch_size), batch_size, spare)
