"""What the benchmarks share: settings, a clock, arms by turns in processes of their own, tables."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from _data import News, load_r8

MODEL = "smollm2-135m"
WARM_UP = 2  # steps that are not timed

Run = dict[str, Any]  # what one process has to say of its arm
Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows to train on, rows to judge


@dataclass(frozen=True)
class Setting:
    """What all arms of a table have in common."""

    max_length: int = 256
    batch: int = 16
    epochs: int = 1
    learning_rate: float = 1e-4
    n_layers: int | None = None
    trainable_layers: int | Literal["all"] = "all"
    pooling: Literal["auto", "mean", "last"] = "auto"
    seed: int = 0
    device: str = "cpu"

    def classifier(self, kind: Any = None) -> Any:
        """Return the unfitted GPTTextClassifier, or one of a subclass of it."""
        from skgpt import GPTTextClassifier

        return (kind or GPTTextClassifier)(
            MODEL,
            n_layers=self.n_layers,
            trainable_layers=self.trainable_layers,
            pooling=self.pooling,
            attention="causal",  # as in all other arms
            max_length=self.max_length,
            max_epochs=self.epochs,
            batch_size=self.batch,
            learning_rate=self.learning_rate,
            random_state=self.seed,
            device=self.device,
        )


class Clock:
    """Notes when each step ended, how many real tokens it had and how many were computed.

    Parameters
    ----------
    n_steps : int
    device : str
    """

    def __init__(self, n_steps: int, device: str) -> None:
        self.n_steps = n_steps
        self.device = device
        self.ends: list[float] = []
        self.tokens: list[Any] = []
        self.computed: list[int] = []

    def tick(self, tokens: Any, computed: int) -> None:
        """Note the end of a step; `tokens` may still be on the device."""
        self.tokens.append(tokens)
        self.computed.append(computed)
        # A GPU lags behind; it is waited for only where the timed part begins and ends.
        if self.device != "cpu" and len(self.tokens) in (WARM_UP, self.n_steps):
            import torch

            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    @property
    def n_tokens(self) -> int:
        """Real tokens after the warm-up."""
        return sum(map(int, self.tokens[WARM_UP:]))

    def rate(self) -> float:
        """Real tokens per second after the warm-up."""
        return self.n_tokens / (self.ends[-1] - self.ends[WARM_UP - 1])

    def padding(self) -> float:
        """Share of what was computed after the warm-up that was no token of a text."""
        return 1 - self.n_tokens / sum(self.computed[WARM_UP:])


def parser_of(doc: str | None, arms: Sequence[str], rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the arguments that every comparison of arms has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=arms, default=list(arms))
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--one", help=argparse.SUPPRESS)  # run this arm, in this process
    return parser


def by_turns(
    script: str, arms: Sequence[str], rounds: int, options: dict[str, Any]
) -> dict[str, list[Run]]:
    """Run every arm once a round, each time in a process of its own; return what they printed."""
    runs: dict[str, list[Run]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms:
            runs[arm].append(run_arm(script, arm, options, f"round {number + 1}"))
    return runs


def run_arm(script: str, arm: str, options: dict[str, Any], label: str) -> Run:
    """Run one arm once, in a process of its own; return what it printed.

    Parameters
    ----------
    script : str
        The file to run, which prints its result as JSON in its last line.
    arm : str
    options : dict
        Arguments to pass on; True is a bare flag, a list several values; False and None are
        left out.
    label : str
        What to call this run in the line that is printed of it.
    """
    words = []
    for key, value in options.items():
        if value is None or value is False:
            continue
        several = value if isinstance(value, list | tuple) else [value]
        words += [f"--{key}"] if value is True else [f"--{key}", *map(str, several)]
    command = [sys.executable, script, "--one", arm, *words]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{arm} failed:\n{done.stderr}")
    run: Run = json.loads(done.stdout.splitlines()[-1])
    seconds = time.perf_counter() - began
    print(f"{label} {arm}: {_brief(run)} ({seconds:.0f} s)", flush=True)
    return run


def _brief(run: Run) -> str:
    shown = {key: value for key, value in run.items() if isinstance(value, int | float | str)}
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in shown.items()
    )


def medians(runs: dict[str, list[Run]], key: str) -> dict[str, float]:
    """Return the median over the rounds of one number, for each arm."""
    return {arm: median(run[key] for run in done) for arm, done in runs.items()}


def ratio(values: dict[str, float], arm: str, to: str, *, times: bool = False) -> str:
    """Return how many times faster `to` is than an arm, by their rates or (`times`) seconds."""
    if to not in values or not values[arm]:
        return "-"
    faster = values[arm] / values[to] if times else values[to] / values[arm]
    return f"{faster:.2f}"


def folds_of(news: News) -> list[Fold]:
    """Return five stratified folds, the same in every process.

    A topic with less than five texts is missing from the test part of some.
    """
    from sklearn.model_selection import StratifiedKFold

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        splitter = StratifiedKFold(5, shuffle=True, random_state=0)
        return list(splitter.split(news.texts, news.topics))


def test_sample(n: int) -> News:
    """Return n articles of R8's test split, the same ones for every arm and draw."""
    test = load_r8("test")
    chosen = np.sort(np.random.default_rng(0).permutation(len(test.texts))[:n])
    return News(test.texts[chosen], test.topics[chosen])


def peak_memory(device: str) -> float:
    """Return the peak memory of this process, in GiB: resident, or of the GPU."""
    if device == "cpu":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # macOS counts in bytes, Linux in KiB.
        return float(peak) / (2**30 if sys.platform == "darwin" else 2**20)
    import torch

    return float(torch.cuda.max_memory_allocated()) / 2**30


def product_rate(device: str) -> float:
    """Return the machine's own rate of bf16 matrix products, in GFLOP/s: the best of a few."""
    import torch

    best = 0.0
    for size in (2048, 4096) if device == "cpu" else (4096, 8192):
        a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
        for _ in range(6):
            began = time.perf_counter()
            a @ a
            if device != "cpu":
                torch.cuda.synchronize()
            best = max(best, 2 * size**3 / (time.perf_counter() - began) / 1e9)
    return best


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table as Markdown."""
    print("\n| " + " | ".join(head) + " |")
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")
    print(flush=True)


def print_settings(**settings: object) -> None:
    """Print the line below a table: its settings, the versions and the machine."""
    import torch

    names = ["torch", "transformers", "scikit-learn", "skorch"]
    versions = [f"Python {platform.python_version()}"]
    for name in names:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    said = [f"{key.replace('_', ' ')} {value}" for key, value in settings.items()]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
    if settings.get("device") == "cuda":
        machine += f", {torch.cuda.get_device_name()}"
    print("; ".join([MODEL, *said, *versions, machine]), flush=True)
