"""
Ratings from sentences
======================

How much did somebody like what they bought? Stars are an order: a prediction of four where five was
given is nearly right, and one of one is far off. A classifier takes both for the same mistake. This
example predicts ratings as numbers, says how far they may be off, and looks at why one is what it
is.

It takes a minute or two on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# Sentences of product reviews
# ----------------------------
#
# Twenty people rated each sentence from -4, very negative, to 4, very positive (Hutto and Gilbert,
# 2014). Its rating is their mean. 150 rated sentences are for learning, 300 others for judging.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from _data import load_rated
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import RidgeCV
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import make_pipeline

from skgpt import GPTTextRegressor
from skgpt.plots import TokenAttributionDisplay

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, rated_small

from skgpt.testing import tiny_gpt

# sphinx_gallery_end_ignore

folder = tempfile.TemporaryDirectory()
gpt = GPTTextRegressor(random_state=0)
# sphinx_gallery_start_ignore
if SMALL:
    load_rated = lambda kind, split: rated_small(split)  # noqa: E731
    gpt.set_params(model=tiny_gpt(folder.name), n_layers=None, trainable_layers=1, max_epochs=2)
# sphinx_gallery_end_ignore

X, y = (column[:150] for column in load_rated("amazonReviewSnippets", "train"))
X_new, y_new = (column[:300] for column in load_rated("amazonReviewSnippets", "test"))
for text, rating in zip(X[:3], y[:3], strict=True):
    print(f"{rating:+.2f}  {text[:75]}")

# %%
# Beside words that are counted
# -----------------------------
#
# ``score`` is R², the share of the ratings' variance that is predicted: 1 if all are right, 0 for
# the mean rating everywhere. The mean absolute error is in points of the scale.

tfidf = make_pipeline(TfidfVectorizer(sublinear_tf=True), RidgeCV(np.logspace(-1, 2, 7)))
predicted = {
    "TF-IDF and ridge": tfidf.fit(X, y).predict(X_new),
    "GPTTextRegressor": gpt.fit(X, y).predict(X_new),
}
scores = {}
for name, numbers in predicted.items():
    scores[name] = r2_score(y_new, numbers), mean_absolute_error(y_new, numbers)
    print(f"{name}: R² {scores[name][0]:.2f}, off by {scores[name][1]:.2f} on average")


def plot_ratings(numbers: NDArray[np.float64], name: str, ax: Axes) -> None:
    ax.plot([-4, 4], [-4, 4], "--", color="0.5", lw=1)
    ax.scatter(y_new, numbers, s=14, alpha=0.5, color="#0072B2", linewidths=0)
    r2, error = scores[name]
    ax.set(xlabel="given", title=f"{name}\nR² {r2:.2f}, mean absolute error {error:.2f}")
    ends, ticks = (-4.2, 4.2), range(-4, 5, 2)
    ax.set(xlim=ends, ylim=ends, xticks=ticks, yticks=ticks, aspect="equal")
    ax.grid(alpha=0.3)


fig, axes = plt.subplots(1, 2, figsize=(8.5, 4.4), sharey=True, layout="constrained")
for (name, numbers), ax in zip(predicted.items(), axes, strict=True):
    plot_ratings(numbers, name, ax)
axes[0].set_ylabel("predicted")

# %%
# On the dashed line a prediction is the given rating. In 150 sentences TF-IDF has met few of the
# words of the next one, so it stays near the mean. The language model has read most words before.
#
# Between which numbers?
# ----------------------
#
# The quantile ``loss`` predicts a quantile of what a rating may be. Two heads on the frozen layers,
# which fit in seconds, make an interval that eight ratings of ten should lie in.

head = GPTTextRegressor(loss="quantile", trainable_layers=0, random_state=0)
# sphinx_gallery_start_ignore
if SMALL:
    head.set_params(model=gpt.model, n_layers=None)
# sphinx_gallery_end_ignore
low, high = (head.set_params(quantile=q).fit(X, y).predict(X_new) for q in (0.1, 0.9))
beyond = np.maximum(low - y_new, y_new - high)  # below 0 inside
print(f"{np.mean(beyond <= 0):.0%} of the ratings lie inside")

# %%
# They don't: a head has 576 weights, and knows the 150 sentences that it learned from too well.
# What it misses shows on sentences that no fit has read. So half of the others say how far the
# interval must be widened (conformalized quantile regression; Romano and others, 2019), and the
# other half judge.

for_width = np.arange(len(y_new)) % 2 == 0
for_judging = ~for_width
rank = int(np.ceil(0.8 * (for_width.sum() + 1)))  # counted from one, the next row among them
more = np.sort(beyond[for_width])[rank - 1]
inside, width = np.mean(beyond[for_judging] <= more), np.mean(high - low) + 2 * more
print(f"{inside:.0%} lie inside if both ends are {more:.2f} further out")
print(f"The interval is then {width:.1f} points wide, of 8")

# %%
# Why this rating?
# ----------------
#
# ``explain`` says what each token adds to a prediction, in points of the scale. The values and the
# ``baseline``, which is what the model says of a text without words, add up to the prediction.
# Blue words raise the rating, orange ones lower it.

short = np.flatnonzero([len(text.split()) < 12 for text in X_new])
best = predicted["GPTTextRegressor"][short].argsort()
shown = short[best[[0, -1]]]
tokens = gpt.explain(X_new[shown])
sums = tokens.groupby("text")["value"].sum() + tokens.groupby("text")["baseline"].first()
for row, total in zip(shown, sums, strict=True):
    print(f"{total:+.2f} predicted, {y_new[row]:+.2f} given: {X_new[row]}")
TokenAttributionDisplay.from_predictions(tokens)

folder.cleanup()
plt.show()
