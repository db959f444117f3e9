"""A server in a process of its own, and requests to it."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
SERVE = ROOT / "examples" / "serve"
HOST = "127.0.0.1"

_PORT = re.compile(rf"http://{re.escape(HOST)}:(\d+)")

# An application that gunicorn loads before it forks its workers. Two threads have been in use by
# then, however many cores there are.
_PRELOADED = """
import json, os
import torch
import skgpt
import skgpt.device

torch.set_num_threads(2)
skgpt.device.loky.cpu_count = lambda: 2
torch.ones(2**22).sum()
classifier = skgpt.load(os.environ["FOLDER"])
classifier.predict(["a text"])

def application(environ, start_response):
    body = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    rows = classifier.predict_proba(body["texts"]).tolist()
    answer = json.dumps({"probabilities": rows, "worker": os.getpid()}).encode()
    length = ("Content-Length", str(len(answer)))
    start_response("200 OK", [("Content-Type", "application/json"), length])
    return [answer]
"""

# The same application around a classifier that takes its time, and fails where it is told to.
_SLOW = """
import os, sys, time
sys.path.insert(0, os.environ["SERVE"])
import skgpt
from app import create_app
from server import serve
from settings import Settings

class Slow:
    def __init__(self, classifier):
        self.classifier, self.classes_ = classifier, classifier.classes_
        self.predict = classifier.predict
    def predict_proba(self, texts):
        time.sleep(float(os.environ["SLOW_SECONDS"]))
        if "poison" in texts:
            raise RuntimeError("a reason for the log alone")
        return self.classifier.predict_proba(texts)

settings = Settings.from_environment(os.environ)
serve(create_app(Slow(skgpt.load(settings.folder)), settings), settings)
"""


class Reply(NamedTuple):
    """What came of a request."""

    status: int
    content: Any
    headers: dict[str, str]


class RunningServer(NamedTuple):
    """A server that listens."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self.port, timeout=120)

    def post(self, body: Any, path: str = "/classify", **headers: str) -> Reply:
        """Send a body: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = self.connect()
        try:
            connection.request(
                "POST", path, content, {"Content-Type": "application/json"} | headers
            )
            return reply_of(connection)
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        connection = self.connect()
        try:
            connection.request("GET", path)
            return reply_of(connection)
        finally:
            connection.close()

    def wait_until_unanswered(self, n_texts: int) -> None:
        """Wait until the server has accepted that many texts and not answered them yet."""
        deadline = time.monotonic() + 60
        while (found := self.get("/health").content["unanswered_texts"]) != n_texts:
            assert time.monotonic() < deadline, f"{found} texts are waiting, not {n_texts}"
            time.sleep(0.02)


def reply_of(connection: http.client.HTTPConnection) -> Reply:
    response = connection.getresponse()
    content = response.read()
    assert response.headers["Content-Type"] == "application/json", content
    return Reply(response.status, json.loads(content), dict(response.headers))


@contextmanager
def running(
    folder: Path, log: Path, slow_seconds: float | None = None, **settings: object
) -> Iterator[RunningServer]:
    """Start a server, wait until it listens, and end it."""
    own = {f"SKGPT_SERVE_{name.upper()}": str(value) for name, value in settings.items()}
    environment = os.environ | own
    environment |= {"SKGPT_SERVE_FOLDER": str(folder), "SKGPT_SERVE_PORT": "0"}
    environment |= {"SERVE": str(SERVE), "SLOW_SECONDS": str(slow_seconds)}
    command = (
        [sys.executable, str(SERVE)] if slow_seconds is None else [sys.executable, "-c", _SLOW]
    )
    with _started(command, environment, log) as server:
        yield server


@contextmanager
def preloaded(folder: Path, own_folder: Path, n_workers: int) -> Iterator[RunningServer]:
    """Start gunicorn with a classifier that it loads once and forks."""
    (own_folder / "preloaded.py").write_text(_PRELOADED, "utf-8")
    # In a file, as there a release may leave out what it doesn't know.
    (own_folder / "config.py").write_text("control_socket_disable = True", "utf-8")
    options = ["--preload", f"--workers={n_workers}", f"--bind={HOST}:0"]
    where = [f"--chdir={own_folder}", f"--config={own_folder / 'config.py'}"]
    command = [sys.executable, "-m", "gunicorn", *options, *where, "preloaded"]
    with _started(command, os.environ | {"FOLDER": str(folder)}, own_folder / "log") as server:
        yield server


@contextmanager
def _started(command: list[str], environment: dict[str, str], log: Path) -> Iterator[RunningServer]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        yield RunningServer(process, _wait_for_port(process, log), log)
    finally:
        process.kill()
        process.wait()


def _wait_for_port(process: "subprocess.Popen[bytes]", log: Path) -> int:
    deadline = time.monotonic() + 300
    while (found := _PORT.search(log.read_text("utf-8"))) is None:
        assert process.poll() is None, log.read_text("utf-8")
        assert time.monotonic() < deadline, log.read_text("utf-8")
        time.sleep(0.05)
    return int(found[1])
