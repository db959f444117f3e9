"""What the tools of every_tool.py share: their list, their outcome, their data."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import sklearn
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

import skgpt
from skgpt import GPTTextClassifier

Texts = NDArray[np.object_]
Labels = NDArray[Any]

N_FOLDS = 2
_TITLE_WORDS = 6


class Outcome(NamedTuple):
    """One line for people, and what it was read off, for tests."""

    result: str
    made: Any
    works: Literal["yes", "as a column", "no"] = "yes"


Run = Callable[[GPTTextClassifier, Texts, Labels], Outcome]


class Tool(NamedTuple):
    """A tool of scikit-learn, tried on a classifier and texts, and the version that has it."""

    run: Run
    since: tuple[int, int]

    def missing(self) -> str | None:
        """Return what this installation lacks for it."""
        if tuple(int(part) for part in sklearn.__version__.split(".")[:2]) < self.since:
            return "scikit-learn {}.{}".format(*self.since)
        return None


TOOLS: dict[str, Tool] = {}


def tool(name: str, *, since: tuple[int, int] = (1, 7)) -> Callable[[Run], Run]:
    """Enter a function in `TOOLS`."""

    def enter(run: Run) -> Run:
        assert name not in TOOLS, name
        TOOLS[name] = Tool(run, since)
        return run

    return enter


def no(reason: str, instead: str, made: Any = None) -> Outcome:
    """Return the outcome of a tool that can't take texts."""
    return Outcome(f"no: {reason}; {instead}", made, works="no")


def as_a_column(reason: str, outcome: Outcome) -> Outcome:
    """Return the outcome of a tool that takes texts as one column, X[:, None], only."""
    return Outcome(f"{outcome.result}; {reason}", outcome.made, works="as a column")


def refused(error: type[Exception], words: str, attempt: Callable[[], object]) -> None:
    """Check that an attempt fails with these words, in scikit-learn and not in skgpt."""
    try:
        attempt()
    except error as raised:
        files = [Path(frame.filename) for frame in traceback.extract_tb(raised.__traceback__)]
        ours = [file for file in files if Path(skgpt.__file__).parent in file.parents]
        if words not in str(raised) or ours:
            raise
    else:
        raise AssertionError(f"It no longer fails with {words!r}: the table is out of date.")


class Halves(NamedTuple):
    """One half of the rows to learn from, the other to judge by."""

    X: Any
    X_test: Any
    y: Labels
    y_test: Labels


def halves(X: Any, y: Labels) -> Halves:
    """Split the rows, stratified."""
    stratify = y if y.ndim == 1 else None
    return Halves(*train_test_split(X, y, test_size=0.5, stratify=stratify, random_state=0))


def judged(model: Any, X: Any, y: Labels, note: str = "") -> Outcome:
    """Fit on one half of the rows and say the accuracy on the other."""
    half = halves(X, y)
    accuracy = accuracy_score(half.y_test, model.fit(half.X, half.y).predict(half.X_test))
    return Outcome(f"accuracy {accuracy:.2f}{note}", model)


def two_classes(X: Texts, y: Labels) -> tuple[Texts, Labels]:
    """Return the rows of the first two classes, for what is binary."""
    rows = np.isin(y, np.unique(y)[:2])
    return X[rows], y[rows]


def two_questions(X: Texts, y: Labels) -> NDArray[np.int64]:
    """Return an indicator matrix: is it the first class, is it a long text?"""
    lengths = np.array([len(text) for text in X])
    return np.column_stack([y == y[0], lengths > np.median(lengths)]).astype(np.int64)


def title_and_body(X: Texts) -> pd.DataFrame:
    """Return the first words of each text and the others, as columns; and one that says nothing."""
    words = [text.split() for text in X]
    return pd.DataFrame(
        {
            "title": [" ".join(of_text[:_TITLE_WORDS]) for of_text in words],
            "body": [" ".join(of_text[_TITLE_WORDS:]) for of_text in words],
            "source": "newswire",
        }
    )


def linear_model() -> Pipeline:
    """Return the usual other model of a text."""
    return make_pipeline(TfidfVectorizer(), LogisticRegression())


def looked_up(rows: Any, texts: Texts) -> NDArray[np.object_]:
    """Return the texts of these rows; columns beside the row numbers go along as text."""
    rows = np.asarray(rows)
    numbers = [[f"{value:g}" for value in row[1:]] for row in rows]
    found = texts[rows[:, 0].astype(int)].reshape(-1, 1)
    return np.hstack([found, np.array(numbers, dtype=object).reshape(len(rows), -1)])


def by_row_number(classifier: GPTTextClassifier, texts: Texts) -> Pipeline:
    """Return a classifier of row numbers, for tools that insist on X being numbers."""
    return make_pipeline(FunctionTransformer(looked_up, kw_args={"texts": texts}), classifier)


def row_numbers(texts: Texts) -> NDArray[np.int64]:
    """Return X for `by_row_number`, shape (n, 1)."""
    return np.arange(len(texts)).reshape(-1, 1)
