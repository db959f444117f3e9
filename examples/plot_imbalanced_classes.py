"""
A rare topic, and where to draw the line
========================================

One desk of a newsroom wants every article about interest rates, and nothing else. Those are few
in a hundred. A model that never says yes is right nearly always, and useless. Two things help:
giving the rare articles more weight in training, and moving the threshold away from one half, to
where a missed article and a false alarm cost least. This example measures how much.

It takes two minutes on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# Few among many
# --------------
#
# A sample of Reuters R8, whose eight topics become two: interest rates, or anything else.

import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
from _data import News, load_news, sample_news
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import confusion_matrix, make_scorer, precision_recall_curve
from sklearn.model_selection import (
    FixedThresholdClassifier,
    StratifiedKFold,
    TunedThresholdClassifierCV,
)

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small

from skgpt.testing import tiny_gpt

if SMALL:
    load_news = lambda name, split: load_small(split)  # noqa: E731
    sample_news = lambda name, n, seed: sample_small(n, seed)  # noqa: E731
# sphinx_gallery_end_ignore

WANTED = "interest"
# sphinx_gallery_start_ignore
if SMALL:
    WANTED = "grain"
# sphinx_gallery_end_ignore


def asked(news: News) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    return news.texts, (news.topics == WANTED).astype(int)


X, y = asked(sample_news("r8", 360, seed=0))
X_test, y_test = asked(load_news("r8", "test"))
# Drawn at random: the split begins with more than its share of some topics.
drawn = np.random.default_rng(0).permutation(len(y_test))[:800]
X_test, y_test = X_test[drawn], y_test[drawn]
print(f"{y.sum()} of {len(y)} articles are wanted, {y_test.sum()} of {len(y_test)} in the test")

folder = tempfile.TemporaryDirectory()
clf = GPTTextClassifier(
    n_layers=10,
    trainable_layers=2,
    pooling="mean",
    max_length=32,
    max_epochs=5,
    batch_size=8,
    learning_rate=3e-4,
    random_state=0,
)
warnings.simplefilter("ignore", CutTextsWarning)  # texts are cut on purpose
# sphinx_gallery_start_ignore
if SMALL:
    clf.set_params(model=tiny_gpt(folder.name), n_layers=None, trainable_layers=1, max_epochs=2)
# sphinx_gallery_end_ignore

# %%
# What a mistake costs
# --------------------
#
# The desk says that a missed article is as bad as ten false alarms. That is all the scoring needs,
# and scikit-learn takes it as it takes any other.

MISSED, FALSE_ALARM = 10, 1


def cost(y_true: NDArray[np.int64], y_pred: NDArray[np.int64]) -> float:
    """Return the mean cost of an article."""
    missed = np.sum((y_true == 1) & (y_pred == 0))
    alarms = np.sum((y_true == 0) & (y_pred == 1))
    return float(MISSED * missed + FALSE_ALARM * alarms) / len(y_true)


# %%
# ``TunedThresholdClassifierCV`` predicts each training article by a model that has not seen it, and
# takes the threshold at which these predictions cost least. The articles' frozen layers are
# computed once for all of its fits.
#
# Were the probabilities right, prices alone would do: an article is worth a look as soon as the
# expected cost of missing it is the higher one, from 1 in 11 on. ``FixedThresholdClassifier`` draws
# a line that is known beforehand, here around the classifier that is fitted already.

folds = StratifiedKFold(3, shuffle=True, random_state=0)
scorer = make_scorer(cost, greater_is_better=False)
plain = clone(clf).fit(X, y)
balanced = clone(clf).set_params(class_weight="balanced").fit(X, y)
tuned = TunedThresholdClassifierCV(clf, scoring=scorer, cv=folds).fit(X, y)
fixed = FixedThresholdClassifier(
    FrozenEstimator(plain),  # which is not fitted again
    threshold=FALSE_ALARM / (MISSED + FALSE_ALARM),
    response_method="predict_proba",
).fit(X, y)
print(f"Tuned, the line is at {tuned.best_threshold_:.2f}; by the prices, {fixed.threshold:.2f}")

models = {
    "at one half": plain,
    "class_weight='balanced'": balanced,
    "threshold by prices": fixed,
    "tuned threshold": tuned,
}
costs, counts = {}, {}
for name, model in models.items():
    predicted = model.predict(X_test)
    costs[name] = 100 * cost(y_test, predicted)
    _, alarms, missed, found = confusion_matrix(y_test, predicted, labels=[0, 1]).ravel()
    counts[name] = (found, missed, alarms)
    print(
        f"{name:<24} found {found}, missed {missed}, alarms {alarms}: "
        f"cost {costs[name]:.1f} per 100 articles"
    )

# %%
# All lines that could be drawn
# -----------------------------
#
# Precision and recall of the one model at every threshold, on the test split, and where the three
# lines lie.


def plot_lines(
    y_true: NDArray[np.int64], proba: NDArray[np.float64], lines: dict[str, float], ax: Axes
) -> None:
    precision, recall, _ = precision_recall_curve(y_true, proba)
    ax.plot(100 * recall, 100 * precision, color="0.4", drawstyle="steps-post")
    # Ever smaller, as lines with no article between them lie on one point.
    looks = zip(("#E69F00", "#009E73", "#0072B2"), "oDs", (16, 10, 6), strict=True)
    for (name, line), (color, marker, size) in zip(lines.items(), looks, strict=False):
        chosen = proba >= line
        found = np.sum(chosen & (y_true == 1))
        at = (100 * found / y_true.sum(), 100 * found / max(chosen.sum(), 1))
        ax.plot(*at, marker, color=color, ms=size, label=f"{name} ({line:.2f})")
    ax.set(
        xlabel="recall: found of those wanted (%)",
        ylabel="precision: wanted of those found (%)",
        title="Where to draw the line",
        xlim=(0, 103),
        ylim=(0, 103),
    )
    ax.grid(alpha=0.3)
    ax.legend(loc="lower left", frameon=False)


proba = plain.predict_proba(X_test)[:, 1]
lines = {
    "at one half": 0.5,
    "threshold by prices": fixed.threshold,
    "tuned threshold": float(tuned.best_threshold_),
}
fig, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
plot_lines(y_test, proba, lines, ax)

low, high = min(lines.values()), max(lines.values())
between = np.sum((proba >= low) & (proba < high))
print(f"Articles between the lowest line and the highest: {between} of {len(proba)}")

# %%
# What it comes to
# ----------------


def plot_costs(costs: dict[str, float], ax: Axes) -> None:
    bars = ax.barh(list(costs), list(costs.values()), color="#0072B2", height=0.6)
    ax.bar_label(bars, fmt="%.1f", padding=4)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.15 * max(*costs.values(), 1))
    ax.set(xlabel="cost per 100 articles of the test", title="A miss costs as much as ten alarms")


fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
plot_costs(costs, ax)

# %%
# Hardly an article lies between the lines: this model is sure of what it says, right or wrong, so
# the bars differ by very few articles, and another draw may turn them round. The curve says how far
# a line could be lowered before false alarms take over. To choose it there would be to choose by
# the articles that judge it. The tuned one rests on a dozen wanted articles, so it is a rough one.
#
# Weights and a threshold can be combined. A weight changes what is learned, a threshold only what
# is done with it, so another price tomorrow needs no new fit.

folder.cleanup()
plt.show()
