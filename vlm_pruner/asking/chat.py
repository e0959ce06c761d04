"""A loaded model that answers questions about pictures. A subclass builds the prompt for its checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteriaList

from vlm_pruner import adapters
from vlm_pruner.asking.answer import Answer, Watch, cache_bytes, joint_probabilities
from vlm_pruner.decoder.cache_names import cache_of
from vlm_pruner.decoder.pruning import prune
from vlm_pruner.methods import Pruner

MAX_NEW_TOKENS = 64

Pictures = Image.Image | Sequence[Image.Image]


@dataclasses.dataclass(frozen=True)
class Prompt:
    """`inputs` for `generate`, and their length in tokens: of the text, and of the pictures."""

    inputs: dict[str, Any]
    text_tokens: int
    visual_tokens: int


class Chat:
    """One model. Answers greedily, one at a time. Not thread-safe: a server must lock around `ask`.

    name: what the user called the checkpoint.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.name = name
        self.decoder = adapters.find(model).decoder

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.decoder.layers)

    @property
    def takes_video(self) -> bool:
        """Whether the model's family supports videos."""
        return False

    def prompt(self, pictures: Pictures, question: str, video: Sequence[Image.Image] = ()) -> Prompt:
        """Builds the inputs of `generate` from one or several pictures (RGB) or a video's frames, and the question.

        Raises ValueError if the model cannot read them.
        """
        raise NotImplementedError

    def visual_tokens(self, picture: Image.Image) -> int:
        """The number of tokens that the model makes of a picture."""
        return self.prompt(picture, "?").visual_tokens

    def decode(self, ids: list[int]) -> str:
        raise NotImplementedError

    def ask(
        self,
        pictures: Pictures,
        question: str,
        method: Pruner | None = None,
        *,
        video: Sequence[Image.Image] = (),
        max_new_tokens: int = MAX_NEW_TOKENS,
        min_new_tokens: int | None = None,
        confidence: bool = False,
        on_text: Callable[[str], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> Answer:
        """Answers a question, pruned by `method` (None: dense).

        min_new_tokens: written even beyond the answer's end, for timing. confidence: whether to return it. on_text:
        called with the text so far after every new token. stop: called after every token; True ends the answer.
        Raises ValueError (PruningError among them) for a question, picture or method that does not fit the model.
        """
        prompt = self.prompt(pictures, question, video)
        self._check_length(prompt, max_new_tokens)
        halt = _Halt(stop)
        with torch.inference_mode(), prune(self.model, method) if method else nullcontext() as pruning:
            watch = Watch(self.decode, on_text)
            output = self.model.generate(
                **prompt.inputs, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens,
                do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None, return_dict_in_generate=True,
                output_logits=confidence,
                streamer=watch, stopping_criteria=StoppingCriteriaList([halt]),
            )  # fmt: skip
        sure = None
        if confidence:
            sure = joint_probabilities(output.sequences[:, -len(watch.ids) :], output.logits)[1][0]
        # Keep the receipts only: the prefill's tensors behind them must not outlive the answer.
        images = tuple(pruning.receipts[-1].images) if pruning is not None else ()
        return Answer(
            text=watch.text.strip(),
            stopped=halt.stopped,
            tokens=len(watch.ids),
            first_token_seconds=watch.first_token_seconds,
            seconds=watch.seconds,
            kv_bytes=cache_bytes(cache_of(output)),
            prompt_tokens=prompt.text_tokens,
            visual_tokens=prompt.visual_tokens,
            kept=sum(image.n_after for image in images) if images else prompt.visual_tokens,
            images=images,
            confidence=sure,
        )

    def _check_length(self, prompt: Prompt, new_tokens: int) -> None:
        limit = getattr(self.decoder.config, "max_position_embeddings", None)
        length = prompt.text_tokens + prompt.visual_tokens
        if limit is not None and length + new_tokens > limit:
            raise ValueError(
                f"the prompt has {prompt.text_tokens} text tokens and {prompt.visual_tokens} visual tokens; with "
                f"{new_tokens} for the answer that is more than the {limit} that {self.name} reads: ask a shorter "
                "question"
            )


def as_list(pictures: Pictures) -> list[Image.Image]:
    return [pictures] if isinstance(pictures, Image.Image) else list(pictures)


class _Halt:
    """A stopping criterion that consults the caller."""

    def __init__(self, stop: Callable[[], bool] | None) -> None:
        self._stop = stop
        self.stopped = False

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.stopped = self.stopped or (self._stop is not None and self._stop())
        return torch.full((input_ids.shape[0],), self.stopped, device=input_ids.device)
