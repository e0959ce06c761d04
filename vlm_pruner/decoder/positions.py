"""Position ids of short sequences: renumbered if a method requests it, restarted if prompts share a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_pruner.decoder.layer_call import LayerCall, tokens_in
from vlm_pruner.decoder.masks import LayerMask
from vlm_pruner.decoder.packing import Packing
from vlm_pruner.decoder.short_caches import ShortCache
from vlm_pruner.errors import PruningError


def positions_after_padding(call: dict[str, Any], cache: Any) -> dict[str, Tensor]:
    """Position ids that start at 0 after each row's padding, for a decoder call with a mask and no positions.

    The decoder would count padding too. Attention depends on distances only and would not change, but keys would be
    rotated differently, and methods that read keys would choose other tokens than without padding.
    """
    mask = call.get("attention_mask")
    if call.get("position_ids") is not None or not isinstance(mask, Tensor) or mask.ndim != 2:
        return {}
    if cache is not None and int(cache.get_seq_length()) > 0:
        return {}
    padding = (mask.cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
    index = torch.arange(mask.shape[1], device=mask.device)[None]
    return {"position_ids": (index - padding).clamp(min=0)}


def rotary_positions(call: dict[str, Any], cache: Any) -> Tensor:
    """Position ids [axes, B or 1, n] of the n tokens in a decoder call, for a decoder with several axes.

    The axis of text positions, which `generate` puts first, is left out.
    """
    given = call.get("position_ids")
    if given is not None:
        return given[-3:] if given.ndim == 3 else given[None]
    past = 0 if cache is None else int(cache.get_seq_length())
    tokens = tokens_in(call)
    return torch.arange(past, past + tokens.shape[1], device=tokens.device)[None, None]


def offset_of(positions: Tensor, length: int) -> Tensor:
    """Long [B or 1]: how far the next token's position lies behind its index in the sequence.

    positions: [axes, B or 1, n] of a call after which the sequence has `length` tokens. A picture takes as many
    positions as it has rows or columns, which is fewer than its tokens.
    """
    return positions[..., -1].amax(dim=0) + 1 - length


def prompts_of(call: LayerCall, attention: str) -> Tensor | None:
    """Long [T], on the CPU: the prompt that each token belongs to, of several in one row; None if there is one.

    By transformers' rule, FlashAttention separates prompts where position ids restart; other kinds of attention get a
    mask for that.
    """
    positions = call.kwargs.get("position_ids")
    masked = call.kwargs.get("attention_mask") is not None
    if masked or "flash" not in attention or positions is None or positions.ndim != 2 or positions.shape[1] == 1:
        return None
    if len(call.hidden) != 1:
        return None
    starts = positions[0] == positions[0].min()
    prompts = (starts.cumsum(0) - 1).cpu()
    return prompts if int(prompts[-1]) > 0 else None


def restarted(prompts: Tensor, packing: Packing | None) -> Tensor:
    """Position ids [1, L] that restart with each prompt, for tokens of `prompts` [T] that `packing` keeps.

    Only the restarts matter, because the rotary phases are passed separately.
    """
    kept = prompts if packing is None else prompts[packing.index[0].cpu()]
    index = torch.arange(len(kept), device="cpu")
    first = torch.searchsorted(kept, kept)  # prompts are in order, so their numbers locate each one's first token
    positions = (index - first)[None]
    return positions if packing is None else positions.to(packing.index.device)


def renumbered(
    call: LayerCall, mask: LayerMask, packing: Packing | None, state: ShortCache | None, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Consecutive positions [B, L] of the remaining tokens, and how far each row's have moved so far, long [B].

    positions: long [B or 1, T], the call's own or those from an earlier stage; of several axes any, since they differ
    within pictures only. Raises PruningError if a row holds several prompts.
    """
    rows = call.hidden.shape[0]
    positions = positions.expand(rows, -1)
    lost = positions.new_zeros(rows)
    if state is not None:
        lost = lost + (state.dropped if state.lost is None else state.lost.to(lost))
    if packing is None:
        return positions - lost[:, None], lost
    shown = torch.stack([mask.shown(row) for row in range(rows)]).to(positions.device)
    alive = shown.gather(1, packing.index.to(shown.device))
    if packing.valid is not None:
        alive &= packing.valid.to(alive.device)
    kept = packing.gather(positions[..., None])[..., 0]
    _check_one_prompt(call, packing, alive)
    rank = alive.long().cumsum(dim=1) - 1
    first = positions.gather(1, shown.long().argmax(dim=1, keepdim=True))  # which may be dropped
    last = alive.long().cumsum(dim=1).argmax(dim=1, keepdim=True)  # where the token count is reached
    ranked = first + rank.clamp(min=0)
    moved = (kept - ranked).gather(1, last)[:, 0]
    return ranked - lost[:, None], lost + moved


def _check_one_prompt(call: LayerCall, packing: Packing, alive: Tensor) -> None:
    """Whether text positions never go back. A decoder with several axes gives them to its layers if there are any."""
    given = call.kwargs.get("position_ids")
    if given is None:
        return
    positions = packing.gather(given.expand(len(alive), -1)[..., None])[..., 0]
    back = (positions.diff(dim=1) < 0) & alive[:, 1:] & alive[:, :-1]
    if bool(back.any()):
        raise PruningError(
            "renumber=True: position ids start anew within a row, as for several prompts packed into one; "
            "use renumber=False, or give each prompt a row of its own"
        )
