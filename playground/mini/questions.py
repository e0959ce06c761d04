"""Questions about a scene, in the words and formats of the benchmarks that they mirror.

| kind      | mirrors                    | answer                          |
|-----------|----------------------------|---------------------------------|
| existence | POPE                       | yes / no                        |
| attribute | GQA                        | a colour, shape or size         |
| count     | the counting of VQA, MME   | a digit                         |
| relation  | GQA                        | yes / no                        |
| reading   | TextVQA, OCRBench          | three characters, exactly       |
| choice    | MMBench, SEED, ScienceQA   | an option's letter              |
| verify    | MME (used for MME only)    | yes / no                        |
| where     | GQA's "choose" questions   | a direction (training only)     |
| two_way   | the same, of two things    | a direction (training only)     |
| seen      | choice, all options occur in the picture       | an option's letter |
| near      | choice of texts that differ in one or two characters | an option's letter |
| glyph     | one character of a text    | that character                  |
| beside    | GQA, by place              | the shape that is there         |
| caption   | detailed captions (LLaVA-Bench) | all things by place, then both texts |

"seen" to "beside" are meant to be hard without the tokens of what is asked about: knowing what else is in the picture,
or most of a text, does not help. They are not part of `KINDS`, whose question files stay unchanged.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from playground.mini.world import COLOR_NAMES, DIGITS, LETTERS, PATCH, SHAPES, SIZES, TEXT_LENGTH, Scene, Thing

KINDS = ("existence", "attribute", "count", "relation", "reading", "choice")
HARDER = ("seen", "near", "glyph", "beside")
SIDES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis and sign
ORDINALS = ("first", "second", "third")
PLURALS = {s: s + "es" if s.endswith("s") else s + "s" for s in SHAPES}
SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
EXAM_SHARE = 0.25  # of the multiple-choice questions that training words as ScienceQA does
MAX_COUNT = 6


@dataclass(frozen=True)
class Question:
    """`text` is the bare question, `prompt` what the model sees after the picture."""

    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    subtask: str = ""

    @property
    def prompt(self) -> str:
        """As LLaVA's evaluation words it; options as MMBench and SEED list them."""
        if self.kind == "caption":
            return self.text
        if not self.options:
            return f"{self.text}\n{SHORT}"
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", self.options, strict=False))
        return f"{self.text}{listed}\n{LETTER}"

    @property
    def exam_prompt(self) -> str:
        """A multiple-choice question as LLaVA's ScienceQA files word it."""
        listed = " ".join(f"({letter}) {option}" for letter, option in zip("ABCD", self.options, strict=False))
        return f"Context: N/A\nQuestion: {self.text}\nOptions: {listed}\n{LETTER}"


def ask(rng: np.random.Generator, scene: Scene, kind: str) -> Question | None:
    """A question of `kind` about `scene`, or None when the scene has nothing to ask about."""
    return _ASKERS[kind](rng, scene)


def _pick(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _named(scene: Scene) -> list[tuple[Thing, str]]:
    """The things that a name fits alone, with the shortest such name."""
    shapes = Counter(t.shape for t in scene.things)
    pairs = Counter((t.color, t.shape) for t in scene.things)
    names = [(t, t.shape if shapes[t.shape] == 1 else f"{t.color} {t.shape}") for t in scene.things]
    return [(t, name) for t, name in names if name == t.shape or pairs[t.color, t.shape] == 1]


def _existence(rng: np.random.Generator, scene: Scene) -> Question | None:
    if not scene.things:
        return None
    present = {(t.color, t.shape) for t in scene.things}
    near = _pick(rng, scene.things)
    color, shape = near.color, near.shape
    if rng.random() < 0.5:
        # "No" questions change one half of something that is there, so half a look is not enough.
        for _ in range(20):
            keep = rng.random()
            color = near.color if keep < 0.45 else _pick(rng, COLOR_NAMES)
            shape = near.shape if keep > 0.55 else _pick(rng, SHAPES)
            if (color, shape) not in present:
                break
        else:
            return None
    return Question("existence", f"Is there a {color} {shape} in the image?", _yes((color, shape) in present))


def absent(rng: np.random.Generator, scene: Scene, how: str) -> Question:
    """A POPE question about something that is not there.

    `how`: "random" draws colour and shape freely, "popular" takes a shape of the scene in a colour that it has not,
    "adversarial" a colour and a shape of the scene that do not go together (where there are such).
    """
    present = {(t.color, t.shape) for t in scene.things}
    colors = COLOR_NAMES if how != "adversarial" else tuple(sorted({t.color for t in scene.things}))
    shapes = SHAPES if how == "random" else tuple(sorted({t.shape for t in scene.things}))
    missing = [(c, s) for c in colors for s in shapes if (c, s) not in present]
    missing = missing or [(c, s) for c in COLOR_NAMES for s in SHAPES if (c, s) not in present]
    color, shape = _pick(rng, missing)
    return Question("existence", f"Is there a {color} {shape} in the image?", "no")


def _attribute(rng: np.random.Generator, scene: Scene) -> Question | None:
    named = _named(scene)
    colors = Counter(t.color for t in scene.things)
    unique = [t for t in scene.things if colors[t.color] == 1]
    form = rng.random()
    if form < 0.45 and (plain := [(t, n) for t, n in named if n == t.shape]):
        thing, name = _pick(rng, plain)
        return Question("attribute", f"What color is the {name}?", thing.color, subtask="color")
    if form < 0.8 and unique:
        thing = _pick(rng, unique)
        return Question("attribute", f"What shape is the {thing.color} object?", thing.shape, subtask="shape")
    if named:
        thing, name = _pick(rng, named)
        return Question("attribute", f"What size is the {name}?", thing.size, subtask="size")
    return None


def _countable(scene: Scene) -> list[tuple[int, str]]:
    shapes, colors = Counter(t.shape for t in scene.things), Counter(t.color for t in scene.things)
    names = [(shapes[s], PLURALS[s]) for s in SHAPES] + [(colors[c], f"{c} objects") for c in COLOR_NAMES]
    return [(n, name) for n, name in names if n <= MAX_COUNT]


def _balanced_count(rng: np.random.Generator, scene: Scene) -> tuple[int, str]:
    """A countable group; counts that occur are about equally likely, so that "0" and "1" do not win by default."""
    groups = _countable(scene)
    wanted = _pick(rng, sorted({n for n, _ in groups}))
    return _pick(rng, [g for g in groups if g[0] == wanted])


def _count(rng: np.random.Generator, scene: Scene) -> Question | None:
    number, name = _balanced_count(rng, scene)
    return Question("count", f"How many {name} are there in the image?", str(number))


def _relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    named = _named(scene)
    if len(named) < 2:
        return None
    first, second = rng.choice(len(named), 2, replace=False)
    (a, name_a), (b, name_b) = named[first], named[second]
    dx, dy = a.x - b.x, a.y - b.y
    horizontal = rng.random() < 0.5
    # Less than a patch and a half apart along the axis is not a question that a person would answer for sure.
    if abs(dx if horizontal else dy) < 1.5 * PATCH:
        return None
    if horizontal:
        side = _pick(rng, ("left", "right"))
        return Question(
            "relation", f"Is the {name_a} to the {side} of the {name_b}?", _yes((dx < 0) == (side == "left"))
        )
    side = _pick(rng, ("above", "below"))
    return Question("relation", f"Is the {name_a} {side} the {name_b}?", _yes((dy < 0) == (side == "above")))


def _where(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Where a thing is, in the picture or beside another: what a relation is made of, asked for itself."""
    named = _named(scene)
    if not named:
        return None
    a, name = _pick(rng, named)
    b, other = (a, name) if rng.random() < 0.5 else _pick(rng, named)
    horizontal = rng.random() < 0.5
    low, high = ("left", "right") if horizontal else ("above", "below")
    if b is a:
        # Halves of the model's plane, not of a small scene's picture: the patches' places tell nothing of the latter.
        offset = a.x - scene.middle[0] if horizontal else a.y - scene.middle[1]
        text = f"Is the {name} in the {'left or right' if horizontal else 'upper or lower'} half?"
        low, high = ("left", "right") if horizontal else ("upper", "lower")
    else:
        offset = a.x - b.x if horizontal else a.y - b.y
        text = f"Is the {name} {low} or {high} of the {other}?"
    if abs(offset) < PATCH:
        return None
    return Question("where", text, low if offset < 0 else high)


def _reading(rng: np.random.Generator, scene: Scene) -> Question | None:
    if not scene.signs:
        return None
    sign = _pick(rng, scene.signs)
    what = "number" if sign.is_number else "word"
    return Question("reading", f"What {what} is written in the image?", sign.text.lower(), subtask=what)


def _choice(rng: np.random.Generator, scene: Scene) -> Question | None:
    if rng.random() < 0.2:
        number, name = _balanced_count(rng, scene)
        pool = [str(n) for n in range(MAX_COUNT) if n != number]
        return _with_options(rng, f"How many {name} are there in the image?", str(number), pool, "count")
    question = _attribute(rng, scene)
    if question is None or question.subtask == "size":
        return None
    everything = COLOR_NAMES if question.subtask == "color" else SHAPES
    seen = {t.color for t in scene.things} | {t.shape for t in scene.things}
    wrong = [v for v in everything if v != question.answer]
    # Options that occur elsewhere in the picture are listed thrice: likelier to be drawn, as wrong answers should be.
    pool = [v for v in wrong for _ in range(3 if v in seen else 1)]
    return _with_options(rng, question.text, question.answer, pool, question.subtask)


def _with_options(rng: np.random.Generator, text: str, answer: str, pool: list[str], subtask: str) -> Question:
    options = [answer]
    while len(options) < 4:
        other = _pick(rng, pool)
        if other not in options:
            options.append(other)
    options = [options[i] for i in rng.permutation(4)]
    return Question("choice", text, "ABCD"[options.index(answer)], tuple(options), subtask)


def _two_way(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Of two things, by the margin of `_relation`: "Is the star left or right of the ring?"."""
    named = _named(scene)
    if len(named) < 2:
        return None
    first, second = rng.choice(len(named), 2, replace=False)
    (a, name), (b, other) = named[first], named[second]
    horizontal = rng.random() < 0.5
    offset = a.x - b.x if horizontal else a.y - b.y
    if abs(offset) < 1.5 * PATCH:
        return None
    low, high = ("left", "right") if horizontal else ("above", "below")
    return Question("two_way", f"Is the {name} {low} or {high} of the {other}?", low if offset < 0 else high)


def _seen(rng: np.random.Generator, scene: Scene) -> Question | None:
    """A choice between four colours, or four shapes, that all occur in the picture, each as likely to be right."""
    question = _attribute(rng, scene)
    if question is None or question.subtask == "size":
        return None
    found = {getattr(t, question.subtask) for t in scene.things}
    if len(found) < 4:
        return None
    pool = sorted(found - {question.answer})
    choice = _with_options(rng, question.text, question.answer, pool, question.subtask)
    return Question("seen", choice.text, choice.answer, choice.options, choice.subtask)


def _near(rng: np.random.Generator, scene: Scene) -> Question | None:
    """A choice between four texts: two characters, each right or wrong. What most options share does not tell."""
    if not scene.signs:
        return None
    sign = _pick(rng, scene.signs)
    places = rng.choice(TEXT_LENGTH, 2, replace=False)
    alphabet = DIGITS if sign.is_number else LETTERS
    wrong = [_pick(rng, [c for c in alphabet if c != sign.text[place]]) for place in places]
    options = []
    for mask in rng.permutation(4):
        text = list(sign.text)
        for bit, place in enumerate(places):
            text[place] = wrong[bit] if mask >> bit & 1 else text[place]
        options.append("".join(text).lower())
    what = "number" if sign.is_number else "word"
    right = "ABCD"[options.index(sign.text.lower())]
    return Question("near", f"What {what} is written in the image?", right, tuple(options), what)


def _glyph(rng: np.random.Generator, scene: Scene) -> Question | None:
    if not scene.signs:
        return None
    sign, place = _pick(rng, scene.signs), int(rng.integers(TEXT_LENGTH))
    what = "number" if sign.is_number else "word"
    text = f"What is the {ORDINALS[place]} character of the {what}?"
    return Question("glyph", text, sign.text[place].lower(), subtask=ORDINALS[place])


def _beside(rng: np.random.Generator, scene: Scene) -> Question | None:
    """The nearest thing on one side of another: within 45 degrees of that direction, the next one half as far again."""
    named = _named(scene)
    if not named:
        return None
    thing, name = _pick(rng, named)
    side = _pick(rng, tuple(SIDES))
    found = things_beside(scene, thing, side)
    distances, shapes = [distance for distance, _ in found], [scene.things[index].shape for _, index in found]
    if not found or (len(found) > 1 and distances[1] < 1.5 * distances[0] and shapes[1] != shapes[0]):
        return None
    of = " of" if side in ("left", "right") else ""
    return Question("beside", f"What is {side}{of} the {name}?", shapes[0], subtask=side)


def things_beside(scene: Scene, thing: Thing, side: str) -> list[tuple[float, int]]:
    """Distance and number of all things on that side of `thing`, within 45 degrees of the direction, nearest first."""
    axis, sign = SIDES[side]
    found = []
    for index, other in enumerate(scene.things):
        offset = (other.x - thing.x, other.y - thing.y)
        along, across = sign * offset[axis], abs(offset[1 - axis])
        if along >= 1.5 * PATCH and across < along:
            found.append((float(np.hypot(*offset)), index))
    return sorted(found)


def by_place(scene: Scene) -> list[int]:
    """Numbers of the things from left to right, the order of a caption."""
    return sorted(range(len(scene.things)), key=lambda index: (scene.things[index].x, scene.things[index].y))


def _caption(rng: np.random.Generator, scene: Scene) -> Question:
    """Everything in the picture: "a small red star, a large blue ring, number 472, word oeh"."""
    things = (scene.things[index] for index in by_place(scene))
    facts = [f"a {thing.size} {thing.color} {thing.shape}" for thing in things]
    signs = sorted(scene.signs, key=lambda sign: not sign.is_number)
    facts += [f"{'number' if sign.is_number else 'word'} {sign.text.lower()}" for sign in signs]
    return Question("caption", "What is in the image?", ", ".join(facts))


def _verify(rng: np.random.Generator, scene: Scene) -> Question | None:
    return verify(rng, scene, _pick(rng, ("existence", "count", "position", "color", "OCR")), bool(rng.random() < 0.5))


def verify(rng: np.random.Generator, scene: Scene, subtask: str, truth: bool) -> Question | None:
    """A yes/no question of an MME subtask (existence, count, position, color, OCR) whose answer is `truth`."""
    for _ in range(12):
        question = _VERIFIERS[subtask](rng, scene, truth)
        if question is not None and question.answer == _yes(truth):
            return Question("verify", question.text, question.answer, subtask=subtask)
    return None


def _verify_count(rng: np.random.Generator, scene: Scene, truth: bool) -> Question | None:
    number, name = _balanced_count(rng, scene)
    said = number if truth else _pick(rng, [n for n in range(MAX_COUNT) if n != number])
    return Question("verify", f"Are there {said} {name} in the image?", _yes(said == number))


def _verify_color(rng: np.random.Generator, scene: Scene, truth: bool) -> Question | None:
    question = _attribute(rng, scene)
    if question is None or question.subtask != "color":
        return None
    said = question.answer if truth else _pick(rng, [c for c in COLOR_NAMES if c != question.answer])
    name = question.text.removeprefix("What color is the ").removesuffix("?")
    return Question("verify", f"Is the {name} {said}?", _yes(said == question.answer))


def _verify_text(rng: np.random.Generator, scene: Scene, truth: bool) -> Question | None:
    if not scene.signs:
        return None
    sign = _pick(rng, scene.signs)
    said = sign.text
    if not truth:
        place = int(rng.integers(TEXT_LENGTH))
        other = _pick(rng, [c for c in (DIGITS if sign.is_number else LETTERS) if c != said[place]])
        said = said[:place] + other + said[place + 1 :]
    what = "number" if sign.is_number else "word"
    return Question("verify", f'Is the {what} in the image "{said.lower()}"?', _yes(said == sign.text))


_ASKERS = {
    "existence": _existence,
    "attribute": _attribute,
    "count": _count,
    "relation": _relation,
    "reading": _reading,
    "choice": _choice,
    "verify": _verify,
    "where": _where,
    "two_way": _two_way,
    "seen": _seen,
    "near": _near,
    "glyph": _glyph,
    "beside": _beside,
    "caption": _caption,
}
_VERIFIERS = {
    "existence": lambda rng, scene, truth: _existence(rng, scene),
    "count": _verify_count,
    "position": lambda rng, scene, truth: _relation(rng, scene),
    "color": _verify_color,
    "OCR": _verify_text,
}


def vocabulary() -> list[str]:
    """Every word that a question, an option or an answer can contain, in a fixed order."""
    words = "what color shape size is the object objects how many are there in image a to of left right above below"
    words += " number word written yes no 0 1 2 3 4 5 6 or half upper lower"
    listed = words.split() + list(COLOR_NAMES) + list(SHAPES) + list(PLURALS.values()) + list(SIZES)
    listed += [*ORDINALS, "character"]
    return list(dict.fromkeys(listed))
