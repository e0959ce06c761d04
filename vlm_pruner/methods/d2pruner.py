"""D2Pruner (AAAI 2026, arXiv 2512.19443): attention beyond a prior, then tokens that are joined to no kept one."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlm_pruner.errors import PruningError
from vlm_pruner.geometry.layout import TokenLayout
from vlm_pruner.methods.base import Pruner, Selection, register
from vlm_pruner.methods.view import View

TINY = 1e-7  # added to the prior, as published


@dataclass(frozen=True)
class Prior:
    """What a prompt's last token attends to in any picture: attention to each cell of a grid, mean over pictures.

    attention: height * width numbers in raster order, mean over heads and pictures, of the layer before `layer`.
    pictures: how many. model, question: what they were asked with.
    """

    attention: tuple[float, ...]
    height: int
    width: int
    layer: int
    pictures: int
    model: str = ""
    question: str = ""

    def __post_init__(self) -> None:
        if len(self.attention) != self.height * self.width or not self.attention:
            raise PruningError(
                f"the prior has {len(self.attention)} numbers for a grid of {self.height} x {self.width} tokens"
            )
        if not all(math.isfinite(value) and value >= 0 for value in self.attention):
            raise PruningError("the prior has attention that is negative or not a number")

    @classmethod
    def read(cls, path: str | Path) -> Prior:
        """Raises PruningError if the file is not a prior that `vlm-pruner prior` wrote."""
        try:
            given = json.loads(Path(path).read_text(encoding="utf-8"))["prior"]
            return cls(**{**given, "attention": tuple(map(float, given["attention"]))})
        except OSError as error:
            raise PruningError(f"prior={path}: {error.strerror}; make one with vlm-pruner prior") from None
        except (ValueError, KeyError, TypeError) as error:
            raise PruningError(f"prior={path} is not a prior that vlm-pruner prior wrote: {error}") from None

    def at(self, layout: TokenLayout) -> Tensor:
        """[N], the prior of the tokens of a picture on the prior's grid. Raises PruningError for any other picture."""
        if layout.coords.shape[1] != 2 or layout.diagonal != math.hypot(self.height, self.width):
            raise PruningError(
                f"the prior is of pictures of {self.height} x {self.width} tokens, and this one has another grid; make "
                "a prior of pictures of its size, or use another method"
            )
        x, y = layout.coords.long().T
        inside = (x >= 0) & (x < self.width) & (y >= 0) & (y < self.height)
        if not bool(inside.all()):
            raise PruningError(f"the picture has tokens outside the prior's {self.height} x {self.width} grid")
        return torch.tensor(self.attention, device="cpu")[y * self.width + x]


def d2_order(
    score: Tensor, hidden: Tensor, layout: TokenLayout, budget: int, pivots: int, alpha: float, threshold: float
) -> Tensor:
    """Order of choice, long [budget]: `pivots` tokens by score, then by score those joined to no chosen one, then all.

    score: [N]. hidden: [N, d]. Two tokens are joined if alpha * cosine + (1 - alpha) * nearness is above `threshold`,
    where nearness is 1 - distance / diagonal. Ties go to the lower index.
    """
    unit, coords = normalize(hidden, dim=1), layout.normalised(hidden)
    ranking = score.argsort(descending=True, stable=True).tolist()
    joined = torch.zeros(len(ranking), dtype=torch.bool, device=hidden.device)
    chosen: list[int] = []
    for token in ranking:
        if len(chosen) == budget:
            break
        if len(chosen) >= pivots and bool(joined[token]):
            continue
        near = 1 - (coords - coords[token]).norm(dim=1)
        joined |= alpha * (unit @ unit[token]) + (1 - alpha) * near > threshold
        chosen.append(token)
    taken = set(chosen)
    chosen += [token for token in ranking if token not in taken][: budget - len(chosen)]
    return torch.tensor(chosen, device=hidden.device)


@register("d2pruner", "D2Pruner", arxiv="2512.19443")
@dataclass(frozen=True)
class D2Pruner(Pruner):
    """Keeps what the last token attends to more than it does on average, then tokens joined to none that are kept.

    prior:     a file that `vlm-pruner prior` has made for this model, layer and size of pictures: the average attention
               to each cell, by which attention is divided.
    pivots:    share of the budget chosen by that quotient alone, rounded.
    alpha:     weight of similarity in whether two tokens are joined; the rest is the weight of nearness in the picture.
               As published, 1 for understanding and 0.5 for grounding.
    threshold: above which they are joined.

    The official code could not be consulted: nearness (1 - distance / diagonal), and that pivots count as kept tokens,
    are decided here. Needs text after the image, and pictures of one grid.
    """

    prior: str = ""
    pivots: float = 0.7
    alpha: float = 1.0
    threshold: float = 0.8

    needs: ClassVar[frozenset[str]] = frozenset({"attend"})
    by_settings: ClassVar[bool] = False
    requires: ClassVar[str] = "a prior (vlm-pruner prior)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prior:
            raise PruningError(
                "d2pruner needs the model's average attention: make it with vlm-pruner prior PICTURES --out "
                "prior.json, and pass prior=prior.json"
            )
        self._check_share("pivots", ": it is a share of the budget")
        self._check_share("alpha", "; 1 ignores nearness")
        if not math.isfinite(self.threshold):
            raise PruningError(f"threshold={self.threshold} must be a finite number, such as 0.8")
        self._read()

    def _read(self) -> None:
        path, prior = Path(self.prior), Prior.read(self.prior)
        if prior.layer != self.layer:
            raise PruningError(f"layer={self.layer}, but the prior is of layer={prior.layer}; make one for this layer")
        source = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for name, value in {"prior": str(path), "_prior": prior, "source": source}.items():
            object.__setattr__(self, name, value)

    @torch.no_grad()
    def choose(self, view: View) -> Selection:
        prior: Prior = vars(self)["_prior"]
        attention = view.attend(torch.tensor([-1], device="cpu")).float().mean(dim=(0, 1))
        score = attention / (prior.at(view.layout).to(attention) + TINY)
        pivots = max(1, round(self.pivots * view.budget))
        order = d2_order(score, view.hidden.float(), view.layout, view.budget, pivots, self.alpha, self.threshold)
        return Selection.of(order)
