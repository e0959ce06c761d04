"""The server's outer wall: the page's own routes, bodies of bounded size, and no address but the page's.

The web framework can also fetch addresses, serve other programs and show its own tools. The page needs none of that:
all routes but those below are "not found", and the browser may load nothing from elsewhere.
"""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # as a browser names this machine
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
_HEADERS = {
    "content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"
}  # fmt: skip


def guarded(app: ASGIApp, *, max_upload_bytes: int, hosts: tuple[str, ...] = ("*",)) -> ASGIApp:
    """The app behind its guard. hosts: the names that a browser may use for this server; "*" is any."""
    return TrustedHostMiddleware(Guard(app, max_upload_bytes), allowed_hosts=hosts, www_redirect=False)


class Guard:
    """ASGI middleware that checks path, size and body of each request."""

    def __init__(self, app: ASGIApp, max_upload_bytes: int) -> None:
        self.app = app
        self.max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return

        async def refuse(status: int, reason: str) -> None:
            await JSONResponse({"detail": reason}, status)(scope, receive, send)

        if (problem := self._problem(scope)) is not None:
            return await refuse(*problem)
        is_upload = scope["path"].rstrip("/").endswith("/upload")
        limit = self.max_upload_bytes + _SLACK if is_upload else _JSON_LIMIT
        body = None if is_upload or scope["method"] != "POST" else await _read(receive, limit)
        if body is not None:
            if len(body) > limit:
                return await refuse(413, f"the request is larger than {limit} bytes")
            if _names_address(body):
                return await refuse(403, "files are uploaded, not fetched from an address")
            receive = _replay(body, receive)
        elif is_upload:
            receive = _counted(receive, limit)
        await self.app(scope, receive, _with_policy(send))

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        path = unquote(scope["path"])
        if not _ROUTES.fullmatch(path) or "://" in path:
            return 404, "not found"
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdigit() or int(length) > self.max_upload_bytes + _SLACK:
            return 413, f"the file is larger than {self.max_upload_bytes / 1e6:g} MB: upload a smaller one"
        return None


async def _read(receive: Receive, limit: int) -> bytes:
    """The body, read until it ends or exceeds the limit."""
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
            return await receive()  # the next message says that the visitor has left
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _counted(receive: Receive, limit: int) -> Receive:
    """Ends a body beyond the limit, whatever its header said, as if the visitor had left."""
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
            MutableHeaders(scope=part).update(_HEADERS)
        await send(part)

    return guarded
