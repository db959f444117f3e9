"""A news desk has labelled 300 articles and wants the rest sorted.

Fine-tunes a pretrained GPT on 300 Reuters articles, with no parameter set, judges it on the whole
official test set of 2,189 beside two linear models trained on the same 300, and keeps the fitted
classifier in a file that another process opens to sort three headlines.

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
from sklearn.metrics import classification_report
from sklearn.model_selection import GridSearchCV, KFold
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
    classifier = GPTTextClassifier(random_state=0, verbose=1)
    encoder = GPTTextClassifier("minilm-l6", trainable_layers=0, random_state=0)
    words = make_pipeline(TfidfVectorizer(sublinear_tf=True), LinearSVC())
    grid = {"tfidfvectorizer__ngram_range": [(1, 1), (1, 2)], "linearsvc__C": [0.1, 1, 10]}
    rivals = {
        "frozen MiniLM + linear model": encoder,
        "TF-IDF + linear SVM": GridSearchCV(words, grid, cv=KFold(3)),
    }
    if args.small:
        train, test = sample_r8(100, seed=0), type(test)(test.texts[:100], test.topics[:100])
        classifier.set_params(max_epochs=1, max_length=64)

    # Some articles are longer than 256 tokens; what they are about is said at their beginning.
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

    right = {"fine-tuned GPT": 100 * (predicted == test.topics).mean()}
    for name, rival in rivals.items():
        rival.fit(train.texts, train.topics)
        right[name] = 100 * rival.score(test.texts, test.topics)
    print(f"Accuracy of all, trained on the same {len(train.texts)}:")
    for name, percent in right.items():
        print(f"  {percent:.1f} %  {name}")
    print(f"The winner is: {max(right, key=lambda name: right[name])}.\n")

    joblib.dump(classifier, args.out)
    print(f"Saved {args.out} ({args.out.stat().st_size / 1e6:.0f} MB). In a fresh process:")
    script = Path(__file__).with_name("classify.py")
    subprocess.run([sys.executable, str(script), str(args.out), *HEADLINES], check=True)


if __name__ == "__main__":
    main()
