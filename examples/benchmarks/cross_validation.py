"""Table 3, small fits: where the seconds of a 5-fold cross-validation go.

200 articles of Reuters R8, the quickstart's recipe (the first 12 layers, the last 4 trained, 128
tokens, batches of 16, learning rate 2e-4), the same folds for every arm. S is GPTTextClassifier in
scikit-learn's cross_validate. H1 is a loop over the folds with the Trainer: bf16, batches of like
length, the same layers frozen, the model loaded anew for each fold, texts tokenised once. K is
skorch's NeuralNetClassifier behind its Hugging Face tokenizer, in a Pipeline in cross_validate: the
same model and frozen layers, everything else as skorch does it (fp32, texts padded to
`max_length`, a constant learning rate, AdamW). It is left out where skorch isn't installed. T is
TF-IDF of words and bigrams with a linear SVM: the accuracy to beat. The recipe pools the mean; H1
and K, whose model knows no other way, take the last token.

Three epochs make it fit in a quarter of an hour; the quickstart makes up to twelve
(`--epochs auto`, for S alone), so the share of loading and tokenising is higher here than there.
Importing the libraries comes before the clock starts, in every arm.

    python examples/benchmarks/cross_validation.py
    python examples/benchmarks/cross_validation.py --arms S --epochs auto
"""

import argparse
import json
from importlib.util import find_spec
from typing import Any

import numpy as np
from _arms import (
    Run,
    Setting,
    Stopwatch,
    by_turns,
    folds_of,
    medians,
    parser_of,
    print_settings,
    print_table,
)
from _data import News, sample_r8
from sklearn.metrics import accuracy_score
from sklearn.model_selection import cross_validate

ARMS = ["H1", "K", "S", "T"]
PARTS = ["load", "tokenise", "frozen layers", "train", "predict"]


def run_skgpt(news: News, setting: Setting, watch: Stopwatch) -> list[float]:
    """Cross-validate S; a lap of the stopwatch is a fold."""
    import transformers  # noqa: F401  # as in the other arms, before the clock starts

    from skgpt import GPTTextClassifier, fitted_model, fitting
    from skgpt.network import features

    for owner, name, part in (
        (fitting, "load_pretrained", "load"),
        (fitting, "build_network", "load"),
        (fitting, "tokenise_rows", "tokenise"),
        (features, "cache_level", "frozen layers"),
        (features._StateCache, "states", "frozen layers"),
        (fitting, "train", "train"),
        (fitted_model, "raw_scores", "predict"),
    ):
        watch.wrap(owner, name, part)

    class Lapped(GPTTextClassifier):
        def fit(self, X: Any, y: Any) -> Any:
            watch.lap()
            return super().fit(X, y)

    scores = cross_validate(
        setting.classifier(Lapped), news.texts, news.topics, cv=folds_of(news), error_score="raise"
    )
    watch.stop()
    return list(map(float, scores["test_score"]))


def run_trainer(news: News, setting: Setting, watch: Stopwatch) -> list[float]:
    """Cross-validate H1 in a loop."""
    from _trainer import WholeFit, load_tokenizer, tokenised

    scores = []
    ids: list[list[int]] = []
    for train, test in folds_of(news):
        watch.lap()
        if not ids:
            with watch.part("load"):
                tokenizer = load_tokenizer()
            with watch.part("tokenise"):
                ids = tokenised(news.texts, tokenizer, setting.max_length)
        whole = WholeFit(setting, tuned=True, tokenizer=tokenizer)
        with watch.part("load"):
            whole.load(news.topics[train])
        with watch.part("train"):
            whole.train([ids[row] for row in train])
        with watch.part("predict"):
            predicted = whole.predict([ids[row] for row in test])
        scores.append(float(accuracy_score(news.topics[test], predicted)))
    watch.stop()
    return scores


def run_skorch(news: News, setting: Setting, watch: Stopwatch) -> list[float]:
    """Cross-validate K."""
    from _skorch import skorch_pipeline

    names, codes = np.unique(news.topics, return_inverse=True)
    pipeline, tokenizer, net = skorch_pipeline(len(names), setting)
    fit_tokenizer = tokenizer.fit

    def fit(*args: Any, **kwargs: Any) -> Any:
        watch.lap()  # the first step of the pipeline
        with watch.part("load"):
            return fit_tokenizer(*args, **kwargs)

    setattr(tokenizer, "fit", fit)  # noqa: B010
    watch.wrap(net, "initialize", "load")
    watch.wrap(net, "fit_loop", "train")
    watch.wrap(net, "predict", "predict")
    watch.wrap(tokenizer, "transform", "tokenise")
    scores = cross_validate(pipeline, news.texts, codes, cv=folds_of(news), error_score="raise")
    watch.stop()
    return list(map(float, scores["test_score"]))


def run_linear(news: News, setting: Setting, watch: Stopwatch) -> list[float]:
    """Cross-validate T, all five folds as one lap."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    linear = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    watch.lap()
    scores = cross_validate(linear, news.texts, news.topics, cv=folds_of(news))
    watch.stop()
    return list(map(float, scores["test_score"]))


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Cross-validate one arm in this process."""
    news = sample_r8(args.texts, 0)
    setting = Setting(
        max_length=128,
        batch=16,
        epochs=args.epochs,
        learning_rate=2e-4,
        n_layers=args.layers,
        trainable_layers=4,
        pooling="mean",
        device=args.device,
    )
    watch = Stopwatch()
    how = {"H1": run_trainer, "K": run_skorch, "S": run_skgpt, "T": run_linear}[arm]
    scores = how(news, setting, watch)
    seconds = sum(lap["total"] for lap in watch.laps)
    return {
        "seconds": seconds,
        "accuracy": 100 * float(np.mean(scores)),
        "spread": 100 * float(np.std(scores, ddof=1)),
        "laps": watch.laps,
    }


def parts_of(lap: dict[str, float]) -> list[float]:
    """Return the seconds of each part, of everything else, and in all."""
    known = [lap.get(part, 0.0) for part in PARTS]
    return [*known, lap["total"] - sum(known), lap["total"]]


def print_parts(runs: dict[str, list[Run]]) -> None:
    """Print where the seconds of each fold went: medians over the rounds."""
    rows = []
    for arm, done in runs.items():
        if arm == "T":
            continue
        folds = np.median([[parts_of(lap) for lap in run["laps"]] for run in done], axis=0)
        for number, fold in enumerate(folds):
            rows.append([f"{arm}, fold {number + 1}", *(f"{s:.2f}" for s in fold)])
        total = folds.sum(axis=0)
        rows.append([f"{arm}, all", *(f"{s:.1f}" for s in total)])
        rows.append([f"{arm}, share", *(f"{100 * s / total[-1]:.1f} %" for s in total)])
    print_table(["", *PARTS, "everything else", "in all"], rows)
    if "S" in runs:
        laps = [lap for run in runs["S"] for lap in run["laps"]]
        total = np.sum([parts_of(lap) for lap in laps], axis=0)
        bare = total[PARTS.index("train")] + total[PARTS.index("predict")]
        frozen = total[PARTS.index("frozen layers")]
        print(
            f"Of S, {100 * (1 - bare / total[-1]):.1f} % is not the training and predicting of "
            f"the layers that learn; {100 * (1 - (bare + frozen) / total[-1]):.1f} % is neither "
            "that nor running the frozen layers.\n"
        )


def main() -> None:
    """Run the arms by turns and print the tables, or run one arm."""
    parser = parser_of(__doc__, ARMS, rounds=1)
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--epochs", type=lambda word: word if word == "auto" else int(word))
    parser.add_argument("--layers", type=int, default=12)
    parser.set_defaults(epochs=3)
    args = parser.parse_args()
    if args.epochs == "auto" and args.arms != ["S"] and not args.one:
        parser.error("--epochs auto is a rule of skgpt: only with --arms S")
    if args.one:
        print(json.dumps(one_run(args.one, args)))
        return
    arms = [arm for arm in args.arms if arm != "K" or find_spec("skorch")]
    names = ("texts", "epochs", "layers", "device")
    options = {name: getattr(args, name) for name in names}
    runs = by_turns(__file__, arms, args.rounds, options)
    print_parts(runs)
    seconds, accuracy = medians(runs, "seconds"), medians(runs, "accuracy")
    spread = medians(runs, "spread")
    rows = [
        [
            arm,
            f"{seconds[arm]:.1f}",
            f"{seconds[arm] / seconds['S']:.2f}" if "S" in seconds else "-",
            f"{accuracy[arm]:.1f} ± {spread[arm]:.1f}",
        ]
        for arm in arms
    ]
    if arms != args.arms:
        rows.append(["K", "left out: skorch is not installed", "-", "-"])
    print_table(["Arm", "seconds", "S is faster by", "accuracy over the folds, %"], rows)
    print_settings(rounds=args.rounds, **options)


if __name__ == "__main__":
    main()
