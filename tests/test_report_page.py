"""The report page: its data, and the page in a browser with 1,000 items."""

from __future__ import annotations

import base64
import json
import random
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import browser
from vlm_pruner.cli import main
from vlm_pruner.report.html_data import pack, read_results

SIDE = 24
EVIL = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">"


def write_results(folder: Path, items: int, pictures: int, size: tuple[int, int] = (336, 336)) -> Path:
    """What `vlm-pruner compare` writes, with random answers; three settings."""
    draw = random.Random(0)
    (folder / "images").mkdir(parents=True)
    for number in range(pictures):
        noise = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(noise).resize(size).save(folder / "images" / f"{number}.png", compress_level=1)
    arms = [_arm("dense@576", "dense", None, 576)]
    arms += [_arm(f"{name}@64", name, {"keep_tokens": 64}, 64) for name in ("random", "vlm-pruner")]
    asked = [
        {"benchmark": "mini", "question_id": i, "image": str(folder / "images" / f"{i % pictures}.png"),
         "text": f"What is number {i}?" if i else EVIL, "kind": ("existence", "reading")[i % 2], "answer": "yes"}
        for i in range(items)
    ]  # fmt: skip
    lines = [{"seed": 0}]
    for arm in arms:
        for item in asked:
            text = "yes" if arm["name"] == "dense" else draw.choice(["yes", "no"])
            kept = None if arm["settings"] is None else draw.sample(range(SIDE * SIDE), 64)
            shared = {"benchmark": "mini", "question_id": item["question_id"], "kind": item["kind"], "expected": "yes"}
            lines.append({"arm": arm["key"], **shared, "text": text, "correct": text == "yes", "kept": kept})
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    kinds = {kind: {**interval, "n": items // 2} for kind in ("existence", "reading")}
    cells = [
        {"benchmark": "mini", "arm": arm["key"], "n": items, "accuracy": interval, "kinds": kinds, "loyalty": interval,
         "against": {} if arm["settings"] is None else {"dense": {**interval, "verdict": "worse"}}}
        for arm in arms
    ]  # fmt: skip
    duel = {"arm": "vlm-pruner@64", "kind": "blind", "opponent": "random@64", **interval, "verdict": "better"}
    result = {
        "prune_or_resize": [{"benchmark": "mini", "verdict": "Prune.", "duels": [duel], "costs": {}}],
        "command": "vlm-pruner compare", "format": 1, "date": "2026-11-23T10:00:00+00:00", "config": {"seed": 0},
        "environment": {"versions": {"torch": "2.13.0"}}, "statistics": {"level": 0.95}, "journal": "answers.jsonl",
        "model": {"path": "playground/mini/checkpoint", "grid": [SIDE, SIDE]}, "items": asked, "arms": arms,
        "benchmarks": [{"name": "mini", "n": items, "pictures": pictures, "kinds": {"existence": 1, "reading": 1}}],
        "cells": cells, "not_run": [{"name": "cdpruner", "label": "CDPruner", "budget": None, "reason": "needs CLIP"}],
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(result))
    return folder


def _arm(key: str, name: str, settings: dict[str, Any] | None, tokens: int) -> dict[str, Any]:
    costs = {"average_tokens": tokens, "prefill_flops": 4e9, "flops_share": 0.4, "kv_bytes": 4e6, "kv_share": 0.4}
    budget = None if settings is None else str(tokens)
    return {"key": key, "name": name, "label": name, "settings": settings, "tokens": tokens, "budget": budget,
            "accounting": costs}  # fmt: skip


def test_kept_tokens_survive_the_packing():
    packed = pack([575, 0, 300])
    assert packed is not None
    assert np.frombuffer(base64.b64decode(packed), "<u2").tolist() == [575, 0, 300]
    assert pack(None) is None


def test_each_picture_is_there_once_and_padded_as_the_model_saw_it(tmp_path):
    run = read_results([write_results(tmp_path / "run", 6, 2, size=(400, 200))])["runs"][0]
    assert len(run["pictures"]) == 2 and [item["p"] for item in run["items"]] == [0, 1, 0, 1, 0, 1]
    assert run["grid"] == [SIDE, SIDE]
    import io

    thumbnail = Image.open(io.BytesIO(base64.b64decode(run["pictures"][0].partition(",")[2])))
    assert thumbnail.size == (224, 224)
    top = np.asarray(thumbnail)[10].astype(int)
    assert np.ptp(top, axis=0).max() < 12  # the bar above a wide picture has one colour


def test_a_picture_that_is_gone_is_no_error(tmp_path, capsys):
    folder = write_results(tmp_path / "run", 4, 2)
    (folder / "images" / "1.png").unlink()
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 0
    assert "1 of 2 pictures are not where the results say" in capsys.readouterr().err


def test_scores_and_timings_are_shown_beside(tmp_path):
    score = tmp_path / "pope.json"
    score.write_text(json.dumps({"metrics": {"accuracy": 0.5, "f1": 0.25}, "n": 8}))
    bench = tmp_path / "bench.json"
    figures = {"prefill": {"median": 0.25, "n": 3}}
    arm = {"label": "VLM-Pruner", "tokens": 64, "figures": figures}
    bench.write_text(json.dumps({"command": "vlm-pruner bench", "cases": [{"batch": 1, "arms": [arm]}]}))
    scores, timings = read_results([score, bench])["others"]
    assert scores["numbers"]["metrics.f1"] == 0.25
    assert timings["tables"][0]["rows"] == [["VLM-Pruner", 64, 0.25]]


@pytest.mark.parametrize(
    ("text", "told"), [("{", "is not JSON"), ("[]", "holds a JSON list"), (None, "does not exist")]
)
def test_files_that_are_no_results_are_named(tmp_path, capsys, text, told):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    assert main(["report", str(path), "-o", str(tmp_path / "r.html")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "r.html").exists()


def test_a_comparison_without_its_answers_says_which_file_is_missing(tmp_path, capsys):
    folder = write_results(tmp_path / "run", 2, 1)
    (folder / "answers.jsonl").unlink()
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 2
    assert f"{folder / 'answers.jsonl'} does not exist: a comparison is shown with" in capsys.readouterr().err


def test_half_a_result_is_told(tmp_path, capsys):
    folder = write_results(tmp_path / "run", 2, 1)
    content = json.loads((folder / "results.json").read_text())
    del content["items"]
    (folder / "results.json").write_text(json.dumps(content))
    assert main(["report", str(folder), "-o", str(tmp_path / "r.html")]) == 2
    assert "lacks 'items'" in capsys.readouterr().err


class Tags(HTMLParser):
    """Checks that elements close in order, and collects identifiers and references."""

    VOID = ("meta", "input", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_well_formed_file(tmp_path):
    main(["report", str(write_results(tmp_path / "run", 4, 2)), "-o", str(tmp_path / "r.html")])
    page = (tmp_path / "r.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert len(tags.ids) == len(set(tags.ids))
    assert tags.links == ["#answers"]  # nothing else is linked or loaded
    assert page.count("</script>") == 2


def test_a_thousand_items_open_in_a_browser_within_two_seconds_and_can_be_filtered(tmp_path):
    browser.require()
    started = time.perf_counter()
    main(["report", str(write_results(tmp_path / "run", 1000, 250)), "-o", str(tmp_path / "r.html")])
    made = time.perf_counter() - started
    megabytes = (tmp_path / "r.html").stat().st_size / 1e6
    with browser.open_browser(tmp_path / "profile") as page:
        page.get((tmp_path / "r.html").as_uri())
        assert page.execute_script("return document.documentElement.dataset.ready") == "yes"
        loaded = page.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd") / 1000
        print(f"\n{megabytes:.1f} MB, written with its inputs in {made:.1f} s, opened in {loaded:.2f} s")
        assert loaded < 2 or _slow_machine(page)

        def count() -> int:
            return int(page.find_element("id", "count").text.split()[0])

        def choose(name: str, value: str) -> None:
            page.execute_script(
                "const e = document.getElementById(arguments[0]); e.value = arguments[1];"
                "e.dispatchEvent(new Event('change', {bubbles: true}))", name, value,
            )  # fmt: skip

        assert page.find_element("id", "f-method").get_attribute("value") == "vlm-pruner"  # not the file's first
        assert count() == 1000 and len(page.find_elements("css selector", ".card")) == 24
        choose("f-show", "lost")
        lost = count()
        choose("f-show", "won")
        assert count() == 0 < lost < 1000  # the dense model is never wrong in this file
        choose("f-show", "all")
        choose("f-kind", "reading")
        assert count() == 500
        choose("f-method", "random")
        assert "random" in page.find_element("id", "count").text
        deadline = time.monotonic() + 20
        while not page.execute_script("return document.querySelector('canvas[data-painted=done]') !== null"):
            assert time.monotonic() < deadline, "no picture was painted"
            time.sleep(0.05)
        page.find_element("id", "more").click()
        assert len(page.find_elements("css selector", ".card")) == 48
        titles = [cell.text for cell in page.find_elements("css selector", "#duel-tables th[scope=col]")]
        assert titles == ["method", "against", "opponent", "difference in points", "verdict"], "nothing was timed"
        assert page.title != "broken"  # a question with HTML in it is text
        assert browser.foreign_requests(page) == [] and browser.console_errors(page) == []
        browser.resize(page, 390, 844)
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390


def _slow_machine(page: Any) -> bool:
    """Whether a fixed piece of work takes far longer than on an idle processor: then load times mean nothing."""
    work = (
        "const t = performance.now(); let s = 0; for (let i = 0; i < 1e8; i++) s += i % 7; return performance.now() - t"
    )
    return bool(page.execute_script(work) > 700)
