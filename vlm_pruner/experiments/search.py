"""Finds, for each method, the smallest budget that keeps a share of the dense model's accuracy.

The pictures are split in two halves. On the first, a binary search over a grid of budgets (each some 1.4 times the one
before) finds the smallest that is shown to keep the share. The second half confirms it: it tests the budget two steps
above, then one step above, then the found one, and stops at the first that fails. Tests in an order fixed beforehand
need no correction, so the budget that it confirms keeps less than the share with a probability of at most
1 - confidence, however noisy the search was.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_pruner.cost.budgets import Budget
from vlm_pruner.errors import PruningError
from vlm_pruner.experiments import answering, experiment, opening
from vlm_pruner.experiments.answerer import Answerer
from vlm_pruner.experiments.arms import DENSE, Arm, ModelFacts, dense_arm, make_arm
from vlm_pruner.experiments.experiment import Settings
from vlm_pruner.experiments.journal import Journal, say_how_it_starts
from vlm_pruner.experiments.questions import Question, QuestionSet
from vlm_pruner.experiments.retention import Judge, Retention
from vlm_pruner.methods import maker
from vlm_pruner.methods.words import printed_name

STEPS_ABOVE = 2  # of the grid, where confirming begins
SEARCH, CONFIRM = "search", "held out"
UNFINISHED = "budgets.unfinished.jsonl"


@dataclass(frozen=True)
class Goal:
    """keep_share: of the dense accuracy. confidence: of the one-sided bound."""

    keep_share: float = 0.99
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.keep_share < 1:
            raise ValueError(f"--keep-share is {self.keep_share:g}; it must be above 0 and below 1, for example 0.99")
        if not 0.5 < self.confidence < 1:
            raise ValueError(f"--confidence is {self.confidence:g}; it must be above 0.5 and below 1, for example 0.95")


@dataclass(frozen=True)
class Trial:
    """One arm on one half of the questions."""

    half: str
    arm: Arm
    retention: Retention


@dataclass
class Search:
    """The search for one method. low: the largest index in the grid that failed, or -1. high: the smallest that held.

    queue: indices that the second half has yet to test, in order. reason: why the model or the method refuses.
    """

    name: str
    high: int
    low: int = -1
    trials: list[Trial] = field(default_factory=list)
    queue: list[int] | None = None
    reason: str = ""

    @property
    def label(self) -> str:
        return printed_name(self.name)

    @property
    def confirmed(self) -> Trial | None:
        """The smallest budget that held on held-out questions."""
        held = [trial for trial in self.trials if trial.half == CONFIRM and trial.retention.holds]
        return held[-1] if held else None

    @property
    def found(self) -> Trial | None:
        """The smallest budget that held in the search; None if none does below all tokens."""
        held = [trial for trial in self.trials if trial.half == SEARCH and trial.retention.holds]
        return min(held, key=lambda trial: trial.arm.tokens) if held else None

    def next(self) -> int | None:
        """The next index to try in the current half."""
        if self.reason:
            return None
        if self.queue is None:
            return (self.low + self.high) // 2 if self.high - self.low > 1 else None
        return self.queue[0] if self.queue else None

    def add(self, index: int, trial: Trial) -> None:
        self.trials.append(trial)
        if self.queue is not None:
            self.queue = self.queue[1:] if trial.retention.holds else []
        elif trial.retention.holds:
            self.high = index
        else:
            self.low = index

    def confirm(self, last: int) -> None:
        """Plans the second half. last: the index of all tokens, which is dense."""
        start = min(self.high + STEPS_ABOVE, last - 1)
        self.queue = list(range(start, self.high - 1, -1)) if self.high < last else []


def grid(visual: int) -> list[int]:
    """Budgets from 1 to `visual` tokens, each about 1.4 times the one before."""
    sizes = [visual]
    while sizes[-1] > 1:
        sizes.append(min(sizes[-1] - 1, max(1, round(sizes[-1] / 2**0.5))))
    return sizes[::-1]


def halves(questions: Sequence[Question], seed: int) -> tuple[list[Question], list[Question]]:
    """Two halves that share no picture, in the order of the questions. Raises ValueError for a single picture."""
    pictures = list(dict.fromkeys(question.image for question in questions))
    if len(pictures) < 2:
        raise ValueError("all questions are about one picture; searching and confirming need different ones")
    random.Random(seed).shuffle(pictures)
    first = set(pictures[: len(pictures) // 2])
    return [q for q in questions if q.image in first], [q for q in questions if q.image not in first]


@dataclass(frozen=True)
class Budgets:
    """A finished search. dense: verdicts of both halves. n: questions of each."""

    settings: Settings
    goal: Goal
    facts: ModelFacts
    searches: list[Search]
    n: tuple[int, int]
    pictures: int
    header: dict[str, Any]
    journal: Journal


def run(settings: Settings, asked: QuestionSet, names: Iterable[str], goal: Goal) -> Budgets:
    """Loads the model, searches, and confirms. Raises ValueError if there are too few questions to show anything."""
    names = [name for name in dict.fromkeys(names) if name != DENSE]
    for name in names:
        maker(name)
    parts = halves(asked.questions, settings.seed)
    print(f"loading {experiment.shown(settings.model)}", file=sys.stderr, flush=True)
    answerer = opening.load(settings.model, settings.device)
    facts = answerer.facts(asked.questions)
    header = {**experiment.describe(settings, [asked]), "methods": names}
    with Journal(settings.out / UNFINISHED, header) as journal:
        say_how_it_starts(journal)
        runner = _Runner(settings, answerer, journal, asked.name, parts, goal)
        runner.check_enough()
        sizes = grid(facts.visual)
        searches = [Search(name, len(sizes) - 1) for name in names]
        runner.advance(searches, sizes, facts, SEARCH)
        for search in searches:
            search.confirm(len(sizes) - 1)
        runner.advance(searches, sizes, facts, CONFIRM)
    pictures = len({question.image for question in asked.questions})
    return Budgets(settings, goal, facts, searches, (len(parts[0]), len(parts[1])), pictures, header, journal)


class _Runner:
    def __init__(
        self, settings: Settings, answerer: Answerer, journal: Journal, name: str,
        parts: tuple[list[Question], list[Question]], goal: Goal,
    ) -> None:  # fmt: skip
        self.settings, self.answerer, self.journal, self.name, self.goal = settings, answerer, journal, name, goal
        self.questions = dict(zip((SEARCH, CONFIRM), parts, strict=True))
        self.batches = {
            half: answerer.batches(own, settings.batch_size, settings.prefixes) for half, own in self.questions.items()
        }
        self.dense = dense_arm(answerer.facts([*parts[0], *parts[1]]))
        self.clustering = 1.0  # the largest design effect seen in the search
        self.judges = {half: self._judge(half) for half in self.questions}

    def _judge(self, half: str) -> Judge:
        (dense,), rules = self.correct(half, [self.dense]), self.settings.rules
        goal = self.goal
        return Judge(self.questions[half], dense, goal.keep_share, goal.confidence, rules.resamples, rules.seed)

    def check_enough(self) -> None:
        """Raises ValueError unless an arm that answers as the dense model does would be shown to keep the share."""
        for half, judge in self.judges.items():
            best = judge.best_possible()
            if not best.holds:
                raise ValueError(
                    f"{best.n} questions ({half}) cannot show that {100 * self.goal.keep_share:g} % of an accuracy of "
                    f"{100 * best.dense:.0f} % is kept, not even by the dense model itself; give "
                    f"{2 * judge.questions_needed} questions or more, or a smaller --keep-share"
                )

    def advance(self, searches: Sequence[Search], sizes: Sequence[int], facts: ModelFacts, half: str) -> None:
        """Tries budget after budget, all methods at once: they share the pictures and the first layers."""
        while tried := [(search, index) for search in searches if (index := search.next()) is not None]:
            arms: list[tuple[Search, int, Arm]] = []
            for search, index in tried:
                arm = self._arm(search, sizes[index], facts)
                if arm is not None:
                    arms.append((search, index, arm))
                elif not search.reason:
                    search.low = index  # fewer tokens than the method can work with
            verdicts = self.correct(half, [arm for _, _, arm in arms])
            for (search, index, arm), correct in zip(arms, verdicts, strict=True):
                judge = self.judges[half]
                if half == SEARCH:
                    self.clustering = max(self.clustering, judge.clustering(correct))
                search.add(index, Trial(half, arm, judge.judge(correct, self.clustering)))

    def _arm(self, search: Search, tokens: int, facts: ModelFacts) -> Arm | None:
        """None if the method cannot work with so few tokens, or with this model, which becomes its reason."""
        try:
            arm = make_arm(search.name, Budget("tokens", tokens), facts, self.settings.seed)
        except PruningError as error:
            if tokens > facts.visual // 2:
                search.reason = str(error)
            return None
        if not search.trials:
            search.reason = answering.refusal(self.answerer, arm, self.questions[SEARCH][0]) or ""
        return None if search.reason else arm

    def correct(self, half: str, arms: Sequence[Arm]) -> list[list[float]]:
        """Whether each arm answers each question of a half right: 1.0 or 0.0."""
        if not arms:
            return []
        first = 0 if half == SEARCH else len(self.batches[SEARCH])  # each batch seeds draws by its own number
        records = [r for r in self.journal.records if r["benchmark"] == self.name]
        rounds = answering.rounds_of(
            self.name, self.batches[half], arms, records, first, prefixes=self.settings.prefixes
        )
        experiment.fill(self.settings, self.answerer, self.journal, rounds, len(arms) * len(self.questions[half]))
        found = {(r["arm"], r["question_id"]): float(r["correct"]) for r in self.journal.records}
        return [[found[arm.key, question.question_id] for question in self.questions[half]] for arm in arms]
