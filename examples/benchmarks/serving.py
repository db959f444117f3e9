"""Table 10, serving: latency and throughput of examples/serve, with and without shared batches.

GPTTextClassifier with the quickstart's depth (the first 12 layers, the last 4 trained) behind HTTP.
1, 8 and 32 clients send one article of Reuters R8 after the other, each as soon as its last is
answered; no article twice, so nothing is known from before. Arms: N, the naive loop, where each
request is one call of `predict_proba`; S, where requests that wait are classified together. Both
are the same server, in a process of its own, on the same articles and on the cores that its clients
use too; N has SKGPT_SERVE_BATCH_TEXTS=1. That they answer the same is checked. Opening the model is
not timed.

    python examples/benchmarks/serving.py
    python examples/benchmarks/serving.py --requests 200 --rounds 3 --max-length 32
"""

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from _arms import Run, Setting, by_turns, parser_of, print_settings, print_table, test_sample
from _data import sample_r8
from numpy.typing import NDArray

import skgpt

ARMS = ["N", "S"]
SERVE = Path(__file__).resolve().parents[1] / "serve"
HOST = "127.0.0.1"
WARM_UP = 4  # requests before the clock starts
START_SECONDS = 120
BATCH_TEXTS = 32  # of S
TOLERANCE = 0.05  # of probabilities between the arms: bf16 rounds, and batches differ


def prepare(folder: Path, args: argparse.Namespace) -> None:
    """Fit the classifier and leave it in the folder; how well it does is not the point here."""
    train = sample_r8(args.fit_texts, 0)
    setting = Setting(
        max_length=args.max_length,
        epochs=1,
        learning_rate=2e-4,
        n_layers=args.layers,
        trainable_layers=4,
        device=args.device,
    )
    skgpt.save(setting.classifier().fit(train.texts, train.topics), folder / "classifier")


@contextmanager
def server(folder: Path, batch_texts: int) -> Iterator[int]:
    """Start the server and give its port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    own = {"FOLDER": folder / "classifier", "PORT": port, "BATCH_TEXTS": batch_texts}
    variables = {f"SKGPT_SERVE_{name}": str(value) for name, value in own.items()}
    process = subprocess.Popen([sys.executable, str(SERVE)], env=os.environ | variables)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_well(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server doesn't answer")
            time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def _is_well(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def post(connection: http.client.HTTPConnection, texts: list[str]) -> list[list[float]]:
    """Have the server classify texts; return their probabilities."""
    body = json.dumps({"texts": texts}).encode()
    connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
    probabilities: list[list[float]] = json.loads(connection.getresponse().read())["probabilities"]
    return probabilities


def drive(port: int, texts: list[str], n_clients: int) -> tuple[list[float], float, list[Any]]:
    """Have clients share the texts; return each one's latency, the seconds in all, the rows."""
    latencies = [0.0] * len(texts)
    rows: list[Any] = [None] * len(texts)
    waiting = iter(range(len(texts)))
    taking = threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection(HOST, port, timeout=600)
        while True:
            with taking:
                i = next(waiting, None)
            if i is None:
                break
            began = time.perf_counter()
            [rows[i]] = post(connection, [texts[i]])
            latencies[i] = time.perf_counter() - began
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(n_clients)]
    began = time.perf_counter()
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    return latencies, time.perf_counter() - began, rows


def run_arm(arm: str, folder: Path, args: argparse.Namespace) -> Run:
    """Serve the texts to each number of clients; return the figures of each."""
    texts = texts_of(args)
    rows: list[Any] = []
    levels = []
    with server(folder, 1 if arm == "N" else BATCH_TEXTS) as port:
        drive(port, texts[:WARM_UP], 1)
        for number, n_clients in enumerate(args.clients):
            first = WARM_UP + number * args.requests
            own = texts[first : first + args.requests]
            latencies, seconds, found = drive(port, own, n_clients)
            rows += found
            p50, p99 = np.percentile(latencies, [50, 99])
            levels.append({"p50": p50, "p99": p99, "rate": len(own) / seconds})
    np.save(folder / f"{arm}.npy", np.array(rows))
    return {"levels": levels, "rates": ", ".join(f"{level['rate']:.1f}" for level in levels)}


def texts_of(args: argparse.Namespace) -> list[str]:
    """Return different texts for every request."""
    n = WARM_UP + args.requests * len(args.clients)
    texts = [str(text) for text in test_sample(n).texts]
    if len(set(texts)) < n:
        texts = [f"{number} {text}" for number, text in enumerate(texts)]  # R8 has some twice
    return texts


def print_comparison(runs: dict[str, list[Run]], clients: list[int]) -> None:
    """Print a row for each number of clients."""
    rows = []
    for number, n_clients in enumerate(clients):
        row, rates = [str(n_clients)], {}
        for arm, done in runs.items():
            of = {
                key: median(run["levels"][number][key] for run in done)
                for key in ("p50", "p99", "rate")
            }
            rates[arm] = of["rate"]
            row += [f"{1000 * of['p50']:.0f}", f"{1000 * of['p99']:.0f}", f"{of['rate']:.1f}"]
        row.append(f"{rates['S'] / rates['N']:.2f}" if len(rates) == 2 else "-")
        rows.append(row)
    head = ["Clients"]
    for arm in runs:
        head += [f"{arm}: p50, ms", "p99, ms", "texts/s"]
    print_table([*head, "S is faster by"], rows)


def check_agreement(folder: Path, arms: list[str]) -> None:
    """Print how far the arms are apart; raise if it is more than rounding."""
    if len(arms) < 2:
        return
    first, second = (np.load(folder / f"{arm}.npy") for arm in arms)
    apart: NDArray[np.float64] = np.abs(first - second)
    print(f"\nLargest difference of a probability between the arms: {apart.max():.2g}")
    if apart.max() > TOLERANCE:
        raise AssertionError("the arms don't answer the same")


def main() -> None:
    """Fit, run the arms by turns and print the table, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=100, help="for each number of clients")
    parser.add_argument("--fit-texts", type=int, default=100)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run_arm(args.one, args.folder, args)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args)
        options = {
            "clients": args.clients,
            "requests": args.requests,
            "device": args.device,
            "folder": folder,
        }
        runs = by_turns(__file__, args.arms, args.rounds, options)
        print_comparison(runs, args.clients)
        check_agreement(folder, args.arms)
    print_settings(
        layers=args.layers,
        rounds=args.rounds,
        requests=args.requests,
        max_length=args.max_length,
        batches_of=BATCH_TEXTS,
        device=args.device,
    )


if __name__ == "__main__":
    main()
