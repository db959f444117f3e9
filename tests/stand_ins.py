"""Stand-ins for packages of docs/recipes that are too large to install for a test.

Each asks of the classifier what the package asks, checks the answer, and returns something of the
package's form. Where the package itself is installed, the recipes run with it.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from huggingface_hub import HfApi
from numpy.typing import NDArray
from sklearn.base import clone

Predict = Callable[[Any], NDArray[Any]]


def modules() -> dict[str, ModuleType]:
    """Return the modules of all stand-ins by name."""
    return {
        "lime": _module("lime"),
        "lime.lime_text": _module("lime.lime_text", LimeTextExplainer=LimeTextExplainer),
        "shap": _module("shap", Explainer=ShapExplainer, maskers=SimpleNamespace(Text=re.compile)),
        "mlflow": _mlflow(),
        "skactiveml": _module("skactiveml"),
        "skactiveml.classifier": _module("skactiveml.classifier", SklearnClassifier=Partly),
        "skactiveml.pool": _module("skactiveml.pool", UncertaintySampling=UncertaintySampling),
    }


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


def _probabilities(predict: Predict, texts: list[str], n_classes: int) -> NDArray[Any]:
    proba = predict(texts)
    assert isinstance(proba, np.ndarray) and proba.shape == (len(texts), n_classes)
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-5)
    return proba


class LimeTextExplainer:
    """Leaves words out at random, the empty text among the results, as LIME does."""

    def __init__(self, class_names: list[str], random_state: int) -> None:
        self.class_names, self.rng = class_names, np.random.default_rng(random_state)

    def explain_instance(
        self, text: str, predict: Predict, num_features: int, num_samples: int
    ) -> Any:
        words = text.split()
        kept = self.rng.random((num_samples, len(words))) < 0.5
        kept[0], kept[-1] = True, False
        texts = [" ".join(np.array(words)[row]) for row in kept]
        proba = _probabilities(predict, texts, len(self.class_names))
        weights, *_ = np.linalg.lstsq(np.c_[kept, np.ones(num_samples)], proba[:, 1], rcond=None)
        pairs = list(zip(words, weights, strict=False))[:num_features]
        return SimpleNamespace(as_list=lambda: pairs)


class ShapExplainer:
    """Takes words away from the left: the differences add up, as Shapley values do."""

    def __init__(
        self, predict: Predict, masker: re.Pattern[str], output_names: list[str], seed: int
    ) -> None:
        self.predict, self.masker, self.n_classes = predict, masker, len(output_names)

    def __call__(self, texts: list[str], silent: bool) -> Any:
        (text,) = texts
        starts = [0, *(found.end() for found in self.masker.finditer(text)), len(text)]
        masked = [text[start:] for start in starts]
        proba = _probabilities(self.predict, masked, self.n_classes)
        values = (proba[:-1] - proba[1:])[None]
        return SimpleNamespace(values=values, base_values=proba[-1:], shape=values.shape)


class Partly:
    """Fits a clone on the rows that have a label, and checks that X is numbers."""

    def __init__(self, estimator: Any, classes: list[str], missing_label: None) -> None:
        self.estimator, self.classes = estimator, classes

    def fit(self, X: NDArray[Any], y: NDArray[Any]) -> "Partly":
        X = np.asarray(X, dtype=float)
        known = np.array([label is not None for label in y])
        self.estimator_ = clone(self.estimator).fit(X[known], y[known])
        assert self.estimator_.classes_.tolist() == self.classes
        return self

    def predict(self, X: NDArray[Any]) -> NDArray[Any]:
        return self.estimator_.predict(np.asarray(X, dtype=float))


class UncertaintySampling:
    """Chooses the unlabelled rows between whose two likeliest classes there is least."""

    def __init__(self, method: str, missing_label: None, random_state: int) -> None:
        assert method == "margin_sampling"

    def query(
        self, X: NDArray[Any], y: NDArray[Any], clf: Partly, batch_size: int
    ) -> NDArray[np.intp]:
        fitted = clf.fit(X, y).estimator_
        proba = np.sort(_probabilities(fitted.predict_proba, X.astype(float), len(clf.classes)))
        margins = proba[:, -1] - proba[:, -2]
        margins[[label is not None for label in y]] = np.inf
        return np.argsort(margins)[:batch_size]


def _mlflow() -> ModuleType:
    """Return what keeps one run, and takes of a metric only the numbers that MLflow takes."""
    run = SimpleNamespace(
        info=SimpleNamespace(run_id="0"), data=SimpleNamespace(metrics={}, params={})
    )

    @contextmanager
    def start_run() -> Iterator[Any]:
        yield run

    def log_metrics(metrics: dict[str, float], step: int) -> None:
        run.data.metrics.update({name: float(value) for name, value in metrics.items()})

    def log_params(params: dict[str, Any]) -> None:
        run.data.params.update({name: str(value) for name, value in params.items()})

    def log_artifacts(folder: str, name: str) -> None:
        shutil.copytree(folder, Path("artifacts", name))

    return _module(
        "mlflow",
        set_tracking_uri=lambda uri: None,
        start_run=start_run,
        log_metrics=log_metrics,
        log_params=log_params,
        log_artifacts=log_artifacts,
        get_run={"0": run}.__getitem__,
    )


def create_repo(hub: HfApi, repo_id: str, *, private: bool, exist_ok: bool) -> None:
    """Make a folder here, in the hub's place."""
    Path(repo_id).mkdir(parents=True)


def upload_folder(hub: HfApi, *, repo_id: str, folder_path: str) -> None:
    """Copy a folder into the one in the hub's place, which `create_repo` made."""
    shutil.copytree(folder_path, repo_id, dirs_exist_ok=True)
