"""A news desk has labelled 300 articles and wants the rest sorted.

Fine-tunes a pretrained GPT on 300 Reuters articles, judges it on the whole official test set of
2,189 beside a linear model trained on the same 300, and keeps the fitted classifier in a file that
another process opens to sort three headlines.

    python examples/quickstart.py
"""

import argparse
import subprocess
import sys
import time
import warnings
from pathlib import Path

import joblib
from _data import load_r8, sample_r8
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, classification_report
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning

HEADLINES = [
    "OPEC ministers agree to cut crude oil output after prices fall below 15 dollars a barrel",
    "Regional lender says it will buy its smaller rival for 40 million dollars in shares",
    "Central bank raises its key lending rate by half a point to keep inflation in check",
]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a quick look: 100 texts, 1 epoch")
    parser.add_argument(
        "--out", type=Path, default=Path("news_classifier.joblib"), help="the file to keep"
    )
    args = parser.parse_args()

    train = sample_r8(300, seed=0)
    test = load_r8("test")
    # The trunk's first 12 layers, of which the last 4 learn: the others are computed only once.
    classifier = GPTTextClassifier(
        n_layers=12,
        trainable_layers=4,
        pooling="mean",
        max_length=128,
        batch_size=16,
        learning_rate=2e-4,
        random_state=0,
        verbose=1,
    )
    if args.small:
        train, test = sample_r8(100, seed=0), type(test)(test.texts[:100], test.topics[:100])
        classifier.set_params(max_epochs=1)

    # Some articles are longer than 128 tokens; what they are about is said at their beginning.
    warnings.filterwarnings("ignore", category=CutTextsWarning)

    print(f"Training on {len(train.texts)} labelled articles of {len(set(train.topics))} topics.")
    began = time.perf_counter()
    classifier.fit(train.texts, train.topics)
    print(f"Fitted in {time.perf_counter() - began:.0f} s. Predicting ...\n")

    began = time.perf_counter()
    predicted = classifier.predict(test.texts)
    seconds = time.perf_counter() - began
    print(f"GPTTextClassifier on {len(test.texts)} unseen articles ({seconds:.0f} s):")
    print(classification_report(test.topics, predicted, digits=3, zero_division=0))

    linear = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC())
    linear_predicted = linear.fit(train.texts, train.topics).predict(test.texts)
    print(f"TF-IDF + linear SVM, trained on the same {len(train.texts)}:")
    print(classification_report(test.topics, linear_predicted, digits=3, zero_division=0))

    ours = 100 * accuracy_score(test.topics, predicted)
    theirs = 100 * accuracy_score(test.topics, linear_predicted)
    winner = "the fine-tuned GPT" if ours > theirs else "the linear model"
    print(f"Accuracy: GPT {ours:.1f} %, linear {theirs:.1f} %. The winner is {winner}.\n")

    joblib.dump(classifier, args.out)
    print(f"Saved {args.out} ({args.out.stat().st_size / 1e6:.0f} MB). In a fresh process:")
    script = Path(__file__).with_name("classify.py")
    subprocess.run([sys.executable, str(script), str(args.out), *HEADLINES], check=True)


if __name__ == "__main__":
    main()
