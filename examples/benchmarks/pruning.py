"""Table 5b, pruning: 20 trials of 8 epochs on five folds, whole, and given up by a pruner.

The beginnings (16 tokens, about a headline) of 300 articles of Reuters R8; the model's first 16
layers, of which the last 4 learn; batches of 16; the last token's pooling. Every arm is a
GPTSearchCV over the same 20 points, drawn at random, on the same folds, so an arm trains nothing
that the unpruned one doesn't. What it chose is fitted on all texts with three seeds and judged on
all 2,189 articles of the test split; that is not timed.

Two folds of a trial go ahead, and a pruner decides by their mean score; the other three follow.
Epochs come to the same weights whether a trial is pruned later on or not. So what the other pruners
would have given up follows from the scores of the unpruned arm: they are told these in the same
order, and the epochs counted. That of an arm which ran must come to the number it trained.

Memory is what the process has resident after the second trial, and after the last one.

    python examples/benchmarks/pruning.py
    python examples/benchmarks/pruning.py --texts 100 --epochs 4 --trials 6 --test 50
"""

import argparse
import json
import time
from typing import Any

import numpy as np
import optuna
import psutil
from _arms import (
    Run,
    Setting,
    by_turns,
    folds_of,
    medians,
    parser_of,
    print_settings,
    print_table,
    ratio,
    test_sample,
)
from _data import sample_r8
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler
from optuna.trial import TrialState
from sklearn.base import clone
from sklearn.metrics import accuracy_score

from skgpt.tuning.study import make_pruner

PRUNERS = {"unpruned": None, "halving": "halving", "median": "median"}
REPLAYED = ("median", "percentile", "halving", "hyperband")
SPACE = {
    "learning_rate": FloatDistribution(1e-5, 3e-3, log=True),
    "head_learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "weight_decay": FloatDistribution(1e-3, 1e-1, log=True),
}
SEEDS = (0, 1, 2)
N_FOLDS, N_AHEAD = 5, 2


def note_memory(resident: list[int]) -> None:
    """Have every trial that ends note down how much memory the process has resident."""
    from skgpt.tuning.trial_store import TrialStore

    finish = TrialStore.finish

    def noting(self: Any, *args: Any) -> bool:
        counts = finish(self, *args)
        resident.append(psutil.Process().memory_info().rss)
        return counts

    TrialStore.finish = noting  # type: ignore[method-assign]


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Search with one pruner; the libraries are imported before the clock starts."""
    import skgpt.classifier  # noqa: F401
    from skgpt.tuning import GPTSearchCV

    news = sample_r8(args.texts, 0)
    setting = Setting(
        max_length=args.length,
        epochs=args.epochs,
        n_layers=args.layers,
        trainable_layers=4,
        pooling="last",
        device=args.device,
    )
    resident: list[int] = []
    note_memory(resident)
    search = GPTSearchCV(
        setting.classifier(),
        SPACE,
        n_trials=args.trials,
        cv=folds_of(news),
        pruner=PRUNERS[arm],
        sampler=RandomSampler(seed=0),
        refit=False,
        error_score="raise",
        random_state=0,
    )
    began = time.perf_counter()
    search.fit(news.texts, news.topics)
    seconds = time.perf_counter() - began
    test = test_sample(args.test)
    accuracies = []
    for seed in SEEDS:
        chosen = clone(search.estimator).set_params(**search.best_params_, random_state=seed)
        predicted = chosen.fit(news.texts, news.topics).predict(test.texts)
        accuracies.append(100 * float(accuracy_score(test.topics, predicted)))
    states = list(search.cv_results_["trial_state"])
    n_folds = [N_FOLDS if state == "COMPLETE" else N_AHEAD for state in states]
    return {
        "seconds": seconds,
        "epochs": int(np.sum(search.cv_results_["n_epochs"] * n_folds)),
        "whole": states.count("COMPLETE"),
        "chosen": int(search.best_index_),
        "cv": 100 * float(search.best_score_),
        "test": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)),
        "after 2": resident[1] / 2**30,
        "after all": resident[-1] / 2**30,
        "curves": [trial.intermediate_values for trial in search.study_.trials],
        "scores": [trial.value for trial in search.study_.trials],
    }


def replay(pruner: str, curves: list[dict[str, float]], scores: list[float]) -> int:
    """Return how many epochs of a fold a pruner would have had trained."""
    study = optuna.create_study(direction="maximize", pruner=make_pruner(pruner))
    epochs = 0
    for curve, whole in zip(curves, scores, strict=True):
        trial = study.ask()
        for epoch, score in curve.items():
            trial.report(score, int(epoch))
            epochs += N_AHEAD
            if trial.should_prune():
                study.tell(trial, state=TrialState.PRUNED)
                break
        else:
            epochs += (N_FOLDS - N_AHEAD) * len(curve)
            study.tell(trial, whole)
    return epochs


def main() -> None:
    """Run the arms by turns and print the table, or run one arm."""
    parser = parser_of(__doc__, list(PRUNERS), rounds=1)
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--length", type=int, default=16, help="tokens per text")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--test", type=int, default=2189, help="articles of the test split")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    names = ("texts", "length", "epochs", "layers", "trials", "test", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, args.arms, args.rounds, options)
    seconds, epochs = medians(runs, "seconds"), medians(runs, "epochs")
    if "unpruned" in runs:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        told = runs["unpruned"][-1]["curves"], runs["unpruned"][-1]["scores"]
        counted = {pruner: replay(pruner, *told) for pruner in REPLAYED}
        print_table(
            ["Pruner", "epochs of a fold", "fewer by"],
            [[name, n, f"{epochs['unpruned'] / n:.2f}"] for name, n in counted.items()],
        )
    rows = []
    for arm in args.arms:
        one = runs[arm][-1]
        rows.append(
            [
                arm,
                f"{seconds[arm]:.0f}",
                ratio(seconds, "unpruned", arm, times=True) if "unpruned" in seconds else "-",
                f"{epochs[arm]:.0f}",
                ratio(epochs, "unpruned", arm, times=True) if "unpruned" in epochs else "-",
                f"{one['whole']} of {args.trials}",
                one["chosen"],
                f"{one['cv']:.1f}",
                f"{one['test']:.1f} ± {one['sd']:.1f}",
                f"{one['after 2']:.2f}, {one['after all']:.2f}",
            ]
        )
    head = [
        "Pruner",
        "seconds",
        "faster by",
        "epochs of a fold",
        "fewer by",
        "trials trained whole",
    ]
    head += ["trial chosen", "its accuracy over the folds, %", "on the test texts, %"]
    print_table([*head, "GiB after 2 trials and after all"], rows)
    print_settings(rounds=args.rounds, folds=5, **options)


if __name__ == "__main__":
    main()
