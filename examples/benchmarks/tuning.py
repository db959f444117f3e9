"""Table 5, a whole search: six learning rates, five folds, a refit, and how good what it chose is.

600 articles of Reuters R8 cut at 32 tokens, the model's first 16 layers; three epochs of batches
of 16; the last token's pooling; the same folds for every arm. S is GridSearchCV over
GPTTextClassifier whose last 4 layers learn; P is GPTSearchCV over the same rates, pruned by halves.
H0 is two loops around the Trainer with its default arguments: fp32, every layer learns; H0f is the
same with the layers frozen that S freezes (the embeddings too). H1 is H0f in bf16, with batches of
like length. All three tokenise once. K is GridSearchCV over a Pipeline of skorch's tokenizer and
net, with the same layers frozen; it is left out where skorch isn't installed. All but S and P load
the model anew for each fit. Each arm fits its best rate on all 600 texts, which is part of its
time, and is judged on 1,000 articles of the test split, which is not.

All but S and P take hours. Unless `--whole` names them they run the fourth rate alone, whose
seconds are multiplied, and that on the first of the folds alone. What they choose is then no
choice, and stands in brackets.

    python examples/benchmarks/tuning.py
    python examples/benchmarks/tuning.py --arms H1 S --whole H1
    python examples/benchmarks/tuning.py --texts 100 --epochs 1 --rates 1e-4 4e-4 --test 50
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
from _arms import (
    Fold,
    Run,
    Setting,
    by_turns,
    folds_of,
    medians,
    parser_of,
    peak_memory,
    print_settings,
    print_table,
    ratio,
    test_sample,
)
from _data import News, sample_r8
from numpy.typing import NDArray
from optuna.samplers import GridSampler
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV

ARMS = ["H0", "H0f", "H1", "K", "S", "P"]
OURS = ["S", "P"]
LONG = ["H0", "H0f", "H1", "K"]  # of which a whole grid takes hours
RATES = [3e-5, 6e-5, 1e-4, 2e-4, 4e-4, 8e-4]

Predict = Callable[[NDArray[np.object_]], NDArray[np.str_]]
Search = tuple[list[float], Predict]  # the mean score of each rate, and what the best one predicts


def search_skgpt(news: News, setting: Setting, rates: list[float], folds: list[Fold]) -> Search:
    """Search with GridSearchCV over GPTTextClassifier."""
    search = GridSearchCV(
        setting.classifier(), {"learning_rate": rates}, cv=folds, error_score="raise"
    )
    search.fit(news.texts, news.topics)
    return list(map(float, search.cv_results_["mean_test_score"])), search.predict


def search_pruning(news: News, setting: Setting, rates: list[float], folds: list[Fold]) -> Search:
    """Search with GPTSearchCV; rates that are given up have no score."""
    from skgpt.tuning import GPTSearchCV

    grid = {"learning_rate": rates}
    search = GPTSearchCV(
        setting.classifier(),
        grid,
        n_trials=len(rates),
        sampler=GridSampler(grid, seed=0),
        pruner="halving",
        cv=folds,
        error_score="raise",
    )
    search.fit(news.texts, news.topics)
    tried = search.cv_results_["param_learning_rate"]
    means = dict(zip(map(float, tried), search.cv_results_["mean_test_score"], strict=True))
    return [float(means.get(rate, np.nan)) for rate in rates], search.predict


def search_skorch(news: News, setting: Setting, rates: list[float], folds: list[Fold]) -> Search:
    """Search with GridSearchCV over a Pipeline that ends in skorch's net."""
    from _skorch import skorch_pipeline

    names, codes = np.unique(news.topics, return_inverse=True)
    pipeline = skorch_pipeline(len(names), setting)
    search = GridSearchCV(pipeline, {"net__lr": rates}, cv=folds, error_score="raise")
    search.fit(news.texts, codes)

    def predict(texts: NDArray[np.object_]) -> NDArray[np.str_]:
        return np.asarray(names[search.predict(texts)])

    return list(map(float, search.cv_results_["mean_test_score"])), predict


def search_trainer(
    news: News, setting: Setting, rates: list[float], folds: list[Fold], tuned: bool
) -> Search:
    """Search with the Trainer in two loops, and fit the best rate once more on all rows."""
    from _trainer import WholeFit, load_tokenizer, tokenised

    tokenizer = load_tokenizer()
    ids = tokenised(news.texts, tokenizer, setting.max_length)

    def fitted(rate: float, rows: NDArray[np.int64]) -> WholeFit:
        whole = WholeFit(replace(setting, learning_rate=rate), tuned, tokenizer)
        whole.load(news.topics[rows])
        whole.train([ids[row] for row in rows])
        return whole

    means = []
    for rate in rates:
        scores = [
            accuracy_score(
                news.topics[test], fitted(rate, train).predict([ids[row] for row in test])
            )
            for train, test in folds
        ]
        means.append(float(np.mean(scores)))
    best = fitted(rates[int(np.argmax(means))], np.arange(len(ids)))

    def predict(texts: NDArray[np.object_]) -> NDArray[np.str_]:
        return best.predict(tokenised(texts, tokenizer, setting.max_length))

    return means, predict


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Search with one arm in this process; the libraries are imported before the clock starts."""
    import _trainer  # noqa: F401

    import skgpt.classifier  # noqa: F401

    news = sample_r8(args.texts, 0)
    setting = Setting(
        max_length=args.length,
        batch=args.batch,
        epochs=args.epochs,
        n_layers=args.layers,
        trainable_layers="all" if arm == "H0" else 4,
        pooling="last",
        device=args.device,
    )
    whole = arm in OURS or arm in args.whole
    rates = args.rates if whole else [args.rates[len(args.rates) // 2]]
    folds = folds_of(news)
    if not whole:
        folds = folds[:1]
    find: Callable[..., Search] = {"S": search_skgpt, "P": search_pruning, "K": search_skorch}.get(
        arm, partial(search_trainer, tuned=arm == "H1")
    )
    began = time.perf_counter()
    means, predict = find(news, setting, rates, folds)
    seconds = time.perf_counter() - began
    memory = peak_memory(args.device)
    test = test_sample(args.test)
    return {
        "seconds": seconds * _work(5, len(args.rates)) / _work(len(folds), len(rates)),
        "means": [100 * mean for mean in means],
        "rate": rates[int(np.nanargmax(means))],
        "cv": 100 * float(np.nanmax(means)),
        "test": 100 * float(accuracy_score(test.topics, predict(test.texts))),
        "memory": memory,
    }


def _work(n_folds: int, n_rates: int) -> float:
    """Return how much a search trains, in fits on a fold; the last one is on a fifth more rows."""
    return n_folds * n_rates + 5 / 4


def main() -> None:
    """Run the arms by turns and print the table, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--whole", nargs="+", default=[], choices=LONG, help="try every rate")
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--length", type=int, default=32, help="tokens per text")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--test", type=int, default=1000, help="articles of the test split")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    arms = [arm for arm in args.arms if arm != "K" or find_spec("skorch")]
    names = ("texts", "length", "batch", "epochs", "layers", "rates", "test", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, arms, args.rounds, {**options, "whole": args.whole or None})
    seconds, memory = medians(runs, "seconds"), medians(runs, "memory")
    cv, test, rate = (medians(runs, key) for key in ("cv", "test", "rate"))
    rows = []
    rivals = [arm for arm in arms if arm not in OURS]
    for arm in arms:
        chosen = [f"{rate[arm]:g}", f"{cv[arm]:.1f}", f"{test[arm]:.1f}"]
        if arm in LONG and arm not in args.whole:
            chosen = [f"({value})" for value in chosen]
        faster = [ratio(seconds, other, arm, times=True) for other in rivals]
        rows.append([arm, f"{seconds[arm]:.0f}", *faster, *chosen, f"{memory[arm]:.2f}"])
    head = [f"faster than {other} by" for other in rivals]
    chosen = ["learning rate", "accuracy over the folds, %", "on the test texts, %"]
    print_table(["Arm", "seconds", *head, *chosen, "peak memory, GiB"], rows)
    for arm in arms:
        means = ", ".join(f"{mean:.1f}" for mean in runs[arm][-1]["means"])
        print(f"{arm}: accuracy over the folds of each rate it tried, %: {means}")
    print_settings(rounds=args.rounds, fits=5 * len(args.rates) + 1, **options)


if __name__ == "__main__":
    main()
