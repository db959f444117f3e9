"""
Why this topic, and is the label right?
=======================================

Two questions that come after the first good accuracy. Why was this article filed there? And how
many of the labels, typed in by hand, are wrong? This example colours the words of a few articles
by what they say for and against a topic, then plants some wrong labels and looks for them.

It takes two minutes on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# A model to ask
# --------------
#
# 240 labelled articles of Reuters R8, of which the model reads the first 32 tokens.

import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
from _data import load_r8, sample_r8
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning
from skgpt.plots import ErrorTableDisplay, TokenAttributionDisplay

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small

from skgpt.testing import tiny_gpt

if SMALL:
    sample_r8, load_r8 = sample_small, load_small
# sphinx_gallery_end_ignore

train, test = sample_r8(240, seed=0), load_r8("test")
some = np.random.default_rng(0).permutation(len(test.texts))[:300]
test = type(test)(test.texts[some], test.topics[some])
folder = tempfile.TemporaryDirectory()
clf = GPTTextClassifier(
    n_layers=10,
    trainable_layers=2,
    pooling="mean",
    max_length=32,
    max_epochs=6,
    batch_size=8,
    learning_rate=3e-4,
    random_state=0,
)
warnings.simplefilter("ignore", CutTextsWarning)  # texts are cut on purpose
# sphinx_gallery_start_ignore
if SMALL:
    clf.set_params(model=tiny_gpt(folder.name), n_layers=None, trainable_layers=1, max_epochs=2)
# sphinx_gallery_end_ignore
clf.fit(train.texts, train.topics)
print(f"Right: {clf.score(test.texts, test.topics):.1%} of {len(test.texts)} articles")

# %%
# The words behind a prediction
# -----------------------------
#
# ``explain`` takes the score of the predicted topic apart: what each token adds to it, by
# integrated gradients (Sundararajan et al., 2017). The values of a text add up to its score, less
# what the model says of a text without words, the ``baseline``. Another topic is explained with
# ``target``.

predicted = clf.predict(test.texts[:100])
shown = [
    next(i for i, topic in enumerate(predicted) if topic == wanted)
    for wanted in list(dict.fromkeys(predicted))[:3]
]
tokens = clf.explain(test.texts[shown])
scores = clf.decision_function(test.texts[shown]).max(axis=1)
sums = tokens.groupby("text")["value"].sum() + tokens.groupby("text")["baseline"].first()
for row, score, total in zip(shown, scores, sums, strict=True):
    print(
        f"{predicted[row]:<8} score {score:.2f}, values and baseline {total:.2f}, "
        f"label {test.topics[row]}"
    )

# %%
# Blue words speak for the topic, orange ones against it. They are what this model goes by, which
# is not always what a person would name. Where the label above is another topic, they are a
# hint at what led the model astray. Read the darkest ones, and don't make much of the pale ones.

TokenAttributionDisplay.from_predictions(tokens)

# %%
# Labels that are wrong
# ---------------------
#
# Twelve of the 240 labels are exchanged for another topic. Cross-validation predicts each article
# with a model that has not seen its label. Where such a model is sure of another topic than the
# label's, one of the two is wrong, and it may well be the label. What the picture calls *true* is
# the label as it was given, wrong ones included.

rng = np.random.default_rng(0)
n_planted = len(train.texts) // 20
planted = np.sort(rng.choice(len(train.texts), n_planted, replace=False))
topics = np.unique(train.topics)
given = train.topics.copy()
for row in planted:
    given[row] = rng.choice(topics[topics != given[row]])

folds = StratifiedKFold(3, shuffle=True, random_state=0)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # a planted label may be rarer than the folds
    proba = cross_val_predict(clf, train.texts, given, cv=folds, method="predict_proba")
display = ErrorTableDisplay.from_predictions(given, proba, X=train.texts, n_rows=10)

# %%
# ``frame`` is the table behind the picture. How far down does one have to read?

everything = ErrorTableDisplay.from_predictions(given, proba, X=train.texts, n_rows=len(given))
plt.close(everything.figure_)  # too long a picture
errors = everything.frame
is_planted = errors["row"].isin(planted).to_numpy()
for n in (5, 10, 20):
    print(f"Of the first {n:>2} rows, {is_planted[:n].sum():>2} were planted")
print(f"Planted and found anywhere: {is_planted.sum()} of {n_planted}, in {len(errors)} rows")


def plot_found(is_planted: NDArray[np.bool_], n_planted: int, n_all: int, ax: Axes) -> None:
    read = np.arange(len(is_planted) + 1)
    found = np.concatenate([[0], np.cumsum(is_planted)])
    ax.plot(read, found, color="#0072B2", drawstyle="steps-post", label="worst first")
    ax.plot(read, read * n_planted / n_all, "--", color="0.5", label="in any order")
    ax.axhline(n_planted, color="#009E73", lw=1, label="all of them")
    ax.set(xlabel="rows read", ylabel="wrong labels found", title="Looking for planted labels")
    ax.grid(alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
plot_found(is_planted, n_planted, len(given), ax)

# %%
# The others in the table are articles that the model gets wrong, or that nobody can tell. They are
# worth a look as well: they show what the topics' borders are.

folder.cleanup()
plt.show()
