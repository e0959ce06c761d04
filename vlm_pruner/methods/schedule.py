"""Budgets of methods that prune at several layers: on average as costly as a method that prunes once.

The mean is over the decoder layers from the first stage on. A method with several stages and a mean of R caches as many
keys and values there, and runs on as many tokens, as one with a single stage that keeps R tokens before the same layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_pruner.errors import PruningError


def stage_layers(first: int, depth: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The stages' layers, at the given shares of the way from layer `first` to the end of a decoder of `depth` layers.

    Always ascending; stages for which a shallow decoder has no layer left are dropped.
    """
    layers: list[int] = []
    for share in shares:
        wanted = round(first + (depth - first) * share)
        layers.append(max(wanted, layers[-1] + 1) if layers else wanted)
    return (layers[0], *(layer for layer in layers[1:] if layer < depth))


def stage_budgets(
    tokens: int, mean: int, layers: Sequence[int], depth: int, weights: Sequence[float]
) -> tuple[int, ...]:
    """Tokens to keep at each stage, in proportion to `weights` but never more than `tokens`, for a `mean` over layers.

    The result falls short of the mean by less than one token, and exceeds it only if a stage would keep none otherwise.
    Raises PruningError for a stage beyond the last layer.
    """
    if layers[-1] >= depth:
        raise PruningError(
            f"layer={layers[-1]}, but the decoder's last layer is {depth - 1}; use layer=1 to layer={depth - 1}"
        )
    lengths = [end - start for start, end in zip(layers, [*layers[1:], depth], strict=True)]
    weights = weights[: len(layers)]
    total = mean * sum(lengths)

    def at(scale: float) -> list[int]:
        return [max(1, min(tokens, int(scale * weight))) for weight in weights]

    low, high = 0.0, (tokens + 1) / min(weights)  # at `high` every stage keeps all tokens
    for _ in range(60):
        middle = (low + high) / 2
        fits = sum(n * length for n, length in zip(at(middle), lengths, strict=True)) <= total
        low, high = (middle, high) if fits else (low, middle)
    kept = at(low)
    spare = total - sum(n * length for n, length in zip(kept, lengths, strict=True))
    for stage, length in enumerate(lengths):  # one more token wherever it fits, early stages first
        most = tokens if stage == 0 else kept[stage - 1]
        more = max(0, min(spare // length, most - kept[stage]))
        kept[stage] += more
        spare -= more * length
    return tuple(kept)
