"""In the API server: checks a request's wish, counts placeholders by it, and adds it to cache keys and fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing import InputProcessingContext

from vlm_pruner.errors import PruningError
from vlm_pruner.serving.wish import AT_INPUT, OFF, Wish, parse, parse_text
from vlm_pruner.vllm.options import ALLOW, options

KEY = "pruning"
FIELD = "pruning_wish"  # of each picture, for the worker: the wish's canonical text in bytes; empty for none


def wish_of(field: Any) -> Wish | None:
    """The wish in a picture's FIELD."""
    return parse_text(bytes(field.tolist()).decode())


class PruningContext(InputProcessingContext):
    """vLLM's context, but transformers' processors never see our key, whether from the request or the server."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **more: Any) -> dict[str, Any]:
        merged = super().get_merged_mm_kwargs(kwargs, **more)
        merged.pop(KEY, None)
        return merged


class PruningInfo:
    """A mixin: list it before a model's own ProcessingInfo.

    fixed_size: whether all pictures have the same number of tokens. gives: what methods may need of this model.
    """

    fixed_size = False
    gives = AT_INPUT

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(PruningContext(ctx.model_config, ctx.tokenizer))  # type: ignore[call-arg]

    def unsupported(self) -> str:
        """Why this checkpoint cannot be pruned; empty if it can."""
        return ""


class PruningProcessor:
    """A mixin: list it before a model's own MultiModalProcessor."""

    info: Any

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Replaces the request's wish, or the server's default, by one canonical text: cache keys are made of it."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        explicit = KEY in kwargs
        asked = kwargs.pop(KEY, None) if explicit else self._default()
        _check_keys(kwargs)
        wish = self._parse(asked)
        if wish is not None and self._suits(inputs.mm_data_items, explicit):
            kwargs[KEY] = wish.text
        return super().apply(replace(inputs, hf_processor_mm_kwargs=kwargs), timing_ctx)  # type: ignore[misc]

    def _default(self) -> object:
        return (self.info.ctx.get_mm_config().mm_processor_kwargs or {}).get(KEY)

    def _parse(self, asked: object) -> Wish | None:
        try:
            return parse(asked, self.info.gives)
        except PruningError as error:
            raise _refusal(str(error)) from None

    def _suits(self, items: Any, explicit: bool) -> bool:
        """Whether a request's media can be pruned. Raises VLLMValidationError if they cannot, but the request asks for
        it; a server's default leaves them whole.
        """
        reason = self.info.unsupported()
        if not reason and isinstance(items.get("image"), EmbeddingItems | DictEmbeddingItems):
            reason = "pictures given as embeddings are not pruned; send pictures"
        if not reason and "video" in items:
            reason = f'videos are not pruned in vLLM; send "{KEY}": "{OFF}"'
        if reason and explicit:
            raise _refusal(reason)
        return not reason

    def get_dummy_inputs(self, *args: Any, **more: Any) -> Any:
        """Memory is profiled without pruning, whatever the default: the largest request has none."""
        dummy = super().get_dummy_inputs(*args, **more)  # type: ignore[misc]
        return replace(dummy, hf_processor_mm_kwargs={KEY: OFF})

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        data = super()._apply_hf_processor_main(mm_items, hf_kwargs)  # type: ignore[misc]
        pictures = mm_items.get_count("image", strict=False) if "image" in mm_items else 0
        if pictures:
            text = str(hf_kwargs.get(KEY, ""))
            data[FIELD] = torch.tensor(list(text.encode()), dtype=torch.uint8).repeat(pictures, 1)
        return data

    # vLLM passes these arguments by name.

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)  # type: ignore[misc]
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        """As many placeholders as tokens will be left."""
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)  # type: ignore[misc]
        wish = parse_text(str(hf_processor_mm_kwargs.get(KEY, "")))
        if wish is None:
            return updates
        return [self._shortened(update, wish) if update.modality == "image" else update for update in updates]

    def _shortened(self, update: Any, wish: Wish) -> Any:
        whole: Callable[[int], Any] | Any = update.replacement

        def placeholders(item: int) -> Any:
            tokens = whole(item) if callable(whole) else whole
            try:
                return tokens[: wish.budget(len(tokens), fixed_size=self.info.fixed_size)]
            except PruningError as error:
                raise _refusal(str(error)) from None

        return replace(update, replacement=placeholders)


def _check_keys(kwargs: Mapping[str, object]) -> None:
    """Raises VLLMValidationError for keys that the operator has not allowed: they steer how pictures are processed."""
    refused = sorted(set(kwargs) - options().allowed)
    if refused:
        raise VLLMValidationError(
            f"{refused[0]} is not open to requests: of mm_processor_kwargs they may set {KEY}, and what the operator "
            f"lists in {ALLOW}",
            parameter=f"mm_processor_kwargs.{refused[0]}",
        )


def _refusal(message: str) -> VLLMValidationError:
    return VLLMValidationError(f"{KEY}: {message}", parameter=f"mm_processor_kwargs.{KEY}")


def has_wish(data: Mapping[str, Any] | None) -> bool:
    """Whether a picture's fields hold a wish."""
    field = None if data is None or FIELD not in data else data[FIELD].data
    return isinstance(field, Tensor) and field.numel() > 0
