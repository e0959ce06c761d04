"""The live page under load: visitors ask at the same time, and some are killed in the middle of an answer.

    python benchmarks/page_load.py                  # 500 answers, 8 visitors, a kill after every tenth answer
    python benchmarks/page_load.py --answers 20 --visitors 3

Starts the page with the embedded model, and visitors as processes of their own, which speak HTTP as the page's script
does: they keep a session open, upload a picture every third time, ask, and watch the answer grow. A killed visitor is
replaced by a new one. Exit code 1 if an answer is missing or differs from the first one's to the same question, if the
server's memory grew by more than 5 % after the first fifth, or if it kept an upload. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "What is written in the image?", "How many discs are there?", "Is there a red disc?", "What colour is the ring?"
)  # fmt: skip
UPLOAD, ASK = "on_upload", "on_ask"
GROWTH, PATIENCE = 0.05, 300  # share; seconds that a visitor waits for an answer


class Visitor:
    """One browser tab: a session, kept open by a stream that the server watches."""

    def __init__(self, address: str) -> None:
        self.api, self.session = f"{address}/gradio_api", uuid.uuid4().hex[:11]
        with urllib.request.urlopen(f"{address}/config", timeout=PATIENCE) as reply:
            events = json.load(reply)["dependencies"]
        self.events = {event["api_name"]: event["id"] for event in events}
        threading.Thread(target=self._stay, daemon=True).start()

    def _stay(self) -> None:
        with urllib.request.urlopen(f"{self.api}/heartbeat/{self.session}") as stream:
            while stream.read(1):
                pass

    def upload(self, number: int) -> None:
        from PIL import Image

        buffer = io.BytesIO()
        Image.effect_mandelbrot((640, 480), (-2 + number % 5 / 10, -1.5, 1, 1.5), 40).convert("RGB").save(buffer, "PNG")
        edge = uuid.uuid4().hex
        head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="{number}.png"\r\n\r\n'
        body = head.encode() + buffer.getvalue() + f"\r\n--{edge}--\r\n".encode()
        (path,) = self._post("upload", body, f"multipart/form-data; boundary={edge}")
        self._result(UPLOAD, [{"path": path, "meta": {"_type": "gradio.FileData"}}])

    def ask(self, question: str) -> list[str]:
        """The dense and the pruned answer, as the page shows them."""
        panes = self._result(ASK, [None, question, True, "vlm-pruner", 64, 2])[0]
        return [
            re.sub("<[^>]+>", "", text).strip() for text in re.findall(r'class="vp-text"[^>]*>(.*?)</p>', panes, re.S)
        ]

    def _post(self, route: str, body: bytes, kind: str = "application/json") -> Any:
        request = urllib.request.Request(f"{self.api}/{route}", body, {"content-type": kind})
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return json.load(reply)

    def _result(self, event: str, data: list[Any]) -> list[Any]:
        """The last values of each output; the stream sends changes only, from the second message on."""
        asked = {"data": data, "fn_index": self.events[event], "session_hash": self.session}
        self._post("queue/join", json.dumps(asked).encode())
        shown: list[Any] = []
        for message in self._messages():
            if message["msg"] in ("process_generating", "process_completed"):
                if not message.get("success", True):
                    raise RuntimeError(f"{event}: {message}")
                shown = message["output"]["data"] or shown
            if message["msg"] == "process_completed":
                return shown
        raise RuntimeError(f"{event}: the stream ended without an answer")

    def _messages(self) -> Iterator[dict[str, Any]]:
        with urllib.request.urlopen(f"{self.api}/queue/data?session_hash={self.session}", timeout=PATIENCE) as stream:
            for line in stream:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])


def visit(address: str, seed: int) -> None:
    """Asks until killed; a line of JSON for each answer."""
    visitor, chance = Visitor(address), random.Random(seed)
    for turn in range(10**6):
        number = chance.randrange(5)
        if turn % 3 == 0:
            visitor.upload(number)
            shown = number
        question = chance.choice(QUESTIONS)
        began = time.perf_counter()
        answer = visitor.ask(question)
        told = {"seconds": time.perf_counter() - began, "asked": f"{shown} {question}", "answer": answer}
        print(json.dumps(told), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=500, metavar="N")
    parser.add_argument("--visitors", type=int, default=8, metavar="N")
    parser.add_argument("--kill-after", type=int, default=10, metavar="N", help="answers between two kills")
    parser.add_argument("--visit", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.visit:
        visit(args.visit[0], int(args.visit[1]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "server.txt")
        command = [sys.executable, "-m", "vlm_pruner.cli", "demo", "--port", "0", "--max-new-tokens", "8"]
        with log.open("w") as out:
            environment = {**os.environ, "TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
            server = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            return load(args, server, log, Path(folder))
        finally:
            server.terminate()
            server.wait(30)


def load(args: argparse.Namespace, server: subprocess.Popen[bytes], log: Path, folder: Path) -> int:
    address, started = address_of(server, log), time.perf_counter()
    chance, watch, kills, seeds = random.Random(0), selectors.DefaultSelector(), 0, iter(range(10**6))
    told: list[dict[str, Any]] = []
    memory: list[float] = []

    def begin() -> None:
        command = [sys.executable, __file__, "--visit", address, str(next(seeds))]
        visitor = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        assert visitor.stdout is not None
        watch.register(visitor.stdout, selectors.EVENT_READ, visitor)

    def end(visitor: subprocess.Popen[bytes]) -> None:
        visitor.kill()
        watch.unregister(visitor.stdout)  # type: ignore[arg-type]
        visitor.communicate()

    for _ in range(args.visitors):
        begin()
    try:
        while len(told) < args.answers:
            for key, _ in watch.select(timeout=PATIENCE) or [(None, 0)]:
                if key is None:
                    raise SystemExit(f"no answer for {PATIENCE} s:\n{log.read_text()[-3000:]}")
                line = key.data.stdout.readline()
                if not line:
                    told_server = log.read_text()[-5000:]
                    raise SystemExit(f"a visitor failed:\n{key.data.stderr.read().decode()[-1000:]}\n{told_server}")
                told.append(json.loads(line))
                memory.append(resident(server.pid))
                if len(told) % args.kill_after == 0:  # some other visitor, most likely in the middle of an answer
                    end(chance.choice([one.data for one in watch.get_map().values()]))
                    begin()
                    kills += 1
                    break
            if len(told) % 50 == 0:
                print(f"{len(told)} answers, {memory[-1]:.0f} MB, {time.perf_counter() - started:.0f} s", flush=True)
    finally:
        for key in list(watch.get_map().values()):
            end(key.data)
    return conclude(told, memory, kills, log, folder, time.perf_counter() - started)


def conclude(
    told: list[dict[str, Any]], memory: list[float], kills: int, log: Path, folder: Path, seconds: float
) -> int:
    time.sleep(5)  # for the last visitors' uploads to be removed
    first: dict[str, list[str]] = {}
    differ = [one["asked"] for one in told if first.setdefault(one["asked"], one["answer"]) != one["answer"]]
    empty = sum(len(one["answer"]) != 2 for one in told)
    fifth = max(1, len(memory) // 5)
    growth = median(memory[-fifth:]) / median(memory[fifth : 2 * fifth] or memory) - 1
    kept = [path.name for path in folder.rglob("*.png")]
    waited = [one["seconds"] for one in told]
    result = {
        "answers": len(told), "kills": kills, "seconds": round(seconds), "median_s": round(median(waited), 2),
        "p95_s": round(quantiles(waited, n=20)[-1], 2), "different_questions": len(first),
        "differ": differ, "empty": empty,
        "growth": round(growth, 4), "curve_mb": [round(one) for one in memory[::fifth // 2 or 1]], "kept_uploads": kept,
        "tracebacks": log.read_text().count("Traceback"),
    }  # fmt: skip
    if result["tracebacks"]:
        print(log.read_text()[-5000:])
    print(json.dumps(result))
    return int(bool(differ or empty or kept or result["tracebacks"]) or growth > GROWTH)


def resident(pid: int) -> float:
    """MB of a process in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def address_of(server: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(600):
        found = re.search(r"VLM-Pruner is at (\S+)", log.read_text())
        if found:
            return found[1]
        if server.poll() is not None:
            break
        time.sleep(0.5)
    raise SystemExit(f"the page did not start:\n{log.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
