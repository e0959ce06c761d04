"""Records a CLIP vision tower's work on each picture while it runs, for methods that choose by its attention."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlm_pruner.adapters.clip_tower import ClipTower
from vlm_pruner.decoder.doors import Hook
from vlm_pruner.errors import PruningError


@dataclass(frozen=True)
class TowerOutput:
    """The tower's output for one view.

    states:    [1 + N, c], output of the layer that supplies the features. projected: [N, d], the projected features.
               entered: [1 + N, c], normed input of that layer's attention. last: the same for the last layer.
    """

    tower: ClipTower
    states: Tensor
    projected: Tensor
    entered: Tensor
    last: Tensor

    def cls_attention(self) -> Tensor:
        """Float32 [heads, N], the class token's attention in the layer that supplies the features, patch columns."""
        attention: Any = self.tower.layers[self.tower.selected - 1].self_attn
        query = attention.q_proj(self.entered[:1]).unflatten(-1, (-1, attention.head_dim)).float()
        keys = attention.k_proj(self.entered).unflatten(-1, (-1, attention.head_dim)).float()
        return (torch.einsum("qhc,nhc->hn", query, keys) * attention.scale).softmax(dim=-1)[:, 1:]

    def patch_keys(self) -> Tensor:
        """[N, head size], keys of that layer, mean over heads."""
        attention: Any = self.tower.layers[self.tower.selected - 1].self_attn
        return attention.k_proj(self.entered[1:]).unflatten(-1, (-1, attention.head_dim)).mean(dim=1)

    def last_layer(self) -> tuple[Tensor, Tensor]:
        """([c], [1 + N, c]): the class token's query and all keys of the tower's last layer, heads side by side."""
        attention: Any = self.tower.layers[-1].self_attn
        return attention.q_proj(self.last[0]), attention.k_proj(self.last)


class TowerTap(threading.local):
    """While its hooks are installed, records the tower's output for the next prefill's pictures, per thread."""

    def __init__(self, tower: ClipTower) -> None:
        self.tower = tower
        self._seen: dict[str, Tensor] = {}
        self._pictures: list[TowerOutput] = []
        self._used = False

    def hooks(self, active: Callable[[], bool] = lambda: True) -> list[Callable[[], Any]]:
        """Installs the hooks, which do nothing unless `active()`. Returns functions that remove them."""
        layers, selected = self.tower.layers, self.tower.selected
        chosen: Any = layers[selected - 1]
        last: Any = layers[-1]
        handles = [
            chosen.self_attn.register_forward_pre_hook(Hook(self._note_input("entered"), active), with_kwargs=True),
            last.self_attn.register_forward_pre_hook(Hook(self._note_input("last"), active), with_kwargs=True),
            chosen.register_forward_hook(Hook(self._note_states, active)),
            self.tower.projector.register_forward_hook(Hook(self._note_projected, active)),
        ]
        return [handle.remove for handle in handles]

    def forget(self) -> None:
        """Drops all recorded pictures."""
        self._seen, self._pictures, self._used = {}, [], False

    @property
    def pictures(self) -> list[TowerOutput]:
        """The recorded pictures."""
        return list(self._pictures)

    def provide(self, pictures: Sequence[TowerOutput]) -> None:
        """Register pictures that the tower encoded earlier."""
        self._pictures, self._used = list(pictures), False

    def used(self) -> None:
        """Marks the pictures' prefill as finished: the next pictures replace them."""
        self._used = True

    def find(self, embeddings: Tensor) -> TowerOutput:
        """Finds the picture whose projected features are `embeddings` [N, d]. Raises PruningError if there is none.

        Compares values rather than order, because beams repeat rows and pictures may be encoded ahead.
        """
        for picture in self._pictures:
            if picture.projected.shape == embeddings.shape:
                projected = picture.projected.to(embeddings)
                if torch.equal(projected[0], embeddings[0]) and torch.equal(projected, embeddings):
                    return picture
        raise PruningError(
            f"the vision tower encoded no picture whose features are these {len(embeddings)} visual tokens: this "
            "method needs pictures of one view each (no tiles), encoded while pruning is on"
        )

    def _note_input(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._seen[name] = args[0] if args else kwargs["hidden_states"]

        return note

    def _note_states(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._seen["states"] = output[0] if isinstance(output, tuple) else output

    def _note_projected(self, projector: nn.Module, args: Any, projected: Tensor) -> None:
        states, entered, last = (self._seen.get(name) for name in ("states", "entered", "last"))
        if states is None or entered is None or last is None or len(states) != len(projected):
            return  # not the pictures that the tower has just encoded: a method projects rows of its own
        if self._used:
            self._pictures, self._used = [], False
        parts = zip(states, projected, entered, last, strict=True)
        self._pictures += [TowerOutput(self.tower, *part) for part in parts]
        self._seen = {}
