"""`vllm serve` with the plug-in and the real openai client: budgets per request, refusals, a flood, docs/serving.md."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.vllm import mini
from tests.vllm.engine import BLOCK

openai = pytest.importorskip("openai")
NAMES = ("dense", "192", "128", "64")
AT_ONCE = 8
SERVER = "localhost:8000"  # on the page
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serve")


@pytest.fixture(scope="module")
def expected(folder):
    """Texts of answers, by wish."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini.checkpoint(folder))
    found = mini.references(folder, NAMES, len(mini.questions()))
    return {name: tokenizer.batch_decode(found[name], skip_special_tokens=True) for name in NAMES}


@pytest.fixture(scope="module")
def port(folder, expected):
    start, _ = page_flags()
    with serving(folder, *start, "--block-size", BLOCK) as found:
        yield found


def page_flags() -> list[list[str]]:
    """The flags of each `vllm serve` in the page's blocks: the start, and a server with a default."""
    lines = re.findall(r"^vllm serve served/\S+ (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line) for line in lines]


@contextmanager
def serving(folder: Path, *flags: Any) -> Iterator[int]:
    """The port of a server on the embedded model."""
    port = free_port()
    command = [Path(sys.executable).parent / "vllm", "serve", mini.checkpoint(folder), "--served-model-name", "mini"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", 1024, "--max-num-seqs", 32]
    command += ["--host", "127.0.0.1", "--port", port, *flags]  # the last of a flag counts
    path = folder / f"server-{port}.log"
    with path.open("w") as log:
        server = subprocess.Popen(list(map(str, command)), stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for(port, server, path)
            yield port
        finally:
            server.terminate()
            server.wait(60)


def wait_for(port: int, server: Any, log: Path, seconds: int = 400) -> None:
    end = time.time() + seconds
    while time.time() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server stopped: {log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(f"no server after {seconds} s: {log.read_text()[-3000:]}")


def client(port: int) -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=600)


def content(one: mini.Question) -> list[dict[str, Any]]:
    buffer = io.BytesIO()
    one.picture.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": one.text}]
    return [{"role": "user", "content": parts}]


def complete(asker: Any, messages: Any, wish: Any = None, **more: Any) -> Any:
    if wish is not None:
        more["extra_body"] = {"mm_processor_kwargs": {"pruning": wish}}
    return asker.chat.completions.create(model="mini", messages=messages, temperature=0, max_tokens=mini.NEW, **more)


def said(reply: Any) -> str:
    return str(reply.choices[0].message.content).strip()


def metric(port: int, name: str) -> float:
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    return sum(float(value) for value in re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", page, re.MULTILINE))


def test_answers_and_counts_at_every_budget_eight_at_once(port, expected):
    asker, questions = client(port), mini.questions()
    cases = [(number, name) for number in range(len(questions)) for name in NAMES]

    def one(case: tuple[int, str]) -> tuple[bool, int]:
        number, name = case
        reply = complete(asker, content(questions[number]), mini.WISHES[name])
        return said(reply) == expected[name][number].strip(), reply.usage.prompt_tokens

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(pool.map(one, cases))
    right = Counter(name for (_, name), (same, _) in zip(cases, found, strict=True) if same)
    assert right == Counter({name: len(questions) for name in NAMES})
    length = {case: tokens for case, (_, tokens) in zip(cases, found, strict=True)}
    kept = {(name, 576 + tokens - length[number, "dense"]) for (number, name), tokens in length.items()}
    assert kept == {("dense", 576), ("192", 192), ("128", 128), ("64", 64)}


def test_identical_requests_hit_the_prefix_cache(port):
    asker, one = client(port), mini.questions()[2]
    complete(asker, content(one), {"keep_tokens": 100})
    before = metric(port, "prefix_cache_hits")
    complete(asker, content(one), {"keep_tokens": 100})
    assert metric(port, "prefix_cache_hits") - before == 114 // BLOCK * BLOCK
    before = metric(port, "prefix_cache_hits")
    complete(asker, content(one), {"keep_tokens": 101})
    assert metric(port, "prefix_cache_hits") - before == 0


BAD = [{"keep_tokens": 600}, {"keep_tokens": 0}, {"keep_tokens": 1e30}, {"keep_tokens": "x"}, "on", {"method": "fastv"}]
BAD += [{"keep_tokens": 64, "layer": 2}, {"keep_tokens": 64, "channels": 10**9}, 7, [], {"reduction_ratio": 2}]


@pytest.mark.parametrize("wish", BAD, ids=str)
def test_an_absurd_budget_is_the_clients_mistake(port, wish):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client(port), content(mini.questions()[0]), wish)
    assert caught.value.status_code == 400 and "pruning" in str(caught.value)


def test_other_keys_are_refused(port):
    with pytest.raises(openai.BadRequestError, match="do_rescale is not open to requests"):
        asked = {"mm_processor_kwargs": {"do_rescale": False}}
        client(port).chat.completions.create(model="mini", messages=content(mini.questions()[0]), extra_body=asked)


def test_text_alone_needs_no_picture(port):
    messages = [{"role": "user", "content": "What is this?"}]
    plain, wished = complete(client(port), messages), complete(client(port), messages, {"keep_tokens": 64})
    assert said(plain) == said(wished) and plain.usage.prompt_tokens == wished.usage.prompt_tokens


def is_right(port: int, expected: Any, number: int = 0, name: str = "64") -> bool:
    reply = complete(client(port), content(mini.questions()[number]), mini.WISHES[name])
    return said(reply) == expected[name][number].strip()


def test_a_broken_picture_harms_nobody(port, expected):
    messages = content(mini.questions()[0])
    messages[0]["content"][0]["image_url"]["url"] = "data:image/png;base64,AAAA"
    with pytest.raises(openai.APIStatusError) as caught:
        complete(client(port), messages, {"keep_tokens": 64})
    assert caught.value.status_code < 500 or "image" in str(caught.value).lower()
    assert is_right(port, expected)


def test_clients_that_hang_up_harm_nobody(port, expected):
    body = json.dumps(
        {
            "model": "mini",
            "messages": content(mini.questions()[3]),
            "max_tokens": 200,
            "ignore_eos": True,
            "mm_processor_kwargs": {"pruning": {"keep_tokens": 64}},
        }
    ).encode()
    lines = "POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}"])
    for wait in (0.0, 0.2, 0.6):
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(head.encode() + b"\r\n\r\n" + body)
            time.sleep(wait)
    assert all(is_right(port, expected, number, name) for number in range(2) for name in NAMES)


def test_a_flood_with_absurd_budgets_in_it(port, expected):
    """200 clients at once; every tenth asks for nonsense."""
    asker, count = client(port), len(mini.questions())

    def one(number: int) -> str:
        name, asked = NAMES[number % len(NAMES)], number % count
        wish = {"keep_tokens": -number} if number % 10 == 9 else mini.WISHES[name]
        try:
            reply = complete(asker, content(mini.questions()[asked]), wish)
        except openai.APIStatusError as error:
            return str(error.status_code)
        return "right" if said(reply) == expected[name][asked].strip() else "wrong"

    start = time.time()
    with ThreadPoolExecutor(200) as pool:
        found = Counter(pool.map(one, range(200)))
    print(f"flood: {dict(found)} in {time.time() - start:.1f} s")
    assert found == Counter({"right": 180, "400": 20})
    assert is_right(port, expected)


def test_what_the_page_shows_runs(port, folder):
    """The blocks of curl and Python in docs/serving.md, against this server."""
    picture = folder / "photo.png"
    mini.questions()[0].picture.save(picture)
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    shown = [(kind, code) for kind, code in blocks if SERVER in code]
    assert {kind for kind, _ in shown} == {"bash", "python"}
    for kind, code in shown:
        code = code.replace(SERVER, f"127.0.0.1:{port}").replace("photo.png", str(picture))
        command = ["bash", "-euo", "pipefail", "-c", code] if kind == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and '"error"' not in done.stdout, done.stdout + done.stderr


def test_the_flags_that_the_page_names_are_vllms():
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    known = {option for action in parser._actions for option in action.option_strings}
    text = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", text) if not span.startswith(("python ", "vlm-pruner "))]
    words = [word for span in spans for word in span.split()] + [word for flags in page_flags() for word in flags]
    named = {word for word in words if word.startswith("--")}
    assert len(named) > 5 and named <= known


def test_without_the_flag_only_the_servers_default_applies(folder, expected):
    _, default = page_flags()
    with serving(folder, *default) as port:
        one = mini.questions()[0]
        reply = complete(client(port), content(one))
        assert said(reply) == expected["128"][0].strip() and reply.usage.prompt_tokens == 142
        with pytest.raises(openai.BadRequestError, match="--trust-request-mm-kwargs"):
            complete(client(port), content(one), {"keep_tokens": 64})


def test_the_benchmark_measures_random_weights(tmp_path):
    """With a tiny model here; with --shapes llava-1.5-7b on a GPU."""
    script = Path(__file__).parents[2] / "benchmarks" / "serving.py"
    flags = ["--shapes", "tiny", "--requests", "4", "--clients", "2", "--budgets", "dense,64", "--minutes", "6"]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, timeout=500, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads(done.stdout.splitlines()[-1])["cells"]
    assert [(cell["pictures"], cell["budget"]) for cell in cells] == list(product(("new", "same"), ("dense", "64")))
