"""Classify texts with a fitted classifier out of a file.

python examples/classify.py news_classifier.joblib "Oil prices rose sharply" "..."
"""

import sys
from pathlib import Path

import joblib


def main(path: str, texts: list[str]) -> None:
    """Print each text with its two most likely classes."""
    if not Path(path).is_file():
        sys.exit(f"There is no file {path!r}: run examples/quickstart.py first, it writes one.")
    classifier = joblib.load(path)
    for text, row in zip(texts, classifier.predict_proba(texts), strict=True):
        best = row.argsort()[::-1][:2]
        said = ", ".join(f"{classifier.classes_[i]} {row[i]:.0%}" for i in best)
        print(f"  {said:<32} {text}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2:])
