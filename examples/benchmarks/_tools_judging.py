"""Tools that judge a classifier or search its parameters: searches, folds, curves, displays."""

from typing import Any

import numpy as np
import pandas as pd
from _tools import (
    N_FOLDS,
    Labels,
    Outcome,
    Texts,
    halves,
    linear_model,
    tool,
    two_classes,
    two_questions,
)
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import (
    f1_score,
    fbeta_score,
    get_scorer,
    make_scorer,
)
from sklearn.model_selection import (
    FixedThresholdClassifier,
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    RandomizedSearchCV,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from sklearn.pipeline import Pipeline

from skgpt import GPTTextClassifier

STRICT: dict[str, Any] = {"cv": N_FOLDS, "error_score": "raise"}
LEARNING_RATES = [1e-3, 1e-2]
SCORERS = [
    *("balanced_accuracy", "f1_macro", "matthews_corrcoef", "neg_log_loss", "roc_auc_ovr"),
    *("roc_auc_ovo_weighted", "top_k_accuracy"),
]
ROWS_PER_GROUP = 2


def _best(search: Any, score: str = "accuracy") -> str:
    best = ", ".join(f"{name}={value:.3g}" for name, value in search.best_params_.items())
    return f"{score} {search.best_score_:.2f}, best {best}"


@tool("GridSearchCV")
def grid_search(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    depths = [2, classifier.n_layers or 3]
    search = GridSearchCV(classifier, {"n_layers": depths}, **STRICT).fit(X, y)
    return Outcome(_best(search), search)


@tool("GridSearchCV between models, as steps of a Pipeline")
def grid_search_models(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    pipeline = Pipeline([("model", classifier)])
    search = GridSearchCV(pipeline, {"model": [classifier, linear_model()]}, **STRICT).fit(X, y)
    gpt, linear = search.cv_results_["mean_test_score"]
    return Outcome(f"accuracy {gpt:.2f} (GPT), {linear:.2f} (TF-IDF)", search)


@tool("RandomizedSearchCV")
def randomized_search(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    space = {"head_learning_rate": loguniform(1e-3, 1e-1)}
    search = RandomizedSearchCV(classifier, space, n_iter=2, random_state=0, **STRICT).fit(X, y)
    return Outcome(_best(search), search)


HALVING: dict[str, Any] = {
    **STRICT,
    "resource": "max_epochs",
    "min_resources": 1,
    "max_resources": 2,
    "factor": 2,
}


@tool("HalvingGridSearchCV(resource='max_epochs')")
def halving_grid_search(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    rates = {"head_learning_rate": LEARNING_RATES}
    search = HalvingGridSearchCV(classifier, rates, random_state=0, **HALVING).fit(X, y)
    return Outcome(f"{_best(search)}; every rung starts afresh", search)


@tool("HalvingRandomSearchCV(resource='max_epochs')")
def halving_random_search(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    space = {"head_learning_rate": loguniform(1e-3, 1e-1)}
    search = HalvingRandomSearchCV(classifier, space, n_candidates=2, random_state=0, **HALVING)
    search.fit(X, y)
    return Outcome(f"{_best(search)}; every rung starts afresh", search)


@tool("cross_val_score")
def cross_val_score_(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    containers = [X, X.tolist(), pd.Series(X), pd.DataFrame({"text": X})]
    scores = [cross_val_score(classifier, texts, y, **STRICT).tolist() for texts in containers]
    assert scores == [scores[0]] * len(scores), scores
    return Outcome(
        f"accuracy {np.mean(scores[0]):.2f} from an array, a list, a Series and a DataFrame",
        scores[0],
    )


@tool("cross_validate")
def cross_validate_(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    made = cross_validate(
        classifier,
        X,
        y,
        scoring=["accuracy", "neg_log_loss"],
        return_estimator=True,
        return_train_score=True,
        return_indices=True,
        **STRICT,
    )
    train, test = made["train_accuracy"].mean(), made["test_accuracy"].mean()
    loss = -made["test_neg_log_loss"].mean()
    return Outcome(f"accuracy {test:.2f} (train {train:.2f}), log-loss {loss:.2f}", made)


@tool("cross_validate with GroupKFold and routed weights")
def routed_weights(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    metadata = {
        "groups": np.arange(len(y)) // ROWS_PER_GROUP,
        "sample_weight": np.linspace(0.5, 2, len(y)),
    }
    with config_context(enable_metadata_routing=True):
        weighted = clone(classifier).set_fit_request(sample_weight=True)
        weighted.set_score_request(sample_weight=True)
        made = cross_validate(
            weighted,
            X,
            y,
            cv=GroupKFold(N_FOLDS),
            params=metadata,
            return_indices=True,
            error_score="raise",
        )
    return Outcome(f"weighted accuracy {made['test_score'].mean():.2f}", {**made, **metadata})


@tool("cross_val_predict(method='predict_proba')")
def cross_val_predict_(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    proba = cross_val_predict(classifier, X, y, cv=N_FOLDS, method="predict_proba")
    return Outcome(f"probabilities of shape {proba.shape}, sums of 1", proba)


@tool("multilabel y in cross_validate")
def multilabel(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    Y = two_questions(X, y)
    scoring = {
        "f1": make_scorer(f1_score, average="samples", zero_division=0),
        "roc_auc": "roc_auc",
    }
    made = cross_validate(
        classifier, X, Y, scoring=scoring, return_estimator=True, return_indices=True, **STRICT
    )
    f1, auc = (made[f"test_{name}"].mean() for name in scoring)
    return Outcome(f"F1 {f1:.2f}, ROC AUC {auc:.2f} over 2 labels", made)


@tool("nested cross-validation")
def nested(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    inner = GridSearchCV(classifier, {"head_learning_rate": LEARNING_RATES}, **STRICT)
    scores = cross_val_score(inner, X, y, **STRICT)
    return Outcome(f"accuracy {scores.mean():.2f}", scores)


@tool("learning_curve")
def learning_curve_(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    sizes, _, test = made = learning_curve(classifier, X, y, train_sizes=[0.5, 1.0], **STRICT)
    scores = ", ".join(f"{s:.2f} from {n}" for n, s in zip(sizes, test.mean(axis=1), strict=True))
    return Outcome(f"accuracy {scores}", made)


@tool("learning_curve(exploit_incremental_learning=True)")
def incremental_curve(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    sizes, _, test = made = learning_curve(
        classifier, X, y, train_sizes=[0.5, 1.0], exploit_incremental_learning=True, **STRICT
    )
    scores = ", ".join(f"{s:.2f} from {n}" for n, s in zip(sizes, test.mean(axis=1), strict=True))
    return Outcome(f"accuracy {scores}, by partial_fit", made)


@tool("validation_curve")
def validation_curve_(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    epochs = [1, 2]
    made = validation_curve(classifier, X, y, param_name="max_epochs", param_range=epochs, **STRICT)
    scores = zip(epochs, made[1].mean(axis=1), strict=True)
    return Outcome("; ".join(f"max_epochs={n}: accuracy {score:.2f}" for n, score in scores), made)


@tool("permutation_test_score")
def permutation_test(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    made = permutation_test_score(classifier, X, y, cv=N_FOLDS, n_permutations=3, random_state=0)
    return Outcome(f"accuracy {made[0]:.2f}, p = {made[2]:.2f} (3 permutations)", made)


@tool("get_scorer and make_scorer")
def scorers(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(X, y)
    fitted = clone(classifier).fit(half.X, half.y)
    every = {name: get_scorer(name) for name in SCORERS}
    every["own"] = make_scorer(fbeta_score, beta=2, average="macro", pos_label=None)
    made = {name: scorer(fitted, half.X_test, half.y_test) for name, scorer in every.items()}
    loss, auc = made["neg_log_loss"], made["roc_auc_ovr"]
    return Outcome(f"neg_log_loss {loss:.2f}, roc_auc_ovr {auc:.2f}, and others", (fitted, made))


@tool("TunedThresholdClassifierCV")
def tuned_threshold(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(*two_classes(X, y))
    tuned = TunedThresholdClassifierCV(
        classifier, scoring="balanced_accuracy", cv=N_FOLDS, random_state=0
    ).fit(half.X, half.y)
    accuracy = get_scorer("balanced_accuracy")(tuned, half.X_test, half.y_test)
    threshold = tuned.best_threshold_
    return Outcome(f"balanced accuracy {accuracy:.2f} at threshold {threshold:.2f}", tuned)


@tool("FixedThresholdClassifier")
def fixed_threshold(classifier: GPTTextClassifier, X: Texts, y: Labels) -> Outcome:
    half = halves(*two_classes(X, y))
    fixed = FixedThresholdClassifier(
        classifier, threshold=0.4, pos_label=half.y[0], response_method="predict_proba"
    ).fit(half.X, half.y)
    share = np.mean(fixed.predict(half.X_test) == half.y[0])
    return Outcome(f"{100 * share:.0f} % called {half.y[0]!r} from 40 % on", fixed)
