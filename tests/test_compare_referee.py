"""Prune or resize: verdicts in words, equal time, calibration, and the probability of an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vlm_pruner.asking.answer import joint_probabilities
from vlm_pruner.experiments import clock
from vlm_pruner.experiments.arms import Arm, ModelFacts, make_arms
from vlm_pruner.experiments.bootstrap import PictureBootstrap
from vlm_pruner.experiments.clock import Cost
from vlm_pruner.experiments.questions import Question
from vlm_pruner.experiments.referee import FLOOR, TIME, TOKENS, matches
from vlm_pruner.experiments.verdicts import BETTER, UNCLEAR, WORSE, Cell, Rules
from vlm_pruner.report import referee_table

ASKED = [Question(n, Path(f"{n}.png"), "?", f"kind {n % 2}", "yes") for n in range(400)]
ARMS = make_arms(["dense", "blind", "random", "vlm-pruner", "divprune", "resize"], [64], ModelFacts(576))


def match_of(shares: dict[str, float], timed: bool = True, among: Sequence[Arm] = ARMS):
    """Arms that answer a share of the questions right, the same ones as far as possible."""
    order = list(range(len(ASKED)))
    random.Random(0).shuffle(order)
    sizes = [*clock.smaller_pictures(ModelFacts(576))]
    rival = next(one for one in sizes if one.tokens == 256)
    arms = [*among, rival]
    records = [
        {"arm": arm.key, "benchmark": "b", "question_id": q.question_id, "correct": order[i] < shares[arm.key] * 400}
        for arm in arms
        for i, q in enumerate(ASKED)
    ]
    costs = {arm.key: Cost(0.01, 0.05, 0.01) for arm in arms} if timed else {}
    opponents = {arm.key: rival for arm in arms if arm.method is not None} if timed else {}
    (match,) = matches(arms, {"b": ASKED}, records, Rules(resamples=2000), costs, opponents)
    return match


def shares(**changes: float) -> dict[str, float]:
    usual = {"dense@576": 0.9, "blind@0": 0.3, "resize@64": 0.5, "resize@256": 0.7,
             "random@64": 0.4, "vlm-pruner@64": 0.8, "divprune@64": 0.75}  # fmt: skip
    return {
        **usual,
        **{f"{name.replace('_', '-')}@{'256' if name == 'rival' else '64'}": v for name, v in changes.items()},
    }


def test_the_best_of_those_that_beat_the_smaller_picture_is_named():
    match = match_of(shares())
    assert match.of(ARMS[3], TIME).verdict == BETTER and match.of(ARMS[2], TIME).verdict == WORSE
    assert "at equal time" in match.verdict and "At 64 tokens, prune with VLM-Pruner" in match.verdict
    assert "the picture resized to 16 x 16 tokens by +10.0 [" in match.verdict and "so does one other" in match.verdict


def test_where_all_lose_it_says_resize():
    found = shares(vlm_pruner=0.5, divprune=0.45)
    assert "At 64 tokens, resize: every pruned arm does worse, VLM-Pruner least so" in match_of(found).verdict


def test_what_is_not_shown_is_not_claimed():
    found = shares(vlm_pruner=0.705, divprune=0.6)
    match = match_of(found)
    assert match.of(ARMS[3], TIME).verdict == UNCLEAR and "At 64 tokens it is not shown" in match.verdict


def test_an_arm_that_reads_no_picture_is_not_recommended():
    found = {**shares(vlm_pruner=0.3, divprune=0.3), "resize@64": 0.1, "resize@256": 0.1, "random@64": 0.3}
    assert "use neither: no pruned arm is shown to do better than the question alone" in match_of(found).verdict


def test_a_smaller_picture_that_is_not_shown_to_be_read_is_not_recommended():
    """All pruned arms lose to it, and it does not beat the question alone: nothing is to be recommended."""
    lost = {**shares(vlm_pruner=0.2, divprune=0.1), "resize@256": 0.31, "resize@64": 0.31, "random@64": 0.1}
    assert "use neither: every pruned arm does worse than the smaller picture, which is not" in match_of(lost).verdict
    match = match_of({**lost, "resize@256": 0.5, "resize@64": 0.5})
    assert "At 64 tokens, resize: every pruned arm does worse" in match.verdict
    assert match.of(ARMS[5], FLOOR).verdict == BETTER and match.of(match.duels[-1].arm, FLOOR).opponent.name == "blind"


def test_without_times_it_speaks_of_equal_tokens():
    match = match_of(shares(), timed=False)
    assert "at equal tokens, not timed" in match.verdict and "the picture resized to 8 x 8 tokens" in match.verdict
    assert match.of(ARMS[3], TOKENS).verdict == BETTER and match.of(ARMS[3], TIME) is None


@pytest.mark.parametrize("timed", [True, False])
def test_the_tables_fit_80_columns_and_show_only_what_was_measured(timed):
    names = ["dense", "blind", "resize", "vlm-pruner:token_batch=16", "vlm-pruner:token_batch=16:threshold=0.7"]
    arms = make_arms(names, [64], ModelFacts(576))
    match = match_of(
        {arm.key: 0.2 for arm in arms} | {"dense@576": 0.9, "resize@64": 0.5, "resize@256": 0.7}, timed, arms
    )
    settings = SimpleNamespace(clock=5 * timed, device="cpu", rules=Rules())
    interval = match.duels[0].interval
    cells = [Cell("b", arm, interval, {}, None, {}, interval if arm.method else None) for arm in arms]
    text = referee_table.text(SimpleNamespace(matches=[match], cells=cells, settings=settings))
    _, duels, costs, notes = text.split("\n\n")
    assert max(map(len, text.splitlines())) <= 80
    assert ("time" in duels.splitlines()[0]) == ("prefill" in costs) == ("ms" in notes.split()) == timed
    assert len(costs.splitlines()) == 1 + (len(arms) if timed else 2), "only arms with a figure have a row"
    assert all(costs.splitlines()[0].split()[0] and row.split()[-1] for row in costs.splitlines())
    assert len({row.split()[0] + row.split()[1] for row in duels.splitlines()[2:]}) == 2


def test_random_is_never_recommended():
    assert "prune with VLM-Pruner" in match_of({**shares(), "random@64": 0.89}).verdict


def test_the_split_is_of_questions_that_only_the_smaller_picture_loses():
    (split,) = match_of(shares()).splits
    assert (split.fails, split.holds) == (160, 200) and split.budget == "64"
    assert split.accuracy["vlm-pruner@64"].mean == pytest.approx(120 / 160)
    assert split.accuracy["random@64"].mean == 0 and 0 < split.accuracy["random@64"].high < 0.03  # not [0, 0]


def test_verdicts_are_corrected_for_the_number_of_duels():
    match = match_of(shares())
    assert all(duel.p_holm >= duel.interval.p for duel in match.duels)
    assert max(duel.p_holm / duel.interval.p for duel in match.duels) == pytest.approx(len(match.duels), abs=1)


def test_the_opponent_at_equal_time_is_the_largest_that_is_as_fast():
    sizes = clock.smaller_pictures(ModelFacts(576))
    assert [one.tokens for one in sizes] == [(2 * n) ** 2 for n in range(1, 13)]
    costs = {one.key: Cost(0.0, one.tokens / 576, 0.0) for one in sizes}
    costs |= {arm.key: Cost(0.1, 0.2, 0.0) for arm in ARMS}
    found = clock.rivals(ARMS, sizes, costs)
    assert set(found) == {"random@64", "vlm-pruner@64", "divprune@64"}
    assert {one.tokens for one in found.values()} == {144}  # 0.25 of the time; 196 takes 0.34
    slow = {**costs, "random@64": Cost(0.0, 0.0001, 0.0)}
    assert clock.rivals(ARMS, sizes, slow)["random@64"].tokens == 4


def test_times_are_medians_of_turns_and_the_first_does_not_count():
    calls = []

    class Answerer:
        def forget(self):
            pass

        def answer(self, batch, method, grid, exactly):
            calls.append((batch[0].question_id, exactly))
            slow = 100.0 if len(calls) <= 2 * len(ARMS) else 1.0
            reply = type("Reply", (), {"vision_seconds": 2.0 * slow, "seconds": slow * (3.0 + 0.5 * (exactly - 1))})
            return [reply]

    costs = clock.measure(Answerer(), ARMS, ASKED[:3])
    assert costs == {arm.key: Cost(2.0, 3.0, 0.5) for arm in ARMS} and len(calls) == 4 * 2 * len(ARMS)
    assert costs["dense@576"].answer(5) == 2 + 3 + 4 * 0.5 and costs["dense@576"].answer(1) == 5


def test_measured_times_are_read_again_by_a_resumed_run(tmp_path):
    costs = {"a@1": Cost(0.1, 0.2, 0.3)}
    clock._write(tmp_path / "times.json", {"n": 3}, costs)
    assert clock._read(tmp_path / "times.json", {"n": 3}, ["a@1"]) == costs
    assert clock._read(tmp_path / "times.json", {"n": 4}, ["a@1"]) is None
    assert clock._read(tmp_path / "times.json", {"n": 3}, ["a@1", "b@1"]) is None


def test_calibration_error_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    sure, right = rng.random(300), (rng.random(300) < 0.6).astype(float)
    sure[:3] = [0.0, 1.0, 0.1]
    wanted = 0.0
    for low in range(10):
        own = [i for i in range(300) if low == min(9, int(sure[i] * 10))]
        wanted += len(own) / 300 * abs(np.mean(right[own]) - np.mean(sure[own])) if own else 0.0
    made = PictureBootstrap([i // 3 for i in range(300)], ["a"] * 300, resamples=300)
    found = made.calibration_error(sure.tolist(), right.tolist())
    assert found.mean == pytest.approx(wanted) and found.low < found.mean < found.high and found.n == 300
    few = PictureBootstrap(range(40), ["a"] * 40).calibration_error(
        sure[:40].tolist(), (sure[:40] > 0.5).astype(float).tolist()
    )
    assert few.low < few.mean < few.high, "resamples alone lie above it"
    assert made.calibration_error([1.0] * 300, [1.0] * 300).mean == 0


@pytest.mark.parametrize("ends", [None, 2, [2, 7]])
def test_confidence_is_the_probability_up_to_the_end(ends):
    ids = torch.tensor([[3, 2, 0], [4, 5, 6], [7, 1, 1]])
    logits = [torch.randn(3, 9, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    counts, confidence = joint_probabilities(ids, logits, ends)
    assert counts == {None: [3, 3, 3], 2: [2, 3, 3]}.get(ends if not isinstance(ends, list) else 0, [2, 3, 1])
    for row, count in enumerate(counts):
        wanted = np.prod([float(logits[n][row].softmax(0)[ids[row, n]]) for n in range(count)])
        assert confidence[row] == pytest.approx(wanted, rel=1e-5)
