"""Everything of scikit-learn that takes a classifier takes ours: one test each.

The tools are those of examples/benchmarks/every_tool.py, which runs them with the default model on
news. Here they run with a tiny model, every warning is an error, and each result is computed again
by hand. The first tier runs one tool of each kind.
"""

import sys
from collections.abc import Iterator
from inspect import signature

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import sklearn
from sklearn.ensemble import VotingClassifier
from sklearn.model_selection import cross_val_score
from sklearn.utils.discovery import all_displays, all_estimators, all_functions

from tests.estimators.tool_checks import CHECKS, Case, every_tool, tools
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data

mpl.use("Agg")


FIRST_TIER = {
    *(
        "GridSearchCV",
        "cross_val_predict(method='predict_proba')",
        "multilabel y in cross_validate",
    ),
    *("cross_validate with GroupKFold and routed weights", "TunedThresholdClassifierCV"),
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


@pytest.mark.parametrize(
    "name",
    [
        name if name in FIRST_TIER else pytest.param(name, marks=pytest.mark.thorough)
        for name in tools.TOOLS
    ],
)
def test_tool__on_texts__does_what_it_says(tiny_llama: str, name: str) -> None:
    tool = tools.TOOLS[name]
    if missing := tool.missing():
        pytest.skip(f"needs {missing}")
    clf, (X, y) = make(tiny_llama, max_epochs=2), sentences(12)
    params = clf.get_params()
    with global_random_state_unchanged():
        outcome = tool.run(clf, X, y)
    assert outcome.works in ("yes", "as a column", "no")
    assert (outcome.works == "no") == outcome.result.startswith("no: ")
    assert "\n" not in outcome.result and "|" not in outcome.result  # a cell of a table
    assert clf.get_params() == params and not hasattr(clf, "classes_")
    assert plt.get_fignums() == []
    CHECKS[name](Case(name, clf, X, y, outcome.made))


def test_checks__the_tools__each_has_one() -> None:
    assert set(CHECKS) == set(tools.TOOLS)
    assert set(tools.TOOLS) >= FIRST_TIER


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


def test_refused__not_by_scikit_learn_in_these_words__raises() -> None:
    tools.refused(ValueError, "invalid literal", lambda: int("x"))
    for words, attempt, expected in (
        ("words", lambda: None, "no longer fails"),
        ("words", lambda: int("x"), "invalid literal"),
        ("Reshape", lambda: make("no-such-folder").fit([1.0], [1]), "Reshape your data"),  # ours
    ):
        with pytest.raises((AssertionError, ValueError), match=expected):
            tools.refused(ValueError, words, attempt)


def test_main__one_tool__prints_a_table(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(every_tool, "news", lambda n_per_topic: tuple(sentences(n_per_topic)))
    monkeypatch.setitem(every_tool.RECIPE, "model", tiny_llama)
    monkeypatch.setattr(sys, "argv", ["every_tool.py", "--only", "rfe", "--small"])
    every_tool.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["| Tool | Works on texts | What came out |", "|---|---|---|"]
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [
        ["| `RFE`", "no"],
        ["| `RFECV`", "no"],
    ]
    assert lines[-1].startswith("2 tools, 36 texts, ")
    monkeypatch.setattr(sys, "argv", ["every_tool.py", "--only", "nonsense"])
    with pytest.raises(SystemExit):
        every_tool.main()


def test_an_ensembles_probabilities__log_loss__are_taken_as_such(tiny_llama: str) -> None:
    X, y = sentences(12)
    vote = VotingClassifier(
        [("gpt", make(tiny_llama, max_epochs=1)), ("linear", tools.linear_model())], voting="soft"
    )
    scores = cross_val_score(vote, X, y, cv=2, scoring="neg_log_loss", error_score="raise")
    assert (scores < 0).all()
