"""The live page as a visitor sees it, and what its server gives away. One server serves all tests."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import browser
from vlm_pruner.experiments.mini import CHECKPOINT
from vlm_pruner.provenance import ROOT
from vlm_pruner.web.server import bind

PATIENCE = 120  # seconds: CI machines are slow, and nothing here measures time


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two examples."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "mini" / "images").mkdir(parents=True)
    lines = []
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (336, 336), colour).save(folder / "mini" / "images" / f"{number}.png")
        lines.append({"question_id": number, "image": f"{number}.png", "kind": "existence", "answer": "no",
                      "text": f"Is there a {colour} star in the image?\nAnswer in a word."})  # fmt: skip
    (folder / "mini" / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def address(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    browser.require("gradio")
    if not (CHECKPOINT / "config.json").is_file():
        pytest.skip("the embedded model is not here")
    log = tmp_path_factory.mktemp("log") / "server.txt"
    words = ["demo", "--port", "0", "--data", str(data), "--max-upload-mb", "1", "--max-new-tokens", "8"]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "vlm_pruner.cli", *words], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        yield _address(server, log)
    finally:
        server.terminate()
        server.wait(30)
    assert "Traceback" not in log.read_text()


def _address(server: subprocess.Popen[bytes], log: Path) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        if found := re.search(r"is at (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser.open_browser(tmp_path_factory.mktemp("profile")) as driver:
        driver.get(address)
        wait(driver, lambda: driver.find_elements("id", "vp-ask"))
        yield driver


def wait(driver: Any, condition: Any) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, PATIENCE).until(lambda _: condition())


def test_a_question_gets_two_answers_and_an_overlay_with_a_slider(page):
    page.find_element("id", "vp-ask").click()
    wait(page, lambda: len(page.find_elements("css selector", ".vp-pane[data-state=done]")) == 2)
    dense, pruned = page.find_elements("css selector", ".vp-pane")
    assert "576 of 576" in dense.text and "64 of 576" in pruned.text
    for pane in (dense, pruned):
        assert re.search(r"\d+ ms", pane.text) and re.search(r"\d\.\d\d MB", pane.text)
    sentence = page.find_element("css selector", "#vp-answers .vp-sum").text
    assert re.fullmatch(r"(Same|Different) answer, first token \d+\.\d times as (fast|slow), KV cache -65 %", sentence)
    wait(page, lambda: len(page.find_elements("css selector", "#vp-overlay g.kept")) == 64)
    slider = page.find_element("css selector", "#vp-overlay input[type=range]")
    page.execute_script("arguments[0].value = 10; arguments[0].dispatchEvent(new Event('input'))", slider)
    visible = "return [...document.querySelectorAll('#vp-overlay g.kept')].filter(g => g.style.display !== 'none')"
    assert sorted(page.execute_script(f"{visible}.map(g => +g.dataset.order)")) == list(range(1, 11))
    assert "10 of 64" in page.find_element("css selector", "#vp-overlay output").text


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1440, 700)])
def test_the_answers_come_into_view_when_a_question_is_asked(page, width, height):
    """On a phone they are below the button, on a low screen that was scrolled to it above."""
    browser.resize(page, width, height)
    edge = "end" if width < 700 else "start"
    page.execute_script("document.getElementById('vp-ask').scrollIntoView({block: arguments[0]})", edge)
    look = (  # a click is ignored while the last question is answered, so there may be several
        "document.getElementById('vp-ask').click();"
        "const box = document.querySelector('#vp-answers .vp-panes').getBoundingClientRect();"
        "return box.top >= 0 && box.bottom <= innerHeight"
    )
    assert not page.execute_script(look.partition(";")[2])
    wait(page, lambda: page.execute_script(look))


def test_an_example_brings_its_question(page):
    page.find_elements("css selector", "#vp-examples button")[1].click()
    box = page.find_element("css selector", "#vp-question textarea")
    wait(page, lambda: "blue star" in box.get_attribute("value"))


def test_a_broken_file_is_told_and_a_good_one_after_it_is_taken(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 100)
    upload(page, tmp_path / "broken.png")
    wait(page, lambda: "broken.png is not a picture" in page.find_element("id", "vp-problem").text)
    Image.new("RGBA", (60, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    upload(page, tmp_path / "clear.png")
    wait(page, lambda: "clear.png; 60 × 30; transparent" in page.find_element("id", "vp-picture").text)
    assert page.find_elements("css selector", "#vp-problem .vp-error") == []


def upload(page: Any, path: Path) -> None:
    found = wait(page, lambda: page.find_elements("css selector", "#vp-file input[type=file]"))
    found[0].send_keys(str(path))


def test_nothing_that_a_visitor_types_becomes_part_of_the_page(page):
    typed = "<img src=x onerror=\"document.title='broken'\"> ${document.title='broken'} {{7*7}}"
    box = page.find_element("css selector", "#vp-question textarea")
    box.clear()
    box.send_keys(typed)
    page.find_elements("css selector", "button.label-wrap")[-1].click()  # what repeats it is folded away at first
    page.find_element("id", "vp-ask").click()
    wait(page, lambda: "${document" in page.find_element("id", "vp-lines").get_attribute("textContent"))
    assert page.title != "broken" and "{{7*7}}" in page.find_element("id", "vp-lines").get_attribute("textContent")


def test_the_browser_asked_no_other_machine_and_had_nothing_to_complain_about(page):
    assert browser.foreign_requests(page) == []
    assert browser.console_errors(page) == []
    browser.resize(page, 390, 844)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/file=/etc/passwd", "/gradio_api/file=../../../../etc/passwd", "/gradio_api/file=%2Fetc%2Fpasswd",
     f"/gradio_api/file={ROOT}/pyproject.toml", "/gradio_api/file=pyproject.toml", "/static/../../../../etc/passwd",
     "/assets/..%2f..%2f..%2f..%2fetc/passwd", "/file=/etc/passwd", "/docs", "/gradio_api/proxy=http://127.0.0.1:1/"],
)  # fmt: skip
def test_no_file_of_the_server_can_be_read(address, path):
    connection = socket.create_connection(address.removeprefix("http://").split(":"))  # urllib would tidy the path up
    with connection:
        host = address.removeprefix("http://")
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    status = int(answer.split(b" ", 2)[1])
    assert 400 <= status < 500
    assert b"root:" not in answer and b"setuptools" not in answer


def test_a_file_above_the_limit_is_refused(address):
    request = urllib.request.Request(f"{address}/gradio_api/upload", data=b"x" * 3_000_000, method="POST")
    with pytest.raises(OSError) as refused:  # the server may hang up before all is sent
        urllib.request.urlopen(request)
    if isinstance(refused.value, urllib.error.HTTPError):
        assert refused.value.code == 413


def test_the_server_listens_on_loopback_alone(address):
    port = int(address.rpartition(":")[2])
    own = socket.gethostbyname(socket.gethostname())
    if own.startswith("127."):
        pytest.skip("this machine has no other address")
    with pytest.raises(OSError):
        socket.create_connection((own, port), timeout=2)


def test_a_taken_port_is_passed_over_with_a_word(capsys):
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with bind("127.0.0.1", port) as other:
            assert other.getsockname()[1] > port
    assert f"port {port} is taken, using" in capsys.readouterr().err
