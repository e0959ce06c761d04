"""Shared by all models of the plug-in: settings, processes, batches, progress, and receipts."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NoReturn

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from tqdm import tqdm

from vlm_pruner.decoder.pruning import prune
from vlm_pruner.lmms.arguments import (
    ArgumentError,
    Arguments,
    as_numbers,
    build_method,
    build_sight,
    join,
    read_arguments,
)
from vlm_pruner.lmms.decoding import Decoding
from vlm_pruner.lmms.documents import Document, in_batches, read_requests
from vlm_pruner.lmms.ledger import Ledger
from vlm_pruner.lmms.prompts import use_the_fields_prompts
from vlm_pruner.methods import Pruner
from vlm_pruner.provenance import environment
from vlm_pruner.receipts import ImageReceipt


@dataclass(frozen=True)
class Reply:
    """One answer, uncut. input_tokens: text and visual tokens of the prompt. visuals: images and videos it showed."""

    text: str
    input_tokens: int
    output_tokens: int
    visuals: int
    kept: Sequence[ImageReceipt] = ()


class PrunedModel(lmms):
    """A vision-language model, dense or pruned. A subclass loads one and answers batches.

    Every failure raises: a missing answer is never scored as an empty one.
    """

    arguments_class: ClassVar[type[Arguments]] = Arguments
    default_length: ClassVar[int] = 128  # new tokens, for tasks that do not say

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        self.arguments = read_arguments(self.arguments_class, model_args)
        self.method: Pruner | None = build_method(self.arguments)
        self.sight = build_sight(self.arguments)
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and self.arguments.device_map is not None:
            raise ArgumentError(
                f"device_map={self.arguments.device_map} gives one process all GPUs; start one process, or leave it out"
            )
        name = self.arguments.device
        self._device = self.accelerator.device if name in (None, "cuda") else torch.device(str(name))
        self.load()
        if self.method is not None:  # its settings against the model, before the first document is asked
            with prune(self.model, self.method):
                pass
        self._ledger = Ledger(self.method, self.arguments.receipts, self._rank, self._world_size, self._run())
        self._reported = False
        if self._ledger.set_aside is not None:
            logger.warning(f"receipts of a run with other settings were set aside as {self._ledger.set_aside}")

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: Mapping[str, Any] | None = None) -> PrunedModel:
        use_the_fields_prompts()
        return cls(**join(simple_parse_args_string(arg_string), additional_config or {}))

    @abstractmethod
    def load(self) -> None:
        """Sets `model` and whatever `answer` needs besides."""

    @abstractmethod
    def answer(self, documents: Sequence[Document], decoding: Decoding) -> list[Reply]:
        """Answers to one batch, in its order."""

    @property
    def model(self) -> Any:
        return self._model

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def batch_size(self) -> int:
        return self.arguments.batch_size

    @property
    def device(self) -> torch.device:
        return self._device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Answers in the order of the requests."""
        documents = read_requests(requests, self.task_dict, self.is_simple, self.default_length)
        results: list[GenerationResult | None] = [None] * len(documents)
        seconds, tokens = 0.0, 0
        bar = tqdm(total=len(documents), disable=self.rank != 0, desc=self._description())
        with bar, self._ledger:
            for batch in in_batches(documents, self.batch_size):
                started = time.perf_counter()
                replies = self.answer(batch, batch[0].decoding)
                seconds += time.perf_counter() - started
                tokens += sum(reply.output_tokens for reply in replies)
                for document, reply in zip(batch, replies, strict=True):
                    results[document.position] = self._result(document, reply)
                bar.update(len(batch))
        self._report(seconds, tokens)
        return [result for result in results if result is not None]

    def loglikelihood(self, requests: Sequence[Instance]) -> NoReturn:
        self._refuse(
            requests, "scores given answers by their likelihood", "the task's generating twin, where it has one"
        )

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> NoReturn:
        self._refuse(requests, "asks in several rounds", "a task that asks once")

    def _refuse(self, requests: Sequence[Instance], what: str, remedy: str) -> NoReturn:
        tasks = ", ".join(sorted({str(request.task_name) for request in requests}))
        raise NotImplementedError(f"{tasks} {what}, which {type(self).__name__} does not do; use {remedy}")

    def _result(self, document: Document, reply: Reply) -> GenerationResult:
        if self.method is not None:
            self._ledger.add(document, reply.visuals, reply.kept)
        text = document.decoding.cut(reply.text)
        self.cache_hook.add_partial("generate_until", (document.context, document.decoding), text)
        counts = TokenCounts(input_tokens=reply.input_tokens, output_tokens=reply.output_tokens)
        return GenerationResult(text=text, token_counts=counts)

    def inputs(self) -> dict[str, Any]:
        """The settings that decide the model's input, for the result file."""
        return self.arguments.inputs()

    def _description(self) -> str:
        method = self.method
        if method is None:
            return "dense" if self.sight is None else self.sight.name
        share = f"ratio {method.reduction_ratio}" if method.keep_tokens is None else f"{method.keep_tokens} tokens"
        return f"{method.name}, {share}"

    def _run(self) -> dict[str, Any]:
        """The settings that decide which tokens are kept, and the environment."""
        aside = ("receipts", "batch_size", "device", "device_map")
        config = {name: value for name, value in asdict(self.arguments).items() if name not in aside}
        return {"config": config, **environment()}

    def clean(self) -> None:
        """Ends the evaluation. If lmms-eval's cache had every answer, only the receipts say what was kept."""
        if not self._reported:
            self._report(0.0, 0)
            if self.method is not None and not self._ledger.writes:
                logger.warning(
                    "every answer came from lmms-eval's cache: what was kept is not known; with receipts=FILE among"
                    " --model_args the first run writes it"
                )
        super().clean()

    def _report(self, seconds: float, tokens: int) -> None:
        """Speed, kept tokens and the settings of pictures and videos go into lmms-eval's results, as `throughput`."""
        speed = tokens / seconds if seconds else 0.0
        inputs = self.inputs()
        logger.info(f"{self._description()}: {inputs}")
        metrics = {**self._ledger.summary(self.task_dict), **as_numbers(inputs)}
        log_metrics(seconds, tokens, speed, additional_metrics=metrics)
        self._reported = True
        if (complaint := self._ledger.complaint(self.task_dict)) is not None:
            logger.warning(complaint)
