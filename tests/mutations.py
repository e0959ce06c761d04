"""Damage for files: bytes flipped, cut, doubled and inserted, and values of JSON replaced by unexpected ones."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 0.5, 1e308, float("nan"), float("inf"), "", " ", "\0",
    "a" * 5000, "../../etc/passwd", "\ud83d", "nan", "1e999", [], [[]], {}, [None], {"": None}, ["x"] * 50,
    [[0] * 3] * 3,
)  # fmt: skip
DEEP = "[" * 3000 + "]" * 3000


def damaged(content: bytes, seed: int) -> bytes:
    """The content, damaged once to five times in ways that follow from the seed."""
    chance = random.Random(seed)
    if chance.random() < 0.6:
        changed = _damaged_json(content, chance)
        if changed is not None:
            return changed
    for _ in range(chance.randint(1, 5)):
        content = chance.choice(WAYS)(content, chance)
    return content


def _flip(content: bytes, chance: random.Random) -> bytes:
    if not content:
        return content
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randint(0, len(content))]


def _without(content: bytes, chance: random.Random) -> bytes:
    start = chance.randint(0, len(content))
    return content[:start] + content[start + chance.randint(0, 50) :]


def _doubled(content: bytes, chance: random.Random) -> bytes:
    start = chance.randint(0, len(content))
    end = min(len(content), start + chance.randint(0, 200))
    return content[:end] + content[start:end] + content[end:]


def _inserted(content: bytes, chance: random.Random) -> bytes:
    place = chance.randint(0, len(content))
    made = chance.choice(
        [chance.randbytes(8), b"\x00" * 4, b"\xff" * 4, b"\n", b'"', b"{", b"]", b"\xef\xbb\xbf", b"\t\t\t", b"9" * 400]
    )
    return content[:place] + made + content[place:]


WAYS = (_flip, _cut, _without, _doubled, _inserted)


def _damaged_json(content: bytes, chance: random.Random) -> bytes | None:
    """One value of the JSON, or of one of its lines, replaced; None if it is no JSON."""
    try:
        lines = content.decode("utf-8").splitlines() if b"\n{" in content else [content.decode("utf-8")]
        place = chance.randrange(len(lines))
        value = json.loads(lines[place])
    except (ValueError, RecursionError):
        return None
    if chance.random() < 0.03:
        lines[place] = DEEP
    else:
        lines[place] = json.dumps(_replaced(value, chance))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _replaced(value: Any, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.85:
        name = chance.choice(sorted(value))
        changed = dict(value)
        if chance.random() < 0.2:
            del changed[name]
        else:
            changed[name] = _replaced(value[name], chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.85:
        place = chance.randrange(len(value))
        return [*value[:place], _replaced(value[place], chance), *value[place + 1 :]]
    return chance.choice(ODD)
