"""Where the seconds go of what users run: fits, a prediction, a cross-validation and searches.

Nothing is set but what the names below say; the rest are the defaults.

- fit: GPTTextClassifier on 300 articles of Reuters R8
- fit-large: the same on 5,000
- predict: 20,000 beginnings of news, the first 20 words of each, with a model fitted before
- folds: a 5-fold cross_validate on 200 articles
- grid: GridSearchCV over six learning rates, five folds and a refit, on 300 articles
- search: GPTSearchCV, 20 trials, on 300 articles; pruned, the default space, and a refit

A part that runs within another counts for itself alone. "forward" includes the loss, "else" is
whatever has no other name. Libraries are imported, and texts are read, before the clock starts.
It all runs on one thread, as parts that overlap have no shares. `--clock processor` counts the
seconds of this process alone, whoever else there is.

    python examples/benchmarks/breakdown.py --works fit predict grid
    python examples/benchmarks/breakdown.py --small --clock processor      # minutes on a slow core
"""

import argparse
import json
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from _arms import Run, by_turns, print_settings, print_table
from _data import News, load_news, sample_r8
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV, cross_validate

PARTS = [
    "load",
    "measure",
    "tokenise",
    "frozen layers",
    "forward",
    "backward",
    "optimizer",
    "head",
    "validate",
    "predict",
]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
RATES = [3e-5, 6e-5, 1e-4, 2e-4, 4e-4, 8e-4]
SIZES = {"fit": 300, "fit-large": 5000, "predict": 20_000, "folds": 200, "grid": 300, "search": 300}
# The small form: fewer texts, of 32 tokens, and fewer points, folds and trials.
SMALL = {"fit": 120, "fit-large": 480, "predict": 600, "folds": 120, "grid": 120, "search": 120}


class Stopwatch:
    """Adds up where the time goes, in all threads; only one of them may run at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.parts: dict[str, float] = defaultdict(float)
        self._local = threading.local()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside as a part of that name, without the parts within it."""
        outer, self._local.within = getattr(self._local, "within", 0.0), 0.0
        began = self.clock()
        try:
            yield
        finally:
            seconds = self.clock() - began
            self.parts[name] += seconds - self._local.within
            self._local.within = outer + seconds

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Time every call of a function of a module, or of a method of a class."""
        original: Callable[..., Any] = getattr(owner, attribute)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return original(*args, **kwargs)

        setattr(owner, attribute, timed)


def watch_skgpt(watch: Stopwatch) -> None:
    """Time the parts of fits and predictions, none of which waits for another fold's thread."""
    from skgpt import fitted_model, fitting
    from skgpt.network import features
    from skgpt.training import loop
    from skgpt.training.optimizer import Optimizer

    for owner, name, part in (
        (fitting, "load_pretrained", "load"),
        (fitting, "build_network", "load"),
        (fitting, "_price", "measure"),
        (fitting, "tokenise_rows", "tokenise"),
        (fitted_model, "tokenise_rows", "tokenise"),
        (features, "cache_level", "frozen layers"),
        (features._StateCache, "states", "frozen layers"),
        (loop, "train_step", "forward"),
        (Optimizer, "gradients", "backward"),
        (Optimizer, "add", "backward"),
        (Optimizer, "step", "optimizer"),
        (Optimizer, "zero_grad", "optimizer"),
        (loop, "solve_head", "head"),
        (loop, "evaluate", "validate"),
        (fitting, "calibrated", "validate"),
        (fitted_model, "raw_scores", "predict"),
    ):
        watch.wrap(owner, name, part)


def beginnings(n: int) -> NDArray[np.object_]:
    """Return the first 20 words of n texts of news."""
    splits = [load_news(name, split) for name in ("20ng", "r52") for split in ("train", "test")]  # type: ignore[arg-type]
    short = dict.fromkeys(" ".join(text.split()[:20]) for news in splits for text in news.texts)
    return np.array(list(short)[:n], dtype=object)


def prepare(work: str, args: argparse.Namespace) -> Callable[[], Any]:
    """Return what is to be timed."""
    from skgpt import GPTTextClassifier
    from skgpt.tuning import GPTSearchCV

    n_texts = (SMALL if args.small else SIZES)[work]
    classifier = GPTTextClassifier(random_state=0, max_length=32 if args.small else 256)
    n_folds = 3 if args.small else 5
    if work == "predict":
        few = sample_r8(120, 0)
        classifier.set_params(max_epochs=1).fit(few.texts, few.topics)
        texts = beginnings(n_texts)
        return lambda: classifier.predict(texts)
    news: News = sample_r8(n_texts, 0)
    if work == "folds":
        return lambda: cross_validate(classifier, *news, cv=n_folds, error_score="raise")
    if work == "grid":
        rates = {"learning_rate": RATES[2:4] if args.small else RATES}
        return lambda: GridSearchCV(classifier, rates, cv=n_folds).fit(*news)
    if work == "search":
        n_trials = 4 if args.small else 20
        search = GPTSearchCV(classifier, n_trials=n_trials, cv=n_folds, random_state=0)
        return lambda: search.fit(*news)
    return lambda: classifier.fit(*news)


def one_run(work: str, args: argparse.Namespace) -> Run:
    """Time one kind of work in this process."""
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of cut texts, and of classes with fewer members than folds
    clock = CLOCKS[args.clock]
    run = prepare(work, args)
    watch = Stopwatch(clock)
    watch_skgpt(watch)
    began = clock()
    run()
    return {"seconds": clock() - began, "parts": dict(watch.parts)}


def main() -> None:
    """Time each kind of work in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--small", action="store_true", help="fewer texts, points, folds, trials")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    options = {"small": args.small, "clock": args.clock}
    runs = by_turns(__file__, args.works, args.rounds, options)
    seconds, shares = [], []
    for work in args.works:
        total = float(np.median([run["seconds"] for run in runs[work]]))
        parts = [
            float(np.median([run["parts"].get(part, 0.0) for run in runs[work]])) for part in PARTS
        ]
        row = [*parts, total - sum(parts), total]
        n_texts = (SMALL if args.small else SIZES)[work]
        seconds.append([f"{work}, {n_texts:,}", *(f"{s:.1f}" for s in row)])
        shares.append([f"{work}, {n_texts:,}", *(f"{100 * s / total:.1f}" for s in row[:-1])])
    print_table(["Seconds", *PARTS, "else", "in all"], seconds)
    print_table(["Share, %", *PARTS, "else"], shares)
    print_settings(rounds=args.rounds, **options)


if __name__ == "__main__":
    main()
