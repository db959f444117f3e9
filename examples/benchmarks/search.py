"""Table 4, a search: six learning rates, five folds, with frozen layers.

120 articles of Reuters R8 cut at 64 tokens, the model's first 16 layers, of which the last 4 learn;
two epochs of batches of 8; the last token's pooling; the same folds for every arm. H1 is a loop
with the Trainer: bf16, batches of like length, the same layers frozen (the embeddings too), the
model loaded anew for each fit, texts tokenised once. H0 is the same loop with the Trainer's default
arguments; it runs one learning rate of the six, and its seconds are multiplied. S is GridSearchCV
over GPTTextClassifier, one candidate after the other and without a refit; "S, no cache" is the same
with the states behind the frozen layers computed anew at every use. Scores are the mean accuracy
over the folds. Both S must agree but for the last digits of bf16. H draws its head, gives it the
trunk's learning rate (S always gives it 1e-3) and shuffles otherwise, so its scores are of another
training of the same length, and stand beside the others for orientation.

    python examples/benchmarks/search.py
    python examples/benchmarks/search.py --texts 100 --rates 1e-4 4e-4
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
from _arms import Run, Setting, by_turns, folds_of, medians, parser_of, print_settings, print_table
from _data import News, sample_r8
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV

ARMS = ["H0", "H1", "S-no-cache", "S"]
NAMES = {"H0": "H0", "H1": "H1", "S-no-cache": "S, no cache", "S": "S"}
BATCH = 8  # small, so that so few texts make some steps
RATES = [3e-5, 6e-5, 1e-4, 2e-4, 4e-4, 8e-4]


def run_skgpt(news: News, setting: Setting, rates: list[float], cached: bool) -> list[float]:
    """Search with GridSearchCV; return the mean score of each learning rate."""
    if not cached:
        _run_every_layer()
    search = GridSearchCV(
        setting.classifier(),
        {"learning_rate": rates},
        cv=folds_of(news),
        n_jobs=None,
        refit=False,
        error_score="raise",
    )
    search.fit(news.texts, news.topics)
    return list(map(float, search.cv_results_["mean_test_score"]))


def _run_every_layer() -> None:
    """Have fits and predictions run the frozen layers at every use."""
    from skgpt.network import features

    def tokens_alone(*_: Any) -> features.CacheLevel:
        return features.CacheLevel.TOKENS

    features.cache_level = tokens_alone  # type: ignore[assignment]


def run_trainer(news: News, setting: Setting, rates: list[float], tuned: bool) -> list[float]:
    """Search with the Trainer in two loops; return the mean score of each learning rate."""
    from _trainer import WholeFit, load_tokenizer, tokenised

    tokenizer = load_tokenizer()
    ids = tokenised(news.texts, tokenizer, setting.max_length)
    means = []
    for rate in rates:
        scores = []
        for train, test in folds_of(news):
            whole = WholeFit(replace(setting, learning_rate=rate), tuned, tokenizer)
            whole.load(news.topics[train])
            whole.train([ids[row] for row in train])
            predicted = whole.predict([ids[row] for row in test])
            scores.append(accuracy_score(news.topics[test], predicted))
        means.append(float(np.mean(scores)))
    return means


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Search with one arm in this process; the libraries are imported before the clock starts."""
    import _trainer  # noqa: F401

    import skgpt.classifier  # noqa: F401

    news = sample_r8(args.texts, 0)
    setting = Setting(
        max_length=args.length,
        batch=BATCH,
        epochs=args.epochs,
        n_layers=args.layers,
        trainable_layers=4,
        pooling="last",
        device=args.device,
    )
    began = time.perf_counter()
    if arm == "H0":
        middle = len(args.rates) // 2
        (score,) = run_trainer(news, setting, [args.rates[middle]], tuned=False)
        scores = [score if i == middle else np.nan for i in range(len(args.rates))]
        return {"seconds": (time.perf_counter() - began) * len(args.rates), "scores": scores}
    if arm == "H1":
        scores = run_trainer(news, setting, args.rates, tuned=True)
    else:
        scores = run_skgpt(news, setting, args.rates, cached=arm == "S")
    return {"seconds": time.perf_counter() - began, "scores": scores}


def print_scores(runs: dict[str, list[Run]], rates: list[float]) -> None:
    """Print the mean score of each learning rate and how far the arms are apart."""
    scores = {arm: np.mean([run["scores"] for run in done], axis=0) for arm, done in runs.items()}
    rows = [
        [NAMES[arm], *("-" if np.isnan(s) else f"{100 * s:.1f}" for s in own)]
        for arm, own in scores.items()
    ]
    print_table(["Accuracy, %", *(f"{rate:g}" for rate in rates)], rows)
    for arm, own in scores.items():
        if arm != "S" and "S" in scores:
            apart = 100 * (scores["S"] - own)
            print(
                f"{NAMES[arm]} and S: largest difference {np.nanmax(np.abs(apart)):.1f} points, "
                f"mean difference {np.nanmean(apart):+.1f} (S less {NAMES[arm]})."
            )


def main() -> None:
    """Run the arms by turns and print the tables, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--texts", type=int, default=120)
    parser.add_argument("--length", type=int, default=64, help="tokens per text")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    names = ("texts", "length", "epochs", "layers", "rates", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, args.arms, args.rounds, options)
    seconds = medians(runs, "seconds")
    n_fits = 5 * len(args.rates)
    rows = [
        [
            NAMES[arm],
            f"{seconds[arm]:.0f}",
            f"{seconds[arm] / n_fits:.1f}",
            *(f"{seconds[h] / seconds[arm]:.2f}" if h in seconds else "-" for h in ("H0", "H1")),
        ]
        for arm in args.arms
    ]
    print_table(["Arm", "seconds", "of each fit", "faster than H0 by", "than H1"], rows)
    print_scores(runs, args.rates)
    print()
    print_settings(rounds=args.rounds, fits=n_fits, batches_of=BATCH, **options)


if __name__ == "__main__":
    main()
