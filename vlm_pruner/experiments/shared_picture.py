"""Many questions about one picture under many methods, with all that they share computed once.

The decoder is causal and the picture comes before the question. The vision tower, and what the layers before the pruned
one make of the picture, are therefore the same whatever is asked and whatever is dropped later; the question in those
layers is the same for every method; and a choice that looks at the picture alone is the same for every question. So a
picture with two dozen questions costs a method little more than one pruned prefill.

Nothing is generated. An answer is right when greedy decoding would give exactly the expected tokens and then end, and
one forward of prompt and answer tells: each of these tokens must be the most likely one after those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llava.constants import IMAGE_TOKEN_INDEX
from llava.eval.prompts import build_prompt
from llava.mm_utils import process_images, tokenizer_image_token
from llava.model.multimodal_prompt import prepare_prompt
from vlm_pruner.decoder.attention_rows import LayerCall
from vlm_pruner.decoder.cache_names import cache_argument
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments.llava_answerer import CONVERSATION, LlavaAnswerer
from vlm_pruner.experiments.questions import Question
from vlm_pruner.images import read_image
from vlm_pruner.methods import Pruner, Selection, View
from vlm_pruner.methods.view import AttentionRows

# A choice that sees one of these is each question's own.
FROM_TEXT = frozenset({"text_hidden", "text_keys", "text_embeddings", "attend", "attend_next"})
SUPPLIED = FROM_TEXT | {"embeddings", "final_norm"}
UNASKED = -100

States = tuple[Tensor, Tensor]  # keys and values of one layer, [rows, heads, tokens, head size] each


class _Behind:
    """Stands in for one layer's cache: its new tokens come behind those of `past`, which all rows share."""

    def __init__(self, past: States | None = None) -> None:
        self.past = past
        self.new: States | None = None

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> States:
        self.new = keys, values
        if self.past is None:
            return self.new
        rows = keys.shape[0]
        before = (held.expand(rows, -1, -1, -1) for held in self.past)
        joined = [torch.cat(pair, dim=2) for pair in zip(before, self.new, strict=True)]
        return joined[0], joined[1]


class SharedPicture:
    """A picture, Q questions about it with their answers, and their states in the dense model, layer by layer.

    A layer of the dense model runs when a method that prunes before a later one is first asked for.
    """

    @torch.no_grad()
    def __init__(self, answerer: LlavaAnswerer, image: Path, questions: Sequence[Question]) -> None:
        self.decoder: nn.Module = answerer.model.get_model()
        self.head: nn.Module = answerer.model.lm_head
        self.layers = list(self.decoder.get_submodule("layers").children())
        prompts = [
            _split(tokenizer_image_token(build_prompt(q.text, CONVERSATION), answerer.tokenizer)) for q in questions
        ]
        answers = [answerer.tokenizer(q.answer, add_special_tokens=False).input_ids for q in questions]
        self._see(answerer, image, prompts[0][0])
        self._write([text for _, text in prompts], answers, answerer.tokenizer.eos_token_id)

    def _see(self, answerer: LlavaAnswerer, image: Path, opening: list[int]) -> None:
        """The opening and the picture as they enter the decoder."""
        device = answerer.model.device
        pixels = process_images([read_image(image)], answerer.image_processor, answerer.model.config)
        ids = torch.tensor([[*opening, IMAGE_TOKEN_INDEX]], device=device)
        prompt = prepare_prompt(answerer.model.get_model(), ids, None, pixels)
        self.span = prompt.visual_spans[0][0]
        self.visual = self.span.positions().to(device)
        self.pictures = [prompt.inputs_embeds]  # entering layer i, [1, P, d]
        self.picture_states: list[States] = []  # of layer i
        self.picture_phases = self._phases(torch.arange(prompt.inputs_embeds.shape[1], device=device))

    def _write(self, texts: list[list[int]], answers: list[list[int]], end: int) -> None:
        """Questions and answers, padded on the right, where no token sees the padding."""
        device, start = self.visual.device, self.pictures[0].shape[1]
        self.lengths = [len(text) for text in texts]
        longest = max(len(text) + len(answer) for text, answer in zip(texts, answers, strict=True))
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        self.labels = torch.full_like(ids, UNASKED)  # the token that should come next
        for row, (text, answer) in enumerate(zip(texts, answers, strict=True)):
            ids[row, : len(text) + len(answer)] = torch.tensor(text + answer)
            self.labels[row, len(text) - 1 : len(text) + len(answer)] = torch.tensor([*answer, end])
        self.labels = self.labels.to(device)
        self.texts = [self.decoder.get_submodule("embed_tokens")(ids.to(device))]  # entering layer i, [Q, T, d]
        self.text_states: list[States] = []
        self.text_phases = self._phases(torch.arange(start, start + longest, device=device))

    @torch.no_grad()
    def outcomes(self, method: Pruner | None) -> list[bool]:
        """For each question, whether its answer is right; `method` None is the dense model.

        Raises PruningError for a method with several stages, and for one that looks at what is not kept here.
        """
        asked = self.labels != UNASKED
        best = self.logits(method).argmax(dim=1)
        wrong = torch.zeros_like(self.labels, dtype=torch.bool)
        wrong[asked] = best != self.labels[asked]
        return [not row for row in wrong.any(dim=1).tolist()]

    @torch.no_grad()
    def logits(self, method: Pruner | None) -> Tensor:
        """[A, vocabulary]: at every token after which one of an answer is due, the questions one after another."""
        if method is None:
            self._advance_to(len(self.layers))
            texts = self.texts[-1]
        else:
            _check(method)
            self._advance_to(method.layer)
            texts = self._pruned(method)
        return self.head(self.decoder.get_submodule("norm")(texts[self.labels != UNASKED]))

    def selections(self, method: Pruner) -> list[Selection]:
        """What `method` keeps: one choice for all questions, or one for each if it looks at them."""
        _check(method)
        self._advance_to(method.layer)
        rows = range(len(self.lengths)) if FROM_TEXT & method.needs else range(1)
        return [method.choose(self._view(method, row)) for row in rows]

    def _pruned(self, method: Pruner) -> Tensor:
        """[Q, T, d]: the texts behind the last layer, with the kept tokens alone from `method.layer` on."""
        selections = self.selections(method)
        picture, phases = self._shortened(method, selections)
        texts = self.texts[method.layer]
        for layer in self.layers[method.layer :]:
            picture, texts, _, _ = self._through(layer, picture, phases, texts)
        return texts

    def _shortened(self, method: Pruner, selections: list[Selection]) -> tuple[Tensor, States]:
        """[1 or Q, P', d]: what is left of the opening and the picture, and their rotary phases."""
        whole = self.pictures[method.layer][0]
        hidden, places = whole[self.visual], torch.arange(len(whole), device=whole.device)
        rows, stays = [], []
        for selection in selections:
            merged = method.merge(hidden, selection)
            rows.append(torch.cat([whole[: self.span.start], merged, whole[self.span.stop :]]))
            kept = self.visual[selection.indices]
            stays.append(torch.cat([places[: self.span.start], kept, places[self.span.stop :]]))
        at = torch.stack(stays)
        cosine, sine = (part[0, at] for part in self.picture_phases)
        return torch.stack(rows), (cosine, sine)

    def _view(self, method: Pruner, row: int) -> View:
        k, tokens = method.layer, slice(self.lengths[row])
        hidden = self.pictures[k][0, self.visual]
        fields: dict[str, Any] = {
            "text_hidden": self.texts[k][row, tokens],
            "text_embeddings": self.texts[0][row, tokens],
            "embeddings": self.pictures[0][0, self.visual],
            "final_norm": self.decoder.get_submodule("norm"),
            "attend": self._attention(k - 1, row),
            "attend_next": self._attention(k, row),
        }
        if k and "text_keys" in method.needs:
            fields["text_keys"] = _side_by_side(self.text_states[k - 1][0][row])[tokens]
        keys = _side_by_side(self.picture_states[k - 1][0][0])[self.visual] if k else hidden
        budget = method.budget(self.span.length)
        asked = {need: fields[need] for need in method.needs}
        return View(hidden, keys, self.span.layout, budget, start=self.span.start, **asked)

    def _attention(self, depth: int, row: int) -> AttentionRows:
        """How text tokens of one question attend to the picture in layer `depth`, computed when asked for."""

        def attend(queries: Tensor) -> Tensor:
            length = self.lengths[row]
            hidden = torch.cat([self.pictures[depth], self.texts[depth][row : row + 1, :length]], dim=1)
            pairs = zip(self.picture_phases, self.text_phases, strict=True)
            call = LayerCall(
                self.layers[depth], hidden, tuple(torch.cat([p, t[:, :length]], 1) for p, t in pairs), None
            )
            text = torch.arange(hidden.shape[1] - length, hidden.shape[1])[queries.cpu()]
            return call.rows(0, text, call.keys(0), 0)[..., self.visual]

        return attend

    def _advance_to(self, depth: int) -> None:
        """Run the dense model as far as the input of layer `depth`."""
        for layer in self.layers[len(self.texts) - 1 : depth]:
            picture, texts, picture_states, text_states = self._through(
                layer, self.pictures[-1], self.picture_phases, self.texts[-1]
            )
            self.pictures.append(picture)
            self.texts.append(texts)
            self.picture_states.append(picture_states)
            self.text_states.append(text_states)

    def _through(
        self, layer: nn.Module, picture: Tensor, phases: States, texts: Tensor
    ) -> tuple[Tensor, Tensor, States, States]:
        """One layer: picture [1 or Q, P, d], texts [Q, T, d], and the states that both leave."""
        first = _Behind()
        picture = layer(picture, position_embeddings=phases, **cache_argument(first))
        assert first.new is not None
        second = _Behind(first.new)
        mask = _text_mask(picture.shape[1], texts)
        texts = layer(texts, attention_mask=mask, position_embeddings=self.text_phases, **cache_argument(second))
        assert second.new is not None
        return picture, texts, first.new, second.new

    def _phases(self, positions: Tensor) -> States:
        cosine, sine = self.decoder.get_submodule("rotary_emb")(self.pictures[0], position_ids=positions[None])
        return cosine, sine


def _check(method: Pruner) -> None:
    layers, missing = method.layers(2 * method.layer + 8), method.needs - SUPPLIED
    if len(layers) > 1 or missing or method.renumber or method.released:
        raise PruningError(
            f"{method.name or type(method).__name__} cannot share a picture between questions: that is for methods of "
            f"one stage that keep positions and look at {', '.join(sorted(SUPPLIED))} only; use vlm_pruner.prune"
        )


def _split(ids: Any) -> tuple[list[int], list[int]]:
    """The prompt's ids before and after the picture."""
    place = ids.index(IMAGE_TOKEN_INDEX)
    return ids[:place], ids[place + 1 :]


def _side_by_side(keys: Tensor) -> Tensor:
    """[tokens, heads x head size] of keys [heads, tokens, head size]."""
    return keys.transpose(0, 1).flatten(1)


def _text_mask(before: int, texts: Tensor) -> Tensor:
    """[1, 1, T, before + T], to be added: text sees the picture and itself causally."""
    length = texts.shape[1]
    future = torch.full((length, length), torch.finfo(texts.dtype).min, dtype=texts.dtype, device=texts.device).triu(1)
    return torch.cat([future.new_zeros(length, before), future], dim=1)[None, None]
