"""Everything of scikit-learn that takes a classifier takes ours: one test each.

The tools are those of examples/benchmarks/every_tool.py, which runs them with the default model on
news. Here they run with a tiny model, and every warning is an error. The first tier runs one tool
of each kind.
"""

import sys
from collections.abc import Iterator
from importlib.util import module_from_spec, spec_from_file_location
from inspect import signature
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
from sklearn.utils.discovery import all_displays, all_estimators, all_functions

from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data

mpl.use("Agg")
BENCHMARKS = Path(__file__).resolve().parents[2] / "examples" / "benchmarks"


def load_script(name: str) -> ModuleType:
    """Import a script of examples/benchmarks, which is no package."""
    spec = spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    script, path = module_from_spec(spec), sys.path.copy()
    try:
        spec.loader.exec_module(script)
    finally:
        sys.path[:] = path
    return script


every_tool = load_script("every_tool")
tools = sys.modules["_tools"]


FIRST_TIER = {
    *("GridSearchCV", "cross_val_predict(method='predict_proba')", "ClassifierChain"),
    *("multilabel y in cross_validate", "cross_validate with GroupKFold and routed weights"),
    "TunedThresholdClassifierCV",
    *("VotingClassifier(voting='soft')", "StackingClassifier", "OneVsRestClassifier"),
    *("CalibratedClassifierCV(method='temperature')", "ColumnTransformer before a template"),
    *("Pipeline(memory=...)", "permutation_importance", "RocCurveDisplay.from_estimator"),
}


def sentences(n_per_class: int) -> TextData:
    """Return texts of three classes, long enough for a title and a body."""
    X, y = make_text_data(n_classes=3, n_per_class=4 * n_per_class)
    parts = [X[y == label].reshape(4, -1) for label in np.unique(y)]
    rows = np.arange(3 * n_per_class).reshape(3, -1).T.ravel()  # the classes in turn
    return TextData(
        np.array([" ".join(text) for part in parts for text in part.T], dtype=object)[rows],
        np.repeat(np.unique(y), n_per_class)[rows],
    )


@pytest.mark.first_tier(name=[*FIRST_TIER])
@pytest.mark.parametrize("name", tools.TOOLS)
def test_tool__on_texts__does_what_it_says(tiny_llama: str, name: str) -> None:
    tool = tools.TOOLS[name]
    if missing := tool.missing():
        pytest.skip(f"needs {missing}")
    assert tools.TOOLS.keys() >= FIRST_TIER
    clf, (X, y) = make(tiny_llama, max_epochs=2), sentences(12)
    params = clf.get_params()
    plt.close("all")  # those of other tests
    with global_random_state_unchanged():
        outcome = tool.run(clf, X, y)
    assert outcome.works in ("yes", "as a column", "no")
    assert (outcome.works == "no") == outcome.result.startswith("no: ")
    assert "\n" not in outcome.result and "|" not in outcome.result  # a cell of a table
    assert clf.get_params() == params and not hasattr(clf, "classes_")
    assert plt.get_fignums() == []


def takers() -> Iterator[str]:
    """Yield the names of everything public in scikit-learn that takes an estimator."""
    parameters = {"estimator", "estimators", "base_estimator", "steps", "transformers"}
    parameters |= {"regressor", "classifier", "covariance_estimator", "transformer_list"}
    for name, thing in [*all_estimators(), *all_functions()]:
        if parameters & set(signature(thing).parameters):
            yield name
    for name, display in all_displays():
        for method in ("from_estimator", "from_cv_results"):
            if hasattr(display, method):
                yield f"{name}.{method}"


def test_tools__all_of_scikit_learn__nothing_is_forgotten() -> None:
    left_out = {name for names in every_tool.LEFT_OUT.values() for name in names}
    found = set(takers())
    forgotten = [
        name
        for name in sorted(found)
        if name.partition(".")[0] not in left_out
        and not any(name in entry for entry in tools.TOOLS)
    ]
    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    if version <= (1, 9):  # a later one may have more
        assert forgotten == []
    assert len(found) > 50
