"""Losses of training only: what makes a noun look at what it names. The weights that are kept are a plain LLaVA's.

Without them relations stay at chance: every other question needs one look-up, the answer token makes it, and no
gradient asks a noun to look (docs/LOG.md). All of them end before training does.

- point: heads of layers 2, 3 and 4 look from a noun at what it names, from answering characters at the sign's
  characters in turn, and from the answer token at the thing asked about;
- many: two other heads look from a plural at each of n things, whatever their size, and at the opening, with weights
  1 and w, so that n can be read from the opening's share; w = 1 tells small numbers apart, w = 4 larger ones;
- next: the same heads of layer 4 look at what is found from another thing (beside it, or next in a caption);
- place, what, number: where the thing is, its shape, colour and size, and n can be read behind a layer drawn per
  lesson;
- same: whether a character of the question is the sign's;
- gap: (dx, dy) of a relation's two things can be read at its "?", two layers later.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from playground.mini.course import IGNORE, Lesson
from playground.mini.model import Watch
from playground.mini.nouns import OPENING
from playground.mini.questions import MAX_COUNT
from playground.mini.world import COLOR_NAMES, SHAPES, SIZES

POINT_LAYERS = (2, 3, 4)
NEXT_LAYER = 4  # behind those that find the first thing
NAME_HEADS = slice(0, 2)
COUNT_HEADS = {2: 1.0, 3: 4.0}  # head: weight of the opening
WHAT = {"shape": len(SHAPES), "color": len(COLOR_NAMES), "size": len(SIZES)}
WEIGHTS = {"point": 1.5, "many": 2.0, "place": 4.0, "what": 1.0, "number": 1.0, "gap": 4.0, "next": 1.0, "same": 1.0}
UNIT = 4.0  # patches; places are learned in this unit


class Helps(nn.Module):
    """Linear readers of the decoder's states, `width` wide; not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place, self.gap = nn.Linear(width, 2), nn.Linear(width, 2)
        self.number, self.what = nn.Linear(width, MAX_COUNT + 1), nn.Linear(width, sum(WHAT.values()))
        self.same = nn.Linear(width, 2)

    def forward(self, lesson: Lesson, watch: Watch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and what is worth a line in the log: shares of attention, errors in patches, accuracies."""
        losses, shown = self._looking(lesson, watch)
        more, told = self._telling(lesson, watch)
        losses |= more
        return sum(WEIGHTS[name] * value for name, value in losses.items()), shown | told

    def _looking(self, lesson: Lesson, watch: Watch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        some, losses, shown = lesson.some, defaultdict(list), {}
        for layer in (layer for layer in POINT_LAYERS if lesson.first <= layer < lesson.until):
            mass = masses(lesson, watch.weights[layer])
            named = (lesson.target > 0)[:, None]
            on = torch.where(named, mass[:, NAME_HEADS], 0.0).sum(-1).mean(1)
            losses["point"].append(-(on[some["pointing"]] + 1e-4).log().mean())
            losses["many"].append(_counting(mass[some["plural"]], lesson.target[some["plural"]]))
            shown[f"on.{layer}"] = on[some["named"]].detach().mean()
            if layer == NEXT_LAYER and len(some["next"]):
                losses["next"].append(-(on[some["next"]] + 1e-4).log().mean())
                shown["on.next"] = on[some["next"]].detach().mean()
            if layer == lesson.point:
                for name in ("glyph", "look"):
                    if len(some[name]):
                        shown[f"on.{name}"] = on[some[name]].detach().mean()
        shown["many"] = losses["many"][-1].detach()
        return {name: torch.stack(values).mean() for name, values in losses.items()}, shown

    def _telling(self, lesson: Lesson, watch: Watch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        one, plural, compared = (lesson.some[name] for name in ("one", "plural", "compared"))
        state = _read(watch.states(lesson.point), lesson.mark_at)
        place, number, gap = self.place(state[one]), self.number(state[plural]), lesson.gap / UNIT
        told = self.gap(_read(watch.states(lesson.point + 2), lesson.gap_at))
        losses = {
            "place": F.smooth_l1_loss(place, lesson.place[one] / UNIT),
            "number": F.cross_entropy(number, lesson.number[plural]),
            "gap": F.smooth_l1_loss(told, gap),
        }
        what, known = self._what(state[one], lesson.what[one])
        shown = {
            "off": (place.detach() * UNIT - lesson.place[one]).abs().mean(),
            "number": (number.argmax(1) == lesson.number[plural]).float().mean(),
            "side": ((told > 0) == (gap > 0)).float().mean(),
        }
        if len(compared):
            same = self.same(state[compared])
            losses["same"] = F.cross_entropy(same, lesson.same[compared])
            shown["same"] = (same.argmax(1) == lesson.same[compared]).float().mean()
        return losses | {"what": what}, shown | known

    def _what(self, state: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        losses, known = [], {}
        for name, logits, label in zip(
            WHAT, self.what(state).split(list(WHAT.values()), -1), labels.unbind(1), strict=True
        ):
            losses.append(F.cross_entropy(logits, label, ignore_index=IGNORE))
            told = label != IGNORE
            known[name] = ((logits.argmax(1) == label) & told).sum() / told.sum()
        return torch.stack(losses).mean(), known


def _counting(mass: Tensor, target: Tensor) -> Tensor:
    """Divergence of attention [E, H, ROWS] from equal shares of the things and a fixed weight of the opening."""
    weight, losses = (target > 0).float(), []
    for head, opening in COUNT_HEADS.items():
        weight[:, OPENING] = opening
        wanted = weight / weight.sum(1, keepdim=True)
        lost = torch.xlogy(wanted, wanted) - wanted * (mass[:, head] + 1e-4).log()
        losses.append(lost.sum(1).mean() if len(lost) else lost.sum())
    return torch.stack(losses).mean()


def masses(lesson: Lesson, weights: list[Tensor]) -> Tensor:
    """Attention [E, H, ROWS] of each mark's token to each row of its picture, from one layer's `Watch.weights`."""
    rows = lesson.rows.to(weights[0].dtype).mT[:, None]  # [B, 1, PREFIX + N, ROWS]
    parts = [w[..., : rows.shape[2]].flatten(2, 3) @ rows for w in weights]  # [B, H, Q*T, ROWS] each
    picture, token = lesson.mark_at.unbind(1)
    return torch.cat(parts, 2)[picture, :, token].float()


def _read(states: Tensor, at: Tensor) -> Tensor:
    """Normalised states [E, d] at (picture, token)."""
    picked = states[at[:, 0], at[:, 1]].float()
    return F.layer_norm(picked, picked.shape[-1:])
