"""GPTTextClassifier as a notebook or a prompt shows it."""

import html
import inspect
import re
from typing import Any

import pandas as pd
import pytest
import sklearn
from numpydoc.docscrape import NumpyDocString
from sklearn.utils import estimator_html_repr

from skgpt import GPTTextClassifier
from skgpt.network.network import TextNetwork
from tests.helpers import TextData

LINK = "https://skgpt.readthedocs.io/en/stable/generated/skgpt.GPTTextClassifier.html"
VERSION = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
DESCRIBED = NumpyDocString(inspect.getdoc(GPTTextClassifier))
needs_attributes = pytest.mark.skipif(VERSION < (1, 9), reason="scikit-learn has it from 1.9 on")


def fit(folder: str, data: TextData, **options: Any) -> GPTTextClassifier:
    X, y = data
    clf = GPTTextClassifier(folder, trainable_layers=1, max_epochs=2, max_length=64, **options)
    return clf.fit(pd.DataFrame({"text": X}), y)


def table(shown: str, title: str) -> dict[str, tuple[str, str]]:
    """Return the kind of each row of a table, and its last cell."""
    (part,) = re.findall(rf"<summary>{title}</summary>(.*?)</table>", shown, flags=re.DOTALL)
    found = {}
    for kind, row in re.findall(r'<tr class="(.*?)">(.*?)</tr>', part, flags=re.DOTALL):
        cells = re.findall(r"<td.*?>(.*?)</td>", row, flags=re.DOTALL)
        (name,) = re.findall(r'class="param">\s*(?:<a.*?>)?\s*(\w+)', row, flags=re.DOTALL)
        found[name] = (kind, html.unescape(re.sub("<.*?>", "", cells[-1])).strip())
    return found


def test_html__documentation__is_linked_by_the_public_name() -> None:
    assert f'href="{LINK}"' in estimator_html_repr(GPTTextClassifier())

    class Elsewhere(GPTTextClassifier):
        def __init__(self) -> None:
            super().__init__()

    Elsewhere.__module__ = "another_package.module"
    assert "readthedocs" not in estimator_html_repr(Elsewhere())


@needs_attributes
def test_html__fitted__shows_its_attributes(tiny_llama: str, two_class_data: TextData) -> None:
    clf = fit(tiny_llama, two_class_data, early_stopping=True, calibrate=True)
    shown = clf._repr_html_()
    assert f"{LINK}#:~:text=history_,-list%20of%20dict" in shown
    rows = table(shown, "Fitted attributes")
    assert set(rows) == {attribute.name for attribute in DESCRIBED["Attributes"]}
    assert rows["n_iter_"] == ("default", "2")
    assert rows["classes_"][1] == "['money','sport']"


def test_html__fitted__runs_nothing_and_shows_no_weights(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = fit(tiny_llama, two_class_data)
    before = dict(vars(clf))

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("nothing heavy is to be evaluated")

    monkeypatch.setattr(TextNetwork, "forward", never)
    monkeypatch.setattr("skgpt._base.pack", never)
    shown = clf._repr_html_() + repr(clf)
    dir(clf)
    assert not re.search(r"tensor\(|TextNetwork|Embedding", shown)
    assert len(shown) < 100_000
    assert vars(clf) == before
