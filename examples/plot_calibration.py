"""
Probabilities that can be acted on
==================================

A help desk files its mail by topic. What the model is sure of is filed at once, and a person looks
at the rest. That works if the model means what it says: of all mails that it gives 90 %, nine out
of ten should be right. A fine-tuned model tends to be surer than that. This example measures how
much surer, and mends it with one parameter.

It takes a minute or two on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# A model that is too sure of itself
# ----------------------------------
#
# The mails are the openings of messages to twenty newsgroups, about thirty words each, which makes
# the topics hard to tell apart. 480 of them are labelled.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from _data import load_news, sample_news
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import accuracy_score

from skgpt import GPTTextClassifier

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small

from skgpt.testing import tiny_gpt

# sphinx_gallery_end_ignore

N_TEST = 600
folder = tempfile.TemporaryDirectory()
clf = GPTTextClassifier(
    n_layers=10,
    trainable_layers=2,
    pooling="mean",
    max_length=64,
    max_epochs=10,
    batch_size=16,
    learning_rate=3e-4,
    calibrate=True,
    validation_fraction=0.2,
    random_state=0,
)
# sphinx_gallery_start_ignore
if SMALL:
    load_news = lambda name, split: load_small(split)  # noqa: E731
    sample_news = lambda name, n, seed: sample_small(n, seed)  # noqa: E731
    clf.set_params(model=tiny_gpt(folder.name), n_layers=None, trainable_layers=1, max_epochs=2)
# sphinx_gallery_end_ignore


def openings(texts: NDArray[np.object_]) -> list[str]:
    return [" ".join(text.split()[:30]) for text in texts]


train, whole_test = sample_news("20ng", 480, seed=0), load_news("20ng", "test")
some = np.random.default_rng(0).permutation(len(whole_test.texts))[:N_TEST]
X_test, y_test = openings(whole_test.texts[some]), whole_test.topics[some]
clf.fit(openings(train.texts), train.topics)

# %%
# ``calibrate=True`` trains on four fifths of the rows and predicts the other fifth. From these
# predictions it finds a temperature: one number that divides all scores. Nothing is trained a
# second time. ``calibration_`` compares those rows before and after.

for name, value in clf.calibration_.items():
    print(f"{name:<13} {value:.3g}")

# %%
# A temperature above one makes the model less sure. It changes no prediction, since it divides all
# scores of a text alike. ``decision_function`` returns the undivided scores: their softmax is the
# probabilities without calibration.

after = clf.predict_proba(X_test)
before = softmax(clf.decision_function(X_test), axis=1)
labels = clf.classes_[after.argmax(axis=1)]
assert np.array_equal(labels, clf.classes_[before.argmax(axis=1)])
is_right = labels == y_test
print(f"Right: {accuracy_score(y_test, labels):.1%} of {len(y_test)} messages")
print(f"Mean confidence before: {before.max(axis=1).mean():.1%}")
print(f"Mean confidence after:  {after.max(axis=1).mean():.1%}")

# %%
# Is it as right as it is sure?
# -----------------------------
#
# The messages of the test split, sorted by how sure the model is, in ten groups of the same size.
# On the dashed line a group is as often right as it was said to be. Below it the model is too
# sure.

BEFORE, AFTER = "#E69F00", "#0072B2"


def reliability(
    proba: NDArray[np.float64], is_right: NDArray[np.bool_], n_groups: int = 10
) -> NDArray[np.float64]:
    """Return mean confidence and share of right answers, one row per group."""
    sure = proba.max(axis=1)
    groups = np.array_split(np.argsort(sure), n_groups)
    return np.array([[sure[group].mean(), is_right[group].mean()] for group in groups])


def plot_reliability(curves: dict[str, NDArray[np.float64]], ax: Axes) -> None:
    ax.plot([0, 100], [0, 100], "--", color="0.5", label="as right as it is sure")
    for (name, curve), color, marker in zip(curves.items(), (BEFORE, AFTER), "os", strict=True):
        ax.plot(*100 * curve.T, color=color, marker=marker, label=name)
    ax.set(
        xlabel="how sure the model is (%)",
        ylabel="how often it is right (%)",
        title=f"{N_TEST} messages of the test split",
        xlim=(0, 102),
        ylim=(0, 102),
    )
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", frameon=False)


curves = {
    "before": reliability(before, is_right),
    "after": reliability(after, is_right),
}
fig, ax = plt.subplots(figsize=(5.5, 5), layout="constrained")
plot_reliability(curves, ax)

# %%
# What it means for the desk
# --------------------------
#
# The desk files at once what the model gives at least 80 %, and expects no more than one in five of
# these to be wrong; fewer, as most are surer than that.

THRESHOLD = 0.8
filed = {}
for name, proba in (("before", before), ("after", after)):
    chosen = proba.max(axis=1) >= THRESHOLD
    filed[name] = np.array([np.sum(chosen & is_right), np.sum(chosen & ~is_right)])
    expected = (1 - proba.max(axis=1)[chosen]).sum()
    print(
        f"{name + ':':<7} {chosen.sum()} of {len(chosen)} filed at once, "
        f"{filed[name][1]} of them wrong, where the model expects {expected:.0f}"
    )


def plot_filed(filed: dict[str, NDArray[np.int64]], ax: Axes) -> None:
    right, wrong = np.array(list(filed.values())).T
    names = list(filed)
    for counts, left, color, label in (
        (right, 0 * right, "#0072B2", "right"),
        (wrong, right, "#D55E00", "wrong"),
    ):
        bars = ax.barh(names, counts, left=left, color=color, label=label, height=0.6)
        ax.bar_label(bars, label_type="center", color="white", fmt="%d")
    ax.invert_yaxis()
    ax.set(xlabel="messages", title=f"Filed at once: at least {THRESHOLD:.0%} sure")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(7, 2.5), layout="constrained")
plot_filed(filed, ax)

# %%
# Fewer are filed, and what is filed can be relied on. scikit-learn's ``CalibratedClassifierCV``
# works with this estimator as well. It fits one model a fold, five by default, so it takes several
# times as long, for curves that can bend more than one temperature can.

folder.cleanup()
plt.show()
