"""`vlm-pruner budget`: the bound that decides, the search, and the command on a tiny model."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.test_project_demo import answerer, checkpoint, data, loaded  # noqa: F401  (fixtures)
from vlm_pruner.cli import main
from vlm_pruner.experiments.arms import make_arms
from vlm_pruner.experiments.questions import Question, read_questions
from vlm_pruner.experiments.retention import Judge, Retention, upper_bound
from vlm_pruner.experiments.search import CONFIRM, SEARCH, Goal, Search, Trial, grid, halves


def questions(pictures: int, each: int = 1) -> list[Question]:
    return [
        Question(p * each + k, Path(f"{p}.png"), "?", f"kind {k}", "yes") for p in range(pictures) for k in range(each)
    ]


@pytest.mark.parametrize("each, together", [(1, False), (4, False), (4, True)], ids=["single", "apart", "together"])
def test_a_method_that_keeps_just_too_little_seldom_passes(each: int, together: bool) -> None:
    """True share: 0.97 of 0.97 to keep, losses single or by picture: at most 5 % + 3 standard errors may pass."""
    rng, passed, trials, pictures = np.random.default_rng(0), 0, 120, 800 // each
    asked = questions(pictures, each)
    for _ in range(trials):
        dense = (rng.random(len(asked)) < 0.8).astype(float)
        lost = rng.random(pictures).repeat(each) if together else rng.random(len(asked))
        own = dense * (lost >= 0.03)
        judge = Judge(asked, dense.tolist(), 0.97, resamples=100)
        passed += judge.judge(own.tolist()).holds
    assert passed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_a_method_that_keeps_enough_passes_once_there_are_enough_questions() -> None:
    for n, holds in ((100, False), (2000, True)):
        dense = [float(i % 5 != 0) for i in range(n)]
        own = [float(i % 5 != 0 and i % 100 != 1) for i in range(n)]  # one of 80 lost
        judged = {share: Judge(questions(n), dense, share, resamples=200).judge(own) for share in (0.97, 0.99)}
        assert judged[0.97].holds == holds and not judged[0.99].holds
        assert judged[0.97].losses == n // 100 and judged[0.97].accuracy == pytest.approx(0.79)


def test_few_equal_answers_show_nothing() -> None:
    """The plain bootstrap sees no loss and would be certain after ten questions."""
    needed = Judge(questions(10), [1.0] * 10, 0.99).questions_needed
    assert needed == 299  # 0.99^299 < 5 %
    for n in (10, needed - 1, needed):
        assert Judge(questions(n), [1.0] * n, 0.99, resamples=50).best_possible().holds == (n == needed)


def test_losses_by_picture_count_as_fewer() -> None:
    asked = questions(50, each=4)
    judge = Judge(asked, [1.0] * 200, 0.9, resamples=200)
    apart = [float(q.question_id % 33 != 0) for q in asked]  # seven single losses
    together = [float(q.image.name not in ("3.png", "30.png")) for q in asked]  # eight losses of two pictures
    assert judge.clustering(apart) == pytest.approx(1.0, abs=0.1) and judge.clustering(together) > 3.5
    assert judge.judge(together).bound < judge.judge(apart).bound
    assert judge.judge(apart, clustering=4.0).bound < judge.judge(apart).bound


def test_the_bound_of_a_share_that_was_not_seen_is_exact() -> None:
    assert (1 - upper_bound(0.0, 40, 0.95)) ** 40 == pytest.approx(0.05)
    assert 0.1 < upper_bound(0.1, 1e6, 0.95) < 0.101


@pytest.mark.parametrize("visual", [1, 2, 16, 576, 2880])
def test_the_grid_goes_from_one_token_to_all(visual: int) -> None:
    sizes = grid(visual)
    assert sizes[0] == 1 and sizes[-1] == visual and sizes == sorted(set(sizes))
    assert all(b <= max(a + 1, 1.5 * a) for a, b in itertools.pairwise(sizes))


def test_halves_share_no_picture() -> None:
    asked = questions(9, each=3)
    first, second = halves(asked, seed=3)
    assert sorted(q.question_id for q in [*first, *second]) == [q.question_id for q in asked]
    assert not {q.image for q in first} & {q.image for q in second} and len(first) == 12
    assert halves(asked, seed=3) == (first, second) != halves(asked, seed=4)
    with pytest.raises(ValueError, match="one picture"):
        halves(questions(1, each=5), seed=0)


@pytest.mark.parametrize("least", [0, 1, 7, 13, 16])
@pytest.mark.parametrize("confirmed", [0, 1, 2])
def test_the_search_finds_the_smallest_and_confirms_downwards(least: int, confirmed: int) -> None:
    """least: the smallest place that holds. confirmed: how many of the tests on the second half hold."""
    last = 16
    search, sizes = Search("random", last), list(range(1, last + 2))

    def trial(half: str, place: int, holds: bool) -> Trial:
        return Trial(half, make_arms(["random"], [sizes[place]], 17)[0], Retention(9, 1, 1, holds - 0.5, 0))

    while (place := search.next()) is not None:
        search.add(place, trial(SEARCH, place, place >= least))
    assert search.high == least and len(search.trials) <= 5
    search.confirm(last)
    tested = []
    while (place := search.next()) is not None:
        tested.append(place)
        search.add(place, trial(CONFIRM, place, len(tested) <= confirmed or (confirmed == 2 and len(tested) <= 3)))
    planned = [] if least == last else list(range(min(least + 2, last - 1), least - 1, -1))
    held = planned[: confirmed if confirmed < 2 else 3]
    assert tested == planned[: len(held) + 1]
    assert (search.confirmed.arm.tokens if search.confirmed else None) == (sizes[held[-1]] if held else None)


def test_the_command(checkpoint, data, tmp_path, loaded, answerer, capsys) -> None:  # noqa: F811
    """On questions to which the dense model's own replies are the right answers."""
    path = data / "mini" / "questions.jsonl"
    replies = {q.question_id: answerer.answer([q], None)[0].text for q in read_questions(path)}
    folder = tmp_path / "own"
    (folder / "images").parent.mkdir()
    (folder / "images").symlink_to(path.parent / "images")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    made = [{**line, "kind": "any", "answer": replies[line["question_id"]]} for line in lines]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, made)))
    out = tmp_path / "out"
    command = ["budget", "--model", str(checkpoint), "--questions-file", str(folder / "questions.jsonl")]
    command += ["--out", str(out), "--resamples", "50", "--methods", "random,vlm-pruner:token_batch=16,cdpruner"]
    assert main([*command, "--keep-share", "0.3", "--confidence", "0.8"]) == 0
    said = capsys.readouterr().out
    assert all(len(line) <= 80 for line in said.splitlines()) and "CDPruner" in said
    result = json.loads((out / "budget.json").read_text())
    assert result["n"] == {"search": 6, "held_out": 6, "pictures": 12}
    for method in result["methods"]:
        held = [trial for trial in method["trials"] if trial["half"] == "held_out" and trial["holds"]]
        assert method["keep_tokens"] == (held[-1]["tokens"] if held else None)
        if method["name"] == "cdpruner":
            assert "not run" in method["remark"] and not method["trials"]
    assert result["methods"][0]["trials"] and sorted(p.name for p in out.iterdir()) == [
        "answers.jsonl", "budget.json", "table.txt",
    ]  # fmt: skip
    assert main([*command, "--keep-share", "0.99"]) == 2
    assert "6 questions (search) cannot show that 99 %" in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, 1.0, 99.0])
def test_a_share_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match="--keep-share"):
        Goal(value)
