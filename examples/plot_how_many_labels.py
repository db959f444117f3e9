"""
How many labels have you got?
=============================

With none, a GPT can be asked. With a few, the same question is where training starts. With more,
training alone is enough. This example walks that road on reviews of products, good or bad, and
shows at each size what a linear model on TF-IDF makes of the same labels.

It takes about five minutes on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# Reviews
# -------
#
# Sentences of reviews, with the mean of what twenty people said of their tone. We keep the clear
# ones, and judge on 300 that no model is fitted on.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
from _data import News, Split, load_rated
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skgpt import GPTTextClassifier, GPTZeroShotClassifier

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small

from skgpt.testing import tiny_gpt

# sphinx_gallery_end_ignore


def load_reviews(split: Split) -> News:
    rated = load_rated("amazonReviewSnippets", split)
    clear = np.abs(rated.ratings) >= 1
    return News(rated.texts[clear], np.where(rated.ratings[clear] > 0, "good", "bad"))


TEMPLATE = "Review: {text}\nSentiment:"
WORDS = {"good": "positive", "bad": "negative"}
SIZES = [4, 16, 64]  # labelled texts of each class
folder = tempfile.TemporaryDirectory()
model = "smollm2-135m"
# sphinx_gallery_start_ignore
if SMALL:
    load_reviews = load_small
    WORDS = {topic: topic for topic in ("crude", "earn", "grain")}
    SIZES = [1, 2]
    model = tiny_gpt(folder.name)
# sphinx_gallery_end_ignore

train, test = load_reviews("train"), load_reviews("test")
test = News(test.texts[:300], test.topics[:300])

# %%
# No label
# --------
#
# The names of the classes are enough for `GPTZeroShotClassifier`. It asks the model how likely
# their words are behind a prompt.

zero_shot = GPTZeroShotClassifier(model, template=TEMPLATE, label_words=WORDS)
zero_shot.fit(None, list(WORDS))
asked = 100 * zero_shot.score(test.texts, test.topics)
print(f"No label: {asked:.1f} %")

# %%
# A few, and more
# ---------------
#
# With ``label_words``, the head of `GPTTextClassifier` starts as these words: before its first step
# it says what the zero-shot classifier says. Without, it starts from nothing.

MODELS = {
    "words, then training": GPTTextClassifier(
        model, template=TEMPLATE, label_words=WORDS, random_state=0
    ),
    "training alone": GPTTextClassifier(model, random_state=0),
    "TF-IDF + linear": make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10)),
}


def draw(n_per_class: int) -> News:
    order = np.random.default_rng(0).permutation(len(train.topics))
    rows = [order[train.topics[order] == label][:n_per_class] for label in WORDS]
    return News(train.texts[np.concatenate(rows)], train.topics[np.concatenate(rows)])


found = {}
for size in SIZES:
    labelled = draw(size)
    for name, estimator in MODELS.items():
        estimator.fit(labelled.texts, labelled.topics)
        found[name, size] = 100 * estimator.score(test.texts, test.topics)
        print(f"{size:>3} of each class, {name:<20} {found[name, size]:5.1f} %")

# %%
# The road
# --------

LOOKS = {
    "words, then training": ("#0072B2", "o"),
    "training alone": ("#009E73", "^"),
    "TF-IDF + linear": ("#E69F00", "s"),
}

fig, ax = plt.subplots(figsize=(6, 4), layout="constrained")
ax.axhline(asked, color="grey", linestyle="--", label="no label: zero-shot")
for name, (color, marker) in LOOKS.items():
    ax.plot(SIZES, [found[name, n] for n in SIZES], color=color, marker=marker, label=name)
ax.set(xscale="log", xlabel="labelled texts of each class", ylabel="accuracy (%)")
ax.set_xticks(SIZES, [str(size) for size in SIZES])
ax.minorticks_off()
ax.grid(alpha=0.3)
ax.legend()

# %%
# One draw of four texts tells little; ``examples/benchmarks/few_shot.py`` has more draws and other
# texts. Topics of news are among them, which a small model tells apart by their names much worse:
# there training alone is ahead with eight labels a topic already.
# On your own texts, ``skgpt.tuning.compare_with_baseline`` with ``baseline="zero-shot"`` says
# whether your labels are worth more than the question.

folder.cleanup()
plt.show()
