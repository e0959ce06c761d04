"""The prompts that lmms-eval gives to the field's models, for our models of the same checkpoints.

Some tasks hold prompts for single models, under the name that `--model` gives: VideoMME asks `llava_vid` and `qwen3_vl`
in words of their own, and all others in the default ones.
"""

from __future__ import annotations

import functools
from typing import Any

# Our name of a model -> the name whose prompts it gets, unless a task has prompts under our own.
PROMPTS_OF = {
    "vlm_pruner_llava_vid": "llava_vid",
    "vlm_pruner_llava_onevision": "llava_onevision",
    "vlm_pruner_qwen3_vl": "qwen3_vl",
}
_TABLES = ("lmms_eval_specific_kwargs", "model_specific_target_kwargs", "model_specific_generation_kwargs")


def known_as(name: str | None, config: Any) -> str | None:
    """The name by which a task's tables are read for the model `name`. config: the task's."""
    tables = [getattr(config, table, None) or {} for table in _TABLES]
    return name if any(name in table for table in tables) else PROMPTS_OF.get(name or "", name)


def use_the_fields_prompts() -> None:
    """From now on, tasks that are made for our models read their tables by `known_as`.

    lmms-eval offers no setting for it: a task compares names when it is made, which is after the model is.
    """
    from lmms_eval.api.task import ConfigurableTask

    own = ConfigurableTask._prepare_model_specific_config
    if hasattr(own, "__wrapped__"):
        return

    @functools.wraps(own)
    def prepare(task: Any) -> None:
        task.model_name = known_as(task.model_name, task.config)
        own(task)

    ConfigurableTask._prepare_model_specific_config = prepare
