"""What is taught when, and the lessons themselves: scenes, packed questions, what their nouns name, who may look.

A lesson follows from (seed, step, process, teaching) alone, so that a resumed run sees what it would have seen, and
worker processes can draw ahead (ahead.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from playground.mini import nouns
from playground.mini.model import Pack, Sight
from playground.mini.nouns import Mark
from playground.mini.questions import (
    EXAM_SHARE,
    MAX_COUNT,
    ORDINALS,
    Question,
    _countable,
    ask,
    by_place,
    things_beside,
)
from playground.mini.textures import Gallery
from playground.mini.tokenizer import build
from playground.mini.world import (
    GLYPHS,
    GRID,
    PATCH,
    TEXT_LENGTH,
    TRAIN_GALLERY,
    Scene,
    counting_scene,
    gallery,
    grouped_scene,
    make_scene,
)

IGNORE = -100
TRIES = 12
PACKS = 6  # questions of a scene are sorted by length and packed in this many groups, which saves a fifth of the tokens
FREE, BLIND, NOUN_BLIND = 0, 1, 2  # all tokens look; those behind "?" do not; those up to "?" do not
KIND_NUMBERS = {"thing": 0, "sign": 1, "plural": 2, "glyph": 3, "look": 4, "next": 5}
CAPTION_WEIGHT = 0.15  # of each of a caption's 40 tokens in the loss; an answer's one token counts 1
# How readily a number is asked for, where a scene offers it: large ones are rare in scenes.
RARITY = (1.0, 1.0, 1.5, 3.0, 5.0, 6.0, 4.0)
NEVER_BLIND = ("reading", "glyph", "near", "beside", "caption")
CHARACTERS = {c.lower() for c in GLYPHS} | {f"##{c.lower()}" for c in GLYPHS}


@dataclass(frozen=True)
class Topic:
    """Scenes of `grid` x `grid` patches and what is asked about each; pairs are bounds, both included.

    counting: half of the scenes hold 2 to 6 things of one colour or shape. groups: this share of the scenes holds two
    such groups, one of 4 to 6. rarity: how readily a number is asked for. middle: half lie in the plane's middle,
    where already the first thing's place says something about how two things lie.
    """

    grid: int
    things: tuple[int, int]
    signs: int
    distractors: tuple[int, int]
    mix: dict[str, int]
    counting: bool = False
    middle: bool = False
    groups: float = 0.0
    rarity: tuple[float, ...] = RARITY


@dataclass(frozen=True)
class Teaching:
    """grids: share of lessons by window. topics: by window, one per scene that a process teaches in a step.

    blind, noun_blind: shares of the questions in these roles. Choices need sight behind "?" more than others do.
    one_sided: share of the relations "right" and "below" that are asked as others. As long as sides are equally often
    asked for, neither the side nor where things lie says anything about yes or no by itself, only both together.
    crowd: share of the scenes that a run on a GPU teaches in a step; small windows cost little more than their
    launches, and what is learned first takes many steps rather than many scenes.
    """

    grids: dict[int, float]
    topics: dict[int, tuple[Topic, ...]]
    blind: float = 0.0
    choice_blind: float = 0.0
    noun_blind: float = 0.0
    one_sided: float = 0.0
    crowd: float = 1.0


POSITION = {"relation": 12, "two_way": 4, "attribute": 5, "existence": 3, "count": 4, "choice": 4}
EARLY = {"relation": 6, "two_way": 1, "attribute": 5, "existence": 3, "count": 4, "reading": 2, "glyph": 3}
EARLY |= {"verify": 2, "choice": 5, "near": 1}
FULL = {"relation": 4, "two_way": 2, "attribute": 5, "existence": 3, "count": 8, "reading": 2, "glyph": 3}
FULL |= {"verify": 2, "choice": 5, "seen": 2, "near": 1}

NEAR_12 = Topic(12, (2, 3), 0, (0, 0), POSITION, middle=True)
ALL_12 = Topic(12, (2, 4), 2, (0, 2), EARLY, counting=True)
ALL_16 = Topic(16, (3, 6), 2, (1, 3), FULL, counting=True)
ALL_24 = Topic(24, (5, 9), 2, (7, 11), FULL, counting=True)
PLAIN_24 = replace(ALL_24, counting=False)

NOUNS = Teaching(
    {12: 1.0}, {12: (NEAR_12,) * 3 + (ALL_12,) * 2}, blind=0.8, choice_blind=0.4, one_sided=0.75, crowd=0.4
)
FULL_TOPICS = {12: (ALL_12,) * 5, 16: (ALL_16,) * 4, 24: (ALL_24,) * 3}
SCENES = Teaching({16: 0.35, 24: 0.65}, FULL_TOPICS, noun_blind=1 / 3)
LAST = Teaching({16: 0.1, 24: 0.9}, FULL_TOPICS, noun_blind=0.25)

# For a decoder that has learned the above: everything, and much of what it had not learned.
MORE = {"relation": 4, "two_way": 1, "attribute": 4, "existence": 3, "count": 8, "reading": 3, "glyph": 2}
MORE |= {"verify": 3, "choice": 5, "seen": 1, "near": 4, "beside": 3, "caption": 1}
# Rarities that make 0 to 6 equally frequent answers, found by drawing 300 scenes.
MORE_16 = Topic(16, (3, 6), 2, (1, 3), MORE, groups=0.75, rarity=(1.0, 1.1, 1.7, 6.0, 12.0, 12.0, 55.0))
MORE_24 = Topic(24, (5, 9), 2, (7, 11), MORE, groups=0.75, rarity=(1.0, 1.2, 1.4, 3.7, 3.5, 16.0, 10.0))
MORE_TOPICS = {16: (MORE_16,) * 4, 24: (MORE_24,) * 3}
REST = Teaching({16: 0.25, 24: 0.75}, MORE_TOPICS, noun_blind=0.25)
REST_LAST = Teaching({16: 0.1, 24: 0.9}, MORE_TOPICS, noun_blind=0.2)


@dataclass
class Lesson:
    """B pictures with Q questions each; S tokens of questions a picture, pack after pack.

    pixels: uint8 [B, h, w, 3]. raster: long [B, N].
    kinds, answers, parts, sizes: str arrays [B, Q]; parts are subtasks, sizes those of the one thing asked about.
    roles: long [B, Q]. last: long [B, Q], the token that answers first, in 0..S-1. blind: bool [B, q, T] per pack.
    at, wanted, of, weight: [M], one per answering token: its place in 0..B*S-1, its label, its question in 0..B*Q-1,
    and its weight in the loss.
    rows: bool [B, ROWS, PREFIX + N].
    mark_at: long [E, 2], picture and token. mark_kind: long [E]. target: [E, ROWS], what to look at, in shares.
    place: [E, 2] in patches from the plane's middle, NaN unless one thing, sign or character is named.
    number: long [E]. what: long [E, 3], shape, colour, size, or IGNORE. same: long [E], whether a character of the
    question is the sign's, or IGNORE.
    some: by name, the numbers long [e] of the marks of one sort.
    gap_at, gap: long [D, 2] and [D, 2], the "?" of a relation and its (dx, dy) in patches.
    first, until: questions see the picture in layers first to until - 1. point: what nouns see is asked for behind it.
    """

    pixels: Tensor
    raster: Tensor
    packs: list[Pack]
    kinds: np.ndarray
    answers: np.ndarray
    parts: np.ndarray
    sizes: np.ndarray
    roles: Tensor
    last: Tensor
    at: Tensor
    wanted: Tensor
    of: Tensor
    weight: Tensor
    blind: list[Tensor]
    rows: Tensor
    mark_at: Tensor
    mark_kind: Tensor
    target: Tensor
    place: Tensor
    number: Tensor
    what: Tensor
    same: Tensor
    gap_at: Tensor
    gap: Tensor
    some: dict[str, Tensor] = field(default_factory=dict)
    blinded: bool = True
    first: int = 0
    until: int = 99
    point: int = 3

    def map(self, change: Callable[[Tensor], Tensor]) -> Lesson:
        """The lesson with `change` done to each tensor."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved |= {name: change(value) for name, value in moved.items() if isinstance(value, Tensor)}
        moved["packs"] = [Pack(change(p.ids), change(p.labels)) for p in self.packs]
        moved["blind"] = [change(b) for b in self.blind]
        moved["some"] = {name: change(t) for name, t in self.some.items()}
        return Lesson(**moved)

    def to(self, device: torch.device | str) -> Lesson:
        return self.map(lambda t: t.to(device, non_blocking=True))

    def anew(self, rng: np.random.Generator) -> Lesson:
        """The lesson, to be read in other layers."""
        return seen_in(rng, self)

    @property
    def sight(self) -> Sight:
        return Sight(range(self.first, self.until), self.blind if self.blinded else None)

    @property
    def labels(self) -> Tensor:
        """Long [B, S]."""
        return torch.cat([pack.labels.flatten(1) for pack in self.packs], 1)


# -- scenes and questions ---------------------------------------------------------------------------------------------


def draw_scene(rng: np.random.Generator, topic: Topic, surfaces: Gallery) -> tuple[Scene, tuple[int, int]]:
    """A scene with something in it, and the corner of its window in the plane (column, row)."""
    grid = topic.grid
    contents = tuple(int(rng.integers(low, high + 1)) for low, high in (topic.things, topic.distractors))
    contents = (contents[0], topic.signs, contents[1])
    if rng.random() < topic.groups:
        scene = grouped_scene(rng, surfaces, grid, grid, contents, draw_groups(rng, grid))
    elif topic.counting and rng.random() < 0.5:
        many = int(rng.integers(2, MAX_COUNT + 1)) if grid > 12 else int(rng.integers(2, 5))
        scene = counting_scene(rng, surfaces, grid, grid, contents, many)
    else:
        scene = make_scene(rng, surfaces, grid, grid, contents)
    if not scene.things:
        return draw_scene(rng, topic, surfaces)
    corner = tuple(int(v) for v in rng.integers(0, GRID - grid + 1, 2))
    if topic.middle and rng.random() < 0.5:
        corner = ((GRID - grid) // 2,) * 2
    scene.middle = ((GRID / 2 - corner[0]) * PATCH, (GRID / 2 - corner[1]) * PATCH)
    return scene, corner


def draw_groups(rng: np.random.Generator, grid: int) -> tuple[int, int]:
    """Sizes of two groups, together at most `nouns.MAX_THINGS`, or 7 on small windows."""
    first = int(rng.integers(4, MAX_COUNT + 1))
    room = min(MAX_COUNT, (nouns.MAX_THINGS if grid > 16 else 7) - first)
    return first, room if rng.random() < 0.5 else int(rng.integers(1, room + 1))


def _count(rng: np.random.Generator, scene: Scene, rarity: tuple[float, ...] = RARITY) -> Question:
    groups = _countable(scene)
    numbers = sorted({n for n, _ in groups})
    weights = np.array([rarity[n] for n in numbers])
    wanted = rng.choice(numbers, p=weights / weights.sum())
    names = [name for n, name in groups if n == wanted]
    return Question("count", f"How many {names[rng.integers(len(names))]} are there in the image?", str(wanted))


def question_of(
    rng: np.random.Generator, scene: Scene, kind: str, one_sided: float = 0.0, rarity: tuple[float, ...] = RARITY
) -> Question:
    """A question of `kind`, other things tried before giving up; else of a kind that can always be asked."""
    if kind == "count":
        return _count(rng, scene, rarity)
    if kind == "relation" and rng.random() < one_sided:
        drawn = (ask(rng, scene, kind) for _ in range(2 * TRIES))
        if question := next((q for q in drawn if q and not {"right", "below"} & set(q.text.split())), None):
            return question
    for other in (kind, "attribute", "existence"):
        if question := next((q for _ in range(TRIES) if (q := ask(rng, scene, other))), None):
            return question
    return _count(rng, scene)


def questions_of(
    rng: np.random.Generator,
    scene: Scene,
    mix: dict[str, int],
    one_sided: float = 0.0,
    rarity: tuple[float, ...] = RARITY,
) -> list[Question]:
    """As many as `mix` says; the same question twice only where a scene has no others."""
    asked: dict[str, Question] = {}
    spare = []
    for kind in (kind for kind, number in mix.items() for _ in range(number)):
        for _ in range(4):
            question = question_of(rng, scene, kind, one_sided, rarity)
            if question.prompt not in asked:
                asked[question.prompt] = question
                break
        else:
            spare.append(question)
    return [*asked.values(), *spare]


# -- tokens -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _core():
    return build().backend_tokenizer


@dataclass
class _Row:
    """One question in tokens: `mark`: first token that answers (the place before its label)."""

    question: Question
    ids: list[int]
    labels: list[int]
    asked: int  # place of "?"
    last: int  # place of "ASSISTANT:"
    marks: list[Mark]
    gap: tuple[float, float] | None
    size: str
    role: int = FREE


@lru_cache(maxsize=1 << 15)
def _tokenize(text: str) -> tuple[list[int], list[str]]:
    """Ids and tokens, not to be changed: most questions are asked again and again."""
    encoding = _core().encode(text, add_special_tokens=False)
    return encoding.ids, encoding.tokens


def _rows(rng: np.random.Generator, scene: Scene, corner: tuple[int, int], asked: list[Question]) -> list[_Row]:
    """The questions in tokens, with marks and the distance between the two things of a relation."""
    exams = [bool(q.options) and rng.random() < EXAM_SHARE for q in asked]
    prompts = [q.exam_prompt if exam else q.prompt for q, exam in zip(asked, exams, strict=True)]
    inputs = [_tokenize(f"\n{prompt} ASSISTANT:") for prompt in prompts]
    outputs = [_tokenize(q.answer) for q in asked]
    end, rows = build_end(), []
    for question, (ids, tokens), (answer, answer_tokens) in zip(asked, inputs, outputs, strict=True):
        last = len(ids) - 1
        labels = [IGNORE] * last + [*answer, end]
        marks = nouns.marks_of(tokens, scene)
        if question.kind == "caption":
            marks = _caption_marks(answer_tokens, last, scene)
        elif len(marks) == 1 and marks[0].kind == "sign" and marks[0].rows:
            marks += _sign_marks(question, tokens, last, scene, marks[0].rows[0] - nouns.SIGNS)
        elif question.kind == "beside" and len(marks) == 1:
            thing = scene.things[marks[0].rows[0] - nouns.THINGS]
            nearest = things_beside(scene, thing, question.subtask)[0][1]
            marks += [Mark(last, (nouns.THINGS + nearest,), "next")]
        gap = None
        if question.kind in ("relation", "two_way") and len(marks) == 2:
            (ax, ay), (bx, by) = (nouns.place_of(scene, mark.rows[0], corner) for mark in marks)
            gap = (ax - bx, ay - by)
        rows.append(_Row(question, ids + answer, labels, tokens.index("?"), last, marks, gap, _size(scene, marks)))
    return rows


def _sign_marks(question: Question, tokens: list[str], last: int, scene: Scene, sign: int) -> list[Mark]:
    """Tokens that spell a sign's characters, and those of the question that are to be compared with them."""
    if question.kind == "reading":
        return nouns.spelling(sign, last, range(TEXT_LENGTH))
    if question.kind == "glyph":
        return nouns.spelling(sign, last, [ORDINALS.index(question.subtask)])
    marks, text = [], scene.signs[sign].text.lower()
    spelled = [at for at, token in enumerate(tokens) if token in CHARACTERS and _in_text(tokens, at)]
    for number, at in enumerate(spelled):
        place = number % TEXT_LENGTH
        (mark,) = nouns.spelling(sign, at, [place])
        marks.append(replace(mark, same=int(tokens[at].removeprefix("##") == text[place])))
    return marks


def _in_text(tokens: list[str], at: int) -> bool:
    """Whether the character at `at` is one of several: a lone "a" is a word."""
    return tokens[at].startswith("##") or (at + 1 < len(tokens) and tokens[at + 1].startswith("##"))


def _caption_marks(tokens: list[str], last: int, scene: Scene) -> list[Mark]:
    """Of a caption's tokens: those before size, colour and shape look at the thing that comes next, the shape's token
    at the thing that it ends, and the characters of signs at what comes next. Answers begin behind `last`."""
    marks, at = [], last + 1
    for index in by_place(scene):
        row = (nouns.THINGS + index,)
        marks += [Mark(at + n, row, "next") for n in range(3)] + [Mark(at + 3, row, "thing")]
        at += 5  # a small red star ,
    for sign in sorted(range(len(scene.signs)), key=lambda i: not scene.signs[i].is_number):
        marks += nouns.spelling(sign, at, range(TEXT_LENGTH))
        at += 2 + TEXT_LENGTH
    return marks


def _size(scene: Scene, marks: list[Mark]) -> str:
    """Of the thing that a question is about, if it is about one that is there."""
    one = len(marks) == 1 and marks[0].kind == "thing" and len(marks[0].rows) == 1
    return scene.things[marks[0].rows[0] - nouns.THINGS].size if one else ""


@lru_cache(maxsize=1)
def build_end() -> int:
    """Id of the end token."""
    return int(build().eos_token_id)


def _cast(rng: np.random.Generator, row: _Row, teaching: Teaching) -> None:
    """Draw the role of a question, and put the marks where the looking then has to be done."""
    kind, draw = row.question.kind, rng.random()
    things = [mark for mark in row.marks if mark.kind in ("thing", "plural")]
    if kind not in NEVER_BLIND and draw < (teaching.choice_blind if row.question.options else teaching.blind):
        row.role = BLIND
    elif draw < teaching.noun_blind and len(row.marks) == 1 and len(things) == 1:
        row.role = NOUN_BLIND
        row.marks = [replace(things[0], token=row.last)]
    elif teaching.noun_blind and len(row.marks) == 1 and things:
        kind = "look" if things[0].kind == "thing" else "plural"
        row.marks = [*row.marks, Mark(row.last, things[0].rows, kind)]


def _groups(lengths: tuple[int, ...]) -> list[range]:
    """Cut 0..len-1, of rising `lengths`, into `PACKS` ranges at most, so that padding to each last one costs least."""
    best: dict[int, tuple[int, list[range]]] = {0: (0, [])}
    for _ in range(PACKS):
        for end in sorted(range(1, len(lengths) + 1), reverse=True):
            options = [
                (cost + (end - start) * lengths[end - 1], [*ranges, range(start, end)])
                for start, (cost, ranges) in best.items()
                if start < end
            ]
            known = [best[end]] if end in best else []
            best[end] = min(options + known, key=lambda option: option[0])
    return best[len(lengths)][1]


def _packed(rows: list[list[_Row]]) -> list[Pack]:
    """Sort each scene's questions by length, in place, and lay them out in `PACKS` groups of as few tokens as fit."""
    for row in rows:
        row.sort(key=lambda r: len(r.ids))
    lengths = [max(len(row[c].ids) for row in rows) for c in range(len(rows[0]))]
    packs = []
    for columns in _groups(tuple(lengths)):
        length = lengths[columns[-1]]
        ids = np.zeros((len(rows), len(columns), length), np.int64)
        labels = np.full_like(ids, IGNORE)
        for b, row in enumerate(rows):
            for place, c in enumerate(columns):
                ids[b, place, : len(row[c].ids)] = row[c].ids
                labels[b, place, : len(row[c].labels)] = row[c].labels
        packs.append(Pack(torch.from_numpy(ids), torch.from_numpy(labels)))
    return packs


def _starts(packs: list[Pack]) -> np.ndarray:
    """Long [Q]: where each question's first token is among the S of a picture."""
    lengths = np.concatenate([np.full(pack.ids.shape[1], pack.ids.shape[2]) for pack in packs])
    return np.concatenate([[0], np.cumsum(lengths)[:-1]])


def _blind(rows: list[list[_Row]], packs: list[Pack]) -> list[Tensor]:
    asked = np.array([[r.asked for r in row] for row in rows])[..., None]
    roles = np.array([[r.role for r in row] for row in rows])[..., None]
    out, at = [], 0
    for pack in packs:
        count, steps = pack.ids.shape[1:]
        token, part = np.arange(steps), slice(at, at + count)
        late = token > asked[:, part]
        out.append(torch.from_numpy(np.where(roles[:, part] == BLIND, late, (roles[:, part] == NOUN_BLIND) & ~late)))
        at += count
    return out


def _targets(rows: list[list[_Row]], starts: np.ndarray, scenes: list[Scene], corners: list) -> dict[str, Tensor]:
    """The tensors of all marks and gaps; see `Lesson`."""
    at, kinds, targets, places, numbers, what, same, gap_at, gaps = [], [], [], [], [], [], [], [], []
    for b, (row, scene, corner) in enumerate(zip(rows, scenes, corners, strict=True)):
        for start, r in zip(starts, row, strict=True):
            for mark in r.marks:
                at.append((b, start + mark.token))
                kinds.append(KIND_NUMBERS[mark.kind])
                target = np.zeros(nouns.ROWS, np.float32)
                named = [*mark.rows, nouns.OPENING] if mark.kind == "plural" or not mark.rows else mark.rows
                target[list(named)] = 1 / len(named)
                targets.append(target)
                one = mark.kind != "plural" and len(mark.rows) == 1
                places.append(nouns.place_of(scene, mark.rows[0], corner) if one else (np.nan, np.nan))
                what.append(nouns.what_of(scene, mark.rows[0]) if one else nouns.NOTHING)
                numbers.append(min(len(mark.rows), MAX_COUNT))
                same.append(mark.same)
            if r.gap is not None:
                gap_at.append((b, start + r.asked))
                gaps.append(r.gap)
    return {
        "mark_at": torch.tensor(np.array(at)).view(-1, 2),
        "mark_kind": torch.tensor(kinds),
        "target": torch.from_numpy(np.stack(targets)),
        "place": torch.tensor(places, dtype=torch.float32),
        "number": torch.tensor(numbers),
        "what": torch.tensor(what),
        "same": torch.tensor(same),
        "some": _sorts(np.array(kinds), np.array(places), np.array(same)),
        "gap_at": torch.tensor(np.array(gap_at, np.int64)).view(-1, 2),
        "gap": torch.tensor(gaps, dtype=torch.float32).view(-1, 2),
    }


def _sorts(kinds: np.ndarray, places: np.ndarray, same: np.ndarray) -> dict[str, Tensor]:
    """See `Lesson.some`."""
    sorts = {name: kinds == number for name, number in KIND_NUMBERS.items()}
    sorts |= {"named": kinds <= KIND_NUMBERS["sign"], "compared": same != IGNORE}
    sorts["pointing"] = ~(sorts["plural"] | sorts["next"])
    sorts["one"] = ~np.isnan(places[:, 0]) & ~sorts["look"] & ~sorts["next"]
    return {name: torch.from_numpy(chosen.nonzero()[0]) for name, chosen in sorts.items()}


def _answering(rows: list[list[_Row]], packs: list[Pack]) -> dict[str, Tensor]:
    """See `Lesson.at`."""
    labels = torch.cat([pack.labels.flatten(1) for pack in packs], 1)
    counts = [(pack.ids.shape[1], pack.ids.shape[2]) for pack in packs]
    question = np.repeat(np.arange(sum(n for n, _ in counts)), [t for n, t in counts for _ in range(n)])
    picture, token = (labels != IGNORE).numpy().nonzero()
    of = picture * len(rows[0]) + question[token]
    weights = np.array([CAPTION_WEIGHT if r.question.kind == "caption" else 1.0 for row in rows for r in row])
    wanted = labels[picture, token]
    weight = torch.from_numpy(weights[of]).float() * torch.where(wanted == build_end(), 0.1, 1.0)
    at = torch.from_numpy(picture * labels.shape[1] + token)
    return {"at": at, "wanted": wanted, "of": torch.from_numpy(of), "weight": weight}


def assemble(
    rng: np.random.Generator,
    drawn: list[tuple[Scene, tuple[int, int]]],
    asked: list[list[Question]],
    teaching: Teaching,
) -> Lesson:
    """A lesson of scenes with their corners and as many questions about each."""
    scenes, corners = [scene for scene, _ in drawn], [corner for _, corner in drawn]
    rows = [_rows(rng, scene, corner, qs) for (scene, corner), qs in zip(drawn, asked, strict=True)]
    for row in rows:
        for r in row:
            _cast(rng, r, teaching)
    packs = _packed(rows)
    starts = _starts(packs)
    grid = scenes[0].image.width // PATCH
    window = np.arange(grid)[:, None] * GRID + np.arange(grid)[None]
    return Lesson(
        pixels=torch.from_numpy(np.stack([np.asarray(s.image) for s in scenes])),
        raster=torch.from_numpy(np.stack([(window + y * GRID + x).reshape(-1) for x, y in corners])),
        packs=packs,
        kinds=np.array([[r.question.kind for r in row] for row in rows]),
        answers=np.array([[r.question.answer for r in row] for row in rows]),
        parts=np.array([[r.question.subtask for r in row] for row in rows]),
        sizes=np.array([[r.size for r in row] for row in rows]),
        roles=torch.tensor([[r.role for r in row] for row in rows]),
        last=torch.from_numpy(np.array([[s + r.last for s, r in zip(starts, row, strict=True)] for row in rows])),
        **_answering(rows, packs),
        blind=(blind := _blind(rows, packs)),
        blinded=any(bool(b.any()) for b in blind),
        rows=torch.from_numpy(np.stack([nouns.rows_of(s, grid, grid) for s in scenes])),
        **_targets(rows, starts, scenes, corners),
    )


def draw_lesson(
    seed: int, step: int, process: int, teaching: Teaching, times: int = 1, style: str = "default"
) -> Lesson:
    """The lesson of a step, of `times` as many scenes as `teaching` says (and of its `crowd`), in the training surfaces
    of a world; all processes get the same size of window."""
    grids = list(teaching.grids)
    common, rng = np.random.default_rng([seed, 1, step]), np.random.default_rng([seed, 2, step, process])
    grid = int(common.choice(grids, p=list(teaching.grids.values())))
    topics = teaching.topics[grid] * max(1, round(times * teaching.crowd))
    surfaces = gallery(TRAIN_GALLERY, style)
    drawn = [draw_scene(rng, topic, surfaces) for topic in topics]
    asked = [
        questions_of(rng, scene, topic.mix, teaching.one_sided, topic.rarity)
        for (scene, _), topic in zip(drawn, topics, strict=True)
    ]
    return seen_in(rng, assemble(rng, drawn, asked, teaching))


def seen_in(rng: np.random.Generator, lesson: Lesson) -> Lesson:
    """The lesson, the picture to be read in any of layers 0 to 4, never in one alone; what is behind the last of them
    costs nothing."""
    first, until = int(rng.integers(4)), int(rng.choice([5, 6, 8], p=[0.5, 0.2, 0.3]))
    return replace(lesson, first=first, until=until, point=int(rng.integers(max(2, first), 5)))
