"""Tools that look into a fitted classifier: importances, dependences, displays."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
from _tools import (
    N_FOLDS,
    Labels,
    Outcome,
    Texts,
    as_a_column,
    halves,
    no,
    refused,
    title_and_body,
    tool,
    two_classes,
)
from sklearn.base import clone
from sklearn.calibration import CalibrationDisplay
from sklearn.inspection import (
    DecisionBoundaryDisplay,
    PartialDependenceDisplay,
    partial_dependence,
    permutation_importance,
)
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    DetCurveDisplay,
    PrecisionRecallDisplay,
    RocCurveDisplay,
)
from sklearn.model_selection import (
    LearningCurveDisplay,
    ValidationCurveDisplay,
    cross_validate,
)

from skgpt import GPTTextClassifier


def _importance_on(fitted: Any, frame: pd.DataFrame, y: Labels, **options: Any) -> Outcome:
    made = permutation_importance(fitted, frame, y, n_repeats=2, random_state=0, **options)
    means = zip(frame.columns, made.importances_mean, strict=True)
    return Outcome(", ".join(f"{name} {mean:.2f}" for name, mean in means), made)


@tool("permutation_importance")
def importance(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(title_and_body(X), y)
    fitted = clone(classifier).fit(half.X, half.y)
    refused(
        ValueError,
        "Expected 2D array, got 1D array instead",
        lambda: permutation_importance(fitted, X, y),
    )
    outcome = _importance_on(fitted, half.X_test, half.y_test)
    return as_a_column("it shuffles columns, so 1-D texts are refused", outcome)


@tool("permutation_importance(sample_weight=...)")
def weighted_importance(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(title_and_body(X), y)
    weight = np.linspace(0.5, 2, len(half.y_test))
    fitted = clone(classifier).fit(half.X, half.y)
    return _importance_on(fitted, half.X_test, half.y_test, sample_weight=weight)


@tool("permutation_importance of a template's fields")
def template_importance(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(title_and_body(X), y)
    laid_out = clone(classifier).set_params(template="{title}\n{body}").fit(half.X, half.y)
    return _importance_on(laid_out, half.X_test, half.y_test)


def with_length(X: Texts) -> pd.DataFrame:
    """Return the texts beside a word for their length, as columns."""
    median = np.median([len(text) for text in X])
    lengths = ["long" if len(text) > median else "short" for text in X]
    return pd.DataFrame({"length": lengths, "text": X})


@tool("partial_dependence")
def dependence(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(with_length(X), y)
    fitted = clone(classifier).fit(half.X, half.y)
    refused(IndexError, "tuple index out of range", lambda: partial_dependence(fitted, X, [0]))
    made = partial_dependence(fitted, half.X_test, ["length"], categorical_features=["length"])
    means = zip(made["grid_values"][0], made["average"][0], strict=True)
    shown = ", ".join(f"{value} {mean:.2f}" for value, mean in means)
    outcome = Outcome(f"P({fitted.classes_[0]}) {shown}", (fitted, made))
    return as_a_column("it sets a column to each of its words, so 1-D texts are refused", outcome)


@contextmanager
def _figures_closed() -> Iterator[None]:
    """Close what a display draws; it is computed all the same."""
    import matplotlib.pyplot as plt

    try:
        yield
    finally:
        plt.close("all")


@tool("PartialDependenceDisplay.from_estimator")
def dependence_display(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(with_length(X), y)
    fitted = clone(classifier).fit(half.X, half.y)
    with _figures_closed():
        display = PartialDependenceDisplay.from_estimator(
            fitted,
            half.X_test,
            ["length"],
            categorical_features=["length"],
            target=fitted.classes_[0],
        )
    return Outcome("drawn, of a column of words", (fitted, display), works="as a column")


@tool("DecisionBoundaryDisplay.from_estimator")
def boundary(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    frame = title_and_body(X)[["title", "body"]]
    fitted = clone(classifier).fit(frame, y)
    refused(
        TypeError,
        "unsupported operand type(s) for -: 'str' and 'float'",
        lambda: DecisionBoundaryDisplay.from_estimator(fitted, frame),
    )
    return no(
        "it lays a grid between the least and greatest number of two columns",
        "draw a linear model of two columns of numbers instead",
    )


def _fitted_on_two(classifier: GPTTextClassifier, X: Texts, y: Labels) -> tuple[Any, Any]:
    half = halves(*two_classes(X, y))
    return clone(classifier).fit(half.X, half.y), half


def _enter_display(display: Any, says: str, **options: Any) -> None:
    @tool(f"{display.__name__}.from_estimator")
    def draw(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        fitted, half = _fitted_on_two(classifier, X, y)
        with _figures_closed():
            drawn = display.from_estimator(fitted, half.X_test, half.y_test, **options)
        return Outcome(says.format(drawn), (fitted, half, drawn))


_enter_display(RocCurveDisplay, "area {0.roc_auc:.2f}")
_enter_display(PrecisionRecallDisplay, "average precision {0.average_precision:.2f}")
_enter_display(DetCurveDisplay, "drawn")
_enter_display(CalibrationDisplay, "drawn", n_bins=3)


@tool("ConfusionMatrixDisplay.from_estimator")
def confusion(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    fitted = clone(classifier).fit(half.X, half.y)
    with _figures_closed():
        drawn = ConfusionMatrixDisplay.from_estimator(fitted, half.X_test, half.y_test)
    right = np.trace(drawn.confusion_matrix)
    return Outcome(f"{right} of {len(half.y_test)} on the diagonal", (fitted, half, drawn))


def _enter_fold_display(display: Any, areas: str, since: tuple[int, int]) -> None:
    @tool(f"{display.__name__}.from_cv_results", since=since)
    def draw(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        X, y = two_classes(X, y)
        folds = cross_validate(
            classifier,
            X,
            y,
            cv=N_FOLDS,
            return_estimator=True,
            return_indices=True,
            error_score="raise",
        )
        with _figures_closed():
            drawn = display.from_cv_results(folds, X, y, pos_label=np.unique(y)[1])
        shown = " and ".join(f"{area:.2f}" for area in getattr(drawn, areas))
        return Outcome(f"areas {shown}", (folds, drawn))


_enter_fold_display(RocCurveDisplay, "roc_auc", (1, 7))
_enter_fold_display(PrecisionRecallDisplay, "average_precision", (1, 9))


def _enter_curve_display(display: Any, x_values: str, **options: Any) -> None:
    @tool(f"{display.__name__}.from_estimator")
    def draw(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
        with _figures_closed():
            drawn = display.from_estimator(
                classifier, X, y, cv=N_FOLDS, error_score="raise", **options
            )
        means = zip(getattr(drawn, x_values), drawn.test_scores.mean(axis=1), strict=True)
        return Outcome("accuracy " + ", ".join(f"{s:.2f} at {x}" for x, s in means), drawn)


_enter_curve_display(LearningCurveDisplay, "train_sizes", train_sizes=[0.5, 1.0])
_enter_curve_display(
    ValidationCurveDisplay, "param_range", param_name="max_epochs", param_range=[1, 2]
)


@tool("set_callbacks(ScoringMonitor)", since=(1, 9))
def monitored(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    from sklearn.callback import ScoringMonitor

    half = halves(X, y)
    monitor = ScoringMonitor(scoring="accuracy")
    fitted = clone(classifier).set_callbacks(monitor).fit(half.X, half.y)
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    made = [row["accuracy"] for row in sorted(rows, key=lambda row: row["task_id_path"])]
    shown = ", ".join(f"{score:.2f}" for score in made)
    return Outcome(f"train accuracy {shown} after each epoch", (fitted, made))
