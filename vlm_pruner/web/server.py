"""Serves the page behind the guard, on loopback by default, with a private folder for uploads."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

TRIED = 20  # ports, from the one asked for


@contextmanager
def private_folder() -> Iterator[None]:
    """Gives uploads a folder of their own, which is removed at the end. Open it before the page is built."""
    before = {name: value for name, value in os.environ.items() if name == "GRADIO_TEMP_DIR"}
    with tempfile.TemporaryDirectory(prefix="vlm-pruner-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            os.environ.update(before)


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to `port` or, with a line on standard error, to the next free one. Raises OSError if none is."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for offset in range(TRIED):
        attempt = socket.socket(family, socket.SOCK_STREAM)
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((host, port + offset if port else 0))
        except OSError as error:
            attempt.close()
            if error.errno not in (98, 48, 10048):  # address in use, on Linux, macOS, Windows
                raise OSError(f"--host {host} --port {port}: {error.strerror}") from None
            continue
        if offset:
            print(f"port {port} is taken, using {port + offset}", file=sys.stderr)
        return attempt
    raise OSError(f"ports {port} to {port + TRIED - 1} are all taken; give another with --port")


def serve(page: object, listening: socket.socket, host: str, max_upload_mb: float) -> None:
    """Serve the page that `Page.build` returned, until interrupted."""
    import gradio as gr
    import uvicorn
    from fastapi import FastAPI

    from vlm_pruner.web.guard import LOOPBACK, guarded
    from vlm_pruner.web.page import STYLE, theme

    limit = int(max_upload_mb * 1e6)
    page.state_session_capacity = 100  # type: ignore[attr-defined]  # visitors whose picture is kept
    page.queue(max_size=32)  # type: ignore[attr-defined]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(
        app, page, path="/", server_name=host, server_port=listening.getsockname()[1], footer_links=[],
        run_history=False,
        allowed_paths=[], max_file_size=limit, ssr_mode=False, pwa=False, mcp_server=False, enable_monitoring=False,
        theme=theme(), css_paths=[STYLE], show_error=False,
    )  # fmt: skip
    shown = f"[{host}]" if ":" in host else host
    hosts = LOOPBACK if shown in LOOPBACK else ("*",)
    config = uvicorn.Config(
        guarded(app, max_upload_bytes=limit, hosts=hosts), log_level="warning", timeout_graceful_shutdown=3
    )
    server = uvicorn.Server(config)
    print(f"VLM-Pruner is at http://{shown}:{listening.getsockname()[1]} (Ctrl+C ends it)", flush=True)
    server.run(sockets=[listening])
