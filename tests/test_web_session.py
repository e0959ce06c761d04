"""The live page's work without the page: turns, visitors who leave, and their messages. No model is loaded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

import vlm_pruner as vp
from vlm_pruner.asking import Answer
from vlm_pruner.web.session import MAX_QUESTION, Job, Pane, Session

PICTURE = Image.new("RGB", (8, 8))
DENSE, PRUNED = Job("dense"), Job("pruned", vp.CentrifugalPruner(keep_tokens=8))


class SlowChat:
    """Says "word" until it is told to stop, at most `max_new_tokens` times; notes who is inside at the same time."""

    def __init__(self, seconds_per_token: float = 0.002) -> None:
        self.seconds_per_token = seconds_per_token
        self.inside = self.most_inside = self.tokens = 0
        self.begun = threading.Event()
        self.fails: Exception | None = None

    def ask(self, picture: Any, question: str, method: Any = None, *, max_new_tokens: int,
            on_text: Callable[[str], None] = lambda text: None,
            stop: Callable[[], bool] = lambda: False) -> Answer:  # fmt: skip
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            if self.fails is not None:
                raise self.fails
            count = 0
            while count < max_new_tokens and not stop():
                time.sleep(self.seconds_per_token)
                count += 1
                self.tokens += 1
                self.begun.set()
                on_text(" ".join(["word"] * count))
            done = count == max_new_tokens
            return Answer(" ".join(["word"] * count), not done, count, 0.1, 0.2, 100, 5, 16, 8 if method else 16)
        finally:
            self.inside -= 1


def session(chat: SlowChat, tokens: int = 5, patience: float = 10.0) -> Session:
    return Session(chat, max_new_tokens=tokens, patience=patience)  # type: ignore[arg-type]


def last(snapshots: Any) -> tuple[Pane, ...]:
    return list(snapshots)[-1]


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def test_both_answers_come_in_turn_and_stream():
    snapshots = list(session(SlowChat(0.03), tokens=8).run("me", PICTURE, "what?", [DENSE, PRUNED]))
    states = [(one.state, two.state) for one, two in snapshots]
    assert ("running", "waiting") in states and ("done", "running") in states
    assert states[-1] == ("done", "done")
    assert len({one.text for one, _ in snapshots}) > 2  # grew while it was written
    assert snapshots[-1][1].answer is not None and snapshots[-1][1].answer.kept == 8


def test_the_model_answers_one_visitor_at_a_time():
    chat = SlowChat()
    served = session(chat)
    results: dict[int, tuple[Pane, ...]] = {}

    def visit(number: int) -> None:
        results[number] = last(served.run(f"visitor {number}", PICTURE, "what?", [DENSE, PRUNED]))

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(6)]
    for thread in visitors:
        thread.start()
    for thread in visitors:
        thread.join(30)
    assert chat.most_inside == 1
    assert len(results) == 6 and all(pane.state == "done" for panes in results.values() for pane in panes)


def test_a_visitor_who_closes_the_page_ends_the_answer_and_frees_the_model():
    chat = SlowChat()
    served = session(chat, tokens=1_000_000)
    snapshots = served.run("gone", PICTURE, "what?", [DENSE, PRUNED])
    next(snapshots)
    chat.begun.wait(5)
    snapshots.close()
    until(lambda: not served._lock.locked())
    chat_after = session(chat)
    assert last(chat_after.run("next", PICTURE, "what?", [DENSE]))[0].state == "done"


def test_an_answer_that_nobody_looks_at_ends_by_itself():
    chat = SlowChat()
    served = session(chat, tokens=1_000_000, patience=0.2)
    snapshots = served.run("asleep", PICTURE, "what?", [DENSE])
    next(snapshots)
    until(lambda: not served._lock.locked() and chat.tokens > 0)


def test_stop_keeps_what_was_said():
    chat = SlowChat()
    served = session(chat, tokens=1_000_000)
    snapshots = served.run("me", PICTURE, "what?", [DENSE, PRUNED])
    next(snapshots)
    chat.begun.wait(5)
    served.stop("me")
    one, two = last(snapshots)
    assert one.state == two.state == "stopped"
    assert one.text.startswith("word") and one.answer is not None and one.answer.stopped


def test_who_waits_in_line_can_leave_it():
    chat = SlowChat()
    served = session(chat, tokens=1_000_000)
    first, second = (served.run(name, PICTURE, "what?", [DENSE]) for name in ("first", "second"))
    next(first)
    chat.begun.wait(5)
    assert next(second)[0].state == "waiting"
    served.stop("second")
    assert last(second)[0].state == "stopped"
    first.close()
    until(lambda: not served._lock.locked())


def test_a_new_question_replaces_the_visitors_old_one():
    chat = SlowChat()
    served = session(chat, tokens=1_000_000)
    old = served.run("me", PICTURE, "what?", [DENSE])
    next(old)
    chat.begun.wait(5)
    served.max_new_tokens = 3
    assert last(served.run("me", PICTURE, "and now?", [DENSE]))[0].state == "done"
    assert last(old)[0].state == "stopped"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (vp.errors.PruningError("layer=9, but the last is 5; use less"), "layer=9, but the last is 5; use less"),
        (TypeError("secret detail"), "TypeError"),
    ],
)
def test_what_fails_is_told_and_nothing_is_stuck(error, told):
    chat = SlowChat()
    chat.fails = error
    served = session(chat)
    pane = last(served.run("me", PICTURE, "what?", [DENSE]))[0]
    assert pane.state == "failed" and told in pane.error and "secret" not in pane.error
    chat.fails = None
    assert last(served.run("me", PICTURE, "what?", [DENSE]))[0].state == "done"


@pytest.mark.parametrize(("question", "reason"), [("  ", "no question"), ("x" * (MAX_QUESTION + 1), "shorten it")])
def test_questions_are_checked_before_the_model_is_asked(question, reason):
    chat = SlowChat()
    with pytest.raises(ValueError, match=reason):
        next(session(chat).run("me", PICTURE, question, [DENSE]))
    assert chat.tokens == 0


def test_nothing_is_kept_of_visitors_who_are_done():
    served = session(SlowChat(0))
    for number in range(20):
        last(served.run(str(number), PICTURE, "what?", [DENSE]))
    assert served._boards == {}
    until(lambda: threading.active_count() < 10)
