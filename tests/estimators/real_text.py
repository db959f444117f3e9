"""Real English for tests that must not download any: what docstrings begin with, by package.

Python, numpy and scikit-learn are there wherever the tests run. Other versions of them have other
sentences, so a test may rely on there being enough of them, not on any one.
"""

import inspect
from collections.abc import Iterator
from importlib import import_module

import numpy as np

from tests.helpers import TextData

_MODULES = {
    "python": (
        *("argparse", "asyncio", "calendar", "contextlib", "csv", "difflib", "email.message"),
        *("functools", "glob", "heapq", "http.client", "itertools", "json", "logging", "os"),
        *("os.path", "pathlib", "random", "re", "shutil", "socket", "string", "subprocess"),
        *("tempfile", "textwrap", "threading", "unittest", "urllib.parse", "zipfile"),
    ),
    "numpy": ("numpy", "numpy.fft", "numpy.linalg", "numpy.ma", "numpy.polynomial"),
    "scikit-learn": (
        *("sklearn.cluster", "sklearn.decomposition", "sklearn.ensemble", "sklearn.linear_model"),
        *("sklearn.manifold", "sklearn.metrics", "sklearn.neighbors", "sklearn.preprocessing"),
        *("sklearn.svm", "sklearn.tree"),
    ),
}
_N_WORDS = range(6, 41)


def real_text(n_per_class: int, n_classes: int = 3, seed: int = 0) -> TextData:
    """Return first paragraphs of docstrings, labelled by package, in random order.

    `X` and `y` are read-only. There are at least 40 texts of each of the three packages.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for label in list(_MODULES)[:n_classes]:  # not sorted, so that an order of appearance shows
        texts = sorted(set(_first_paragraphs(_MODULES[label])))
        rows += [(text, label) for text in rng.permutation(texts)[:n_per_class].tolist()]
        if len(texts) < n_per_class:
            raise ValueError(f"{label} has {len(texts)} texts only. Asked for {n_per_class}.")
    order = rng.permutation(len(rows))
    X = np.array([rows[i][0] for i in order], dtype=object)
    y = np.array([rows[i][1] for i in order], dtype=object)
    X.setflags(write=False)
    y.setflags(write=False)
    return TextData(X, y)


def _first_paragraphs(modules: tuple[str, ...]) -> Iterator[str]:
    for name in modules:
        module = import_module(name)
        for member in getattr(module, "__all__", None) or dir(module):
            thing = getattr(module, member, None)
            if member.startswith("_") or not callable(thing):
                continue
            text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
            # A signature in the place of a sentence would give the package away.
            if len(text.split()) in _N_WORDS and "(" not in text.split()[0] and "->" not in text:
                yield text
