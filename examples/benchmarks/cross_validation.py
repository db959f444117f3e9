"""Table 3, small fits: a 5-fold cross-validation in scikit-learn, in a loop and with skorch.

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
(`--epochs auto`, for S alone). Importing the libraries comes before the clock starts, in every
arm. `breakdown.py` says where the seconds of S go.

    python examples/benchmarks/cross_validation.py
    python examples/benchmarks/cross_validation.py --arms S --epochs auto
"""

import argparse
import json
import time
from importlib.util import find_spec

import numpy as np
from _arms import (
    Run,
    Setting,
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


def run_skgpt(news: News, setting: Setting) -> list[float]:
    """Cross-validate S."""
    scores = cross_validate(
        setting.classifier(), news.texts, news.topics, cv=folds_of(news), error_score="raise"
    )
    return list(map(float, scores["test_score"]))


def run_trainer(news: News, setting: Setting) -> list[float]:
    """Cross-validate H1 in a loop."""
    from _trainer import WholeFit, load_tokenizer, tokenised

    tokenizer = load_tokenizer()
    ids = tokenised(news.texts, tokenizer, setting.max_length)
    scores = []
    for train, test in folds_of(news):
        whole = WholeFit(setting, tuned=True, tokenizer=tokenizer)
        whole.load(news.topics[train])
        whole.train([ids[row] for row in train])
        predicted = whole.predict([ids[row] for row in test])
        scores.append(float(accuracy_score(news.topics[test], predicted)))
    return scores


def run_skorch(news: News, setting: Setting) -> list[float]:
    """Cross-validate K."""
    from _skorch import skorch_pipeline

    names, codes = np.unique(news.topics, return_inverse=True)
    pipeline = skorch_pipeline(len(names), setting)
    scores = cross_validate(pipeline, news.texts, codes, cv=folds_of(news), error_score="raise")
    return list(map(float, scores["test_score"]))


def run_linear(news: News, setting: Setting) -> list[float]:
    """Cross-validate T."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    linear = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    scores = cross_validate(linear, news.texts, news.topics, cv=folds_of(news))
    return list(map(float, scores["test_score"]))


def one_run(arm: str, args: argparse.Namespace) -> Run:
    """Cross-validate one arm in this process; libraries are imported before the clock starts."""
    import transformers  # noqa: F401

    import skgpt.classifier  # noqa: F401

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
    how = {"H1": run_trainer, "K": run_skorch, "S": run_skgpt, "T": run_linear}[arm]
    began = time.perf_counter()
    scores = how(news, setting)
    return {
        "seconds": time.perf_counter() - began,
        "accuracy": 100 * float(np.mean(scores)),
        "spread": 100 * float(np.std(scores, ddof=1)),
    }


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
