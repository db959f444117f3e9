"""
News in a Pipeline
==================

A news desk has a few hundred labelled articles, a cleaning step that it trusts, and a habit: a
scikit-learn Pipeline, cross-validated, shown as a confusion matrix and kept as a file. None of
that changes when the last step is a GPT.

It takes a minute or two on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# The texts, and a step before the classifier
# -------------------------------------------
#
# Reuters R8: articles of eight topics, half of them about one. Most end in the agency's name, which
# says nothing about a topic.

import tempfile
import warnings
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import numpy as np
from _data import load_r8, sample_r8
from matplotlib.axes import Axes
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import ConfusionMatrixDisplay, classification_report
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small, shrink

if SMALL:
    sample_r8, load_r8 = sample_small, load_small
# sphinx_gallery_end_ignore

Texts = NDArray[np.object_]


def without_sign_off(texts: Texts) -> Texts:
    return np.array([text.removesuffix(" reuter") for text in texts], dtype=object)


def pipeline_of(*last: tuple[str, object]) -> Pipeline:
    return Pipeline([("clean", FunctionTransformer(without_sign_off)), *last])


gpt = pipeline_of(
    (
        "gpt",
        GPTTextClassifier(
            n_layers=10,
            trainable_layers=2,
            pooling="mean",
            max_length=48,
            max_epochs=6,
            batch_size=8,
            learning_rate=3e-4,
            random_state=0,
        ),
    )
)
linear = pipeline_of(
    ("svm", make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC()))
)
warnings.simplefilter("ignore", CutTextsWarning)  # texts are cut on purpose
warnings.filterwarnings("ignore", message="The least populated class")  # see below
folder = tempfile.TemporaryDirectory()
# sphinx_gallery_start_ignore
if SMALL:
    shrink(gpt, str(Path(folder.name) / "model"))
# sphinx_gallery_end_ignore
train, test = sample_r8(300, seed=0), load_r8("test")
# Drawn at random: the split begins with more than its share of some topics.
drawn = np.random.default_rng(0).permutation(len(test.texts))[:500]
test = type(test)(test.texts[drawn], test.topics[drawn])

# %%
# Cross-validated as ever
# -----------------------
#
# Both models, on the same folds. Macro F1 counts each topic alike, however rare. The rarest has two
# articles, fewer than there are folds, so one fold judges without it. scikit-learn warns of that,
# which is silenced here, and macro F1 shows it.

folds = StratifiedKFold(3, shuffle=True, random_state=0)
scoring = ["accuracy", "f1_macro"]
for name, model in (("GPT", gpt), ("TF-IDF + SVM", linear)):
    scores = cross_validate(model, train.texts, train.topics, cv=folds, scoring=scoring)
    shown = ", ".join(
        f"{key} {100 * scores[f'test_{key}'].mean():.1f} ± {100 * scores[f'test_{key}'].std():.1f}"
        for key in scoring
    )
    print(f"{name:<13} {shown}, {scores['fit_time'].mean():.1f} s a fit")

# %%
# What gets mixed up
# ------------------

gpt.fit(train.texts, train.topics)
linear.fit(train.texts, train.topics)
predicted = gpt.predict(test.texts)
print(classification_report(test.topics, predicted, zero_division=0.0))
print(f"TF-IDF + SVM: {linear.score(test.texts, test.topics):.1%} of the same articles")


def plot_confusion(topics: NDArray[np.str_], predicted: NDArray[np.str_], ax: Axes) -> None:
    display = ConfusionMatrixDisplay.from_predictions(
        topics, predicted, normalize="true", values_format=".0%", cmap="Blues", ax=ax
    )
    display.im_.set_clim(0, 1)
    ax.set_title(f"{len(topics)} articles, each row adds up to 100 %")
    ax.tick_params(axis="x", rotation=45)


fig, ax = plt.subplots(figsize=(7, 6), layout="constrained")
plot_confusion(test.topics, predicted, ax)

# %%
# Kept as a file
# --------------
#
# The Pipeline is a pickle like any other. The base model isn't inside, only what was learned: two
# layers and the head. A function in a step is kept by its name alone: a program that opens the file
# must be able to import it, so outside of an example ``without_sign_off`` belongs into a module.

path = Path(folder.name) / "news.joblib"
joblib.dump(gpt, path)
again = joblib.load(path)
assert np.array_equal(again.predict(test.texts), predicted)
print(f"{path.stat().st_size / 1e6:.1f} MB, and the same {len(predicted)} predictions")

folder.cleanup()
plt.show()
