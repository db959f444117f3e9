"""Databases and a proxy that a test starts for itself, and ends."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

_SERVE = (
    "import sys; from optuna.storages import get_storage, run_grpc_proxy_server; "
    "run_grpc_proxy_server(get_storage(sys.argv[1]), port=int(sys.argv[2]))"
)


def _programs() -> Path:
    """Return where PostgreSQL's programs are; Debian has them off the PATH."""
    on_path = shutil.which("pg_ctl")
    debians = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if on_path is None and not debians:
        pytest.skip("needs PostgreSQL's server: apt-get install postgresql")
    return Path(on_path or debians[-1]).parent


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URL of an empty database of a server that talks over a unix socket alone."""
    pytest.importorskip("psycopg2", reason="needs psycopg2-binary")
    if sys.platform == "win32":
        pytest.skip("this server is asked over a unix socket")
    programs = _programs()
    # PostgreSQL refuses to run as root, and nobody else may enter the tests' own folder.
    other: dict[str, Any] = {}
    if os.geteuid() == 0:
        other = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="skgpt-", dir="/tmp"))
    if other:
        shutil.chown(folder, other["user"], other["group"])

    def call(program: str, *options: str) -> None:
        command = [str(programs / program), "-D", str(folder / "data"), *options]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False, **other)
        assert done.returncode == 0, f"{program} failed"

    try:
        call("initdb", "--auth=trust", "--username=skgpt", "--no-sync")
        settings = f"-F -k {folder} -c listen_addresses=''"
        call("pg_ctl", "start", "--wait", "-l", str(folder / "log"), "-o", settings)
        try:
            yield f"postgresql+psycopg2://skgpt@/postgres?host={folder}"
        finally:
            call("pg_ctl", "stop", "--wait", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


@contextmanager
def grpc_proxy(folder: Path) -> Iterator[Any]:
    """Yield a client of a proxy that keeps its studies in SQLite."""
    pytest.importorskip("grpc", reason="needs grpcio")
    pytest.importorskip("google.protobuf", reason="needs protobuf")
    if not hasattr(optuna.storages, "GrpcStorageProxy"):
        pytest.skip("needs Optuna 4.2")
    with socket.create_server(("localhost", 0)) as unused:
        port = unused.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", _SERVE, f"sqlite:///{folder}/proxy.db"]
    with subprocess.Popen([*command, str(port)]) as server:
        try:
            client = optuna.storages.GrpcStorageProxy(host="localhost", port=port)
            client.wait_server_ready(timeout=120)
            yield client
            client.close()
        finally:
            server.kill()
