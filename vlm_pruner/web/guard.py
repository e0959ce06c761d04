"""What the server answers at all: the page's own routes, bodies of bounded size, and no address but the page's.

The web framework can also fetch addresses, serve other programs and show its own tools. None of that is needed here, so
all but the routes below is not found, and the browser is told to load nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ROUTES = re.compile(
    r"/(config|theme\.css|favicon\.(ico|png)|manifest\.json|robots\.txt|pwa_icon(/\w+)?"
    r"|(assets|static|svelte)/.+"
    r"|gradio_api/(info|upload|upload_progress|queue/(join|data|status)|reset|cancel|startup-events|app_id"
    r"|heartbeat/\w+|file=.+|call/.+))?"
)
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:|//", re.IGNORECASE)  # one letter and a colon is a drive
_SLACK = 1_000_000  # bytes of a request around the uploaded file
_JSON_LIMIT = 256_000
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


class Guard:
    """ASGI middleware. hosts: names that a browser may call this server by; None: any (it listens to the network)."""

    def __init__(self, app: App, *, max_upload_bytes: int, hosts: frozenset[str] | None) -> None:
        self.app = app
        self.max_upload_bytes = max_upload_bytes
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        problem = self._problem(scope)
        if problem is not None:
            await _refuse(send, *problem)
            return
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self.max_upload_bytes + _SLACK if is_upload else _JSON_LIMIT
        body = None if is_upload or scope["method"] != "POST" else await _read(receive, limit)
        if body is not None:
            if len(body) > limit:
                await _refuse(send, 413, f"the request is larger than {limit} bytes")
                return
            if _names_address(body):
                await _refuse(send, 403, "files are uploaded, not fetched from an address")
                return
            receive = _replay(body, receive)
        elif is_upload:
            receive = _counted(receive, limit)
        await self.app(scope, receive, _with_policy(send))

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        path = unquote(scope["path"])
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
        if self.hosts is not None and host not in self.hosts:
            return 400, "this server answers to its loopback address only"
        if not _ROUTES.fullmatch(path) or "://" in path:
            return 404, "not found"
        length = headers.get(b"content-length", b"0").decode("latin-1")
        if not length.isdigit() or int(length) > self.max_upload_bytes + _SLACK:
            return 413, f"the file is larger than {self.max_upload_bytes / 1e6:g} MB: upload a smaller one"
        return None


async def _read(receive: Receive, limit: int) -> bytes:
    """The whole body, or as much of it as shows that it is beyond the limit."""
    body, more = b"", True
    while more and len(body) <= limit:
        part = await receive()
        body += part.get("body", b"")
        more = part.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # waits for the visitor to leave
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _counted(receive: Receive, limit: int) -> Receive:
    """Ends a body that is longer than its header said, as if the visitor had left."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        part = await receive()
        seen += len(part.get("body", b""))
        return part if seen <= limit else {"type": "http.disconnect"}

    return counted


def _names_address(body: bytes) -> bool:
    """Whether a JSON body asks the server to fetch a file from an address, as the framework would do."""
    try:
        return _has_address(json.loads(body))
    except (ValueError, RecursionError):
        return False


def _has_address(value: Any) -> bool:
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and _ADDRESS.match(path):
            return True
        return any(map(_has_address, value.values()))
    return isinstance(value, list) and any(map(_has_address, value))


def _with_policy(send: Send) -> Send:
    async def guarded(part: Message) -> None:
        if part["type"] == "http.response.start":
            headers = [(b"content-security-policy", POLICY.encode()), (b"x-content-type-options", b"nosniff")]
            part = {**part, "headers": [*part.get("headers", []), *headers, (b"referrer-policy", b"no-referrer")]}
        await send(part)

    return guarded


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"detail": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
