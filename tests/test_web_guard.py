"""What the demo's server answers at all, tested as a web server would call it, without one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from vlm_pruner.web.guard import LOOPBACK, guarded

LIMIT = 5_000


async def page(scope: Any, receive: Any, send: Any) -> None:
    """Answers with how many bytes of body it was given, or -1 when the visitor was gone."""
    got, more = 0, True
    while more:
        part = await receive()
        if part["type"] == "http.disconnect":
            got = -1
            break
        got, more = got + len(part.get("body", b"")), part.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(got).encode()})


def call(path: str, method: str = "GET", body: bytes = b"", host: str = "127.0.0.1:7860",
         hosts: tuple[str, ...] = LOOPBACK, length: int | None = None,
         pieces: int = 1) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    """(status, headers, body) of one request."""
    headers = [(b"host", host.encode())]
    if body or length is not None:
        headers.append((b"content-length", str(len(body) if length is None else length).encode()))
    size = -(-len(body) // pieces) or 1
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    async def send(part: Any) -> None:
        sent.append(part)

    scope = {"type": "http", "method": method, "path": path, "headers": headers}
    asyncio.run(guarded(page, max_upload_bytes=LIMIT, hosts=hosts)(scope, receive, send))
    shown = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], shown, sent[1]["body"]


@pytest.mark.parametrize("path", ["/", "/config", "/theme.css", "/assets/index-1.js", "/gradio_api/queue/data"])
def test_the_pages_own_routes_are_served_with_a_policy_against_other_addresses(path):
    status, headers, _ = call(path)
    assert status == 200
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert "http" not in headers["content-security-policy"]


@pytest.mark.parametrize(
    "path",
    ["/docs", "/openapi.json", "/gradio_api/proxy=https://example.com/", "/gradio_api/file=https://example.com/a.png",
     "/gradio_api/file=http%3A//10.0.0.1/", "/monitoring", "/gradio_api/component_server", "/.git/config", "/login"],
)  # fmt: skip
def test_everything_else_is_not_found(path):
    assert call(path)[0] == 404


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:7860", 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("evil.example:localhost", 400),
        ("", 400),
    ],
)
def test_on_loopback_only_loopback_names_are_answered_to(host, status):
    assert call("/", host=host)[0] == status


def test_on_the_network_any_name_is_answered_to():
    assert call("/", host="demo.example", hosts=("*",))[0] == 200


def test_a_large_upload_is_refused_by_its_announced_length():
    status, _, body = call("/gradio_api/upload", "POST", b"x", length=2_000_000)
    assert status == 413 and b"larger than 0.005 MB" in body


@pytest.mark.parametrize("length", [-1, 10])
def test_an_upload_cannot_lie_about_its_length(length):
    status, _, body = call("/gradio_api/upload", "POST", b"x" * 1_500_000, length=length, pieces=30)
    assert status == 413 or body == b"-1"


def test_an_upload_within_the_limit_arrives_whole():
    assert call("/gradio_api/upload", "POST", b"x" * LIMIT, pieces=4)[2] == str(LIMIT).encode()


def test_a_question_arrives_whole_and_a_flood_does_not():
    question = json.dumps({"data": ["what?", {"path": "/tmp/a.png"}]}).encode()
    assert call("/gradio_api/queue/join", "POST", question, pieces=3)[2] == str(len(question)).encode()
    assert call("/gradio_api/queue/join", "POST", b"x" * 300_000, length=10)[0] == 413


@pytest.mark.parametrize(
    "address", ["http://10.0.0.1/a.png", "HTTPS://example.com", "ftp://a", "//example.com/a", "data:,a"]
)
def test_files_are_not_fetched_from_addresses(address):
    body = json.dumps({"data": [{"path": address, "meta": {"_type": "gradio.FileData"}}]}).encode()
    assert call("/gradio_api/queue/join", "POST", body)[0] == 403
    escaped = body.replace(b"http", rb"\u0068ttp")
    assert call("/gradio_api/queue/join", "POST", escaped)[0] == 403
