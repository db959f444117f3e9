"""What the tests of searches share: small estimators, planted points, what results must equal."""

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skgpt.tuning import GPTSearchCV
from tests.helpers import make, make_text_data

DATA = make_text_data(n_classes=2)
X, y = DATA
# A rate at which nothing is learned, and one at which these texts are.
RATES = {"head_learning_rate": [1e-7, 3e-2]}


def upper(X: Any) -> Any:
    """Change texts in a way that a Pipeline has to undo nowhere."""
    return np.array([text.upper() for text in X], dtype=object)


def piped(folder: str, **options: Any) -> Pipeline:
    return make_pipeline(FunctionTransformer(upper), make(folder, **options))


def search(folder: str, space: Any = RATES, **options: Any) -> GPTSearchCV:
    estimator = options.pop("estimator", None) or make(folder, max_epochs=3)
    return GPTSearchCV(estimator, space, **{"n_trials": 3, "cv": 2, "random_state": 0, **options})


def rows_of(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of cv_results_ by their parameters, without times and ranks."""
    names = [n for n in results if n != "params" and "time" not in n and "rank" not in n]
    return {
        repr(sorted(params.items())): {name: results[name][i] for name in names}
        for i, params in enumerate(results["params"])
    }
