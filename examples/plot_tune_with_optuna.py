"""
Tune a Pipeline with Optuna
===========================

A news desk wants its ticker sorted. An article there is no longer than a headline, and the desk has
labelled 360 of them. This example searches for the parameters of a Pipeline, stops unpromising
trials after a few epochs, interrupts the search and resumes it. At the end it asks whether the
search was worth it, by comparing the result with a linear model on TF-IDF.

It takes two minutes on two CPU cores, and needs ``pip install -e ".[examples]"``.
"""

# %%
# Texts, and a Pipeline for them
# ------------------------------
#
# The articles are Reuters R8: eight topics, half of the articles about one of them. The wire
# writes in shorthand (*pct*, *dlrs*, *mln*), which a pretrained GPT has seen less often than the
# words it stands for. Does it help to spell it out? That is a parameter of a step, so it can be
# searched over like any other.

import re
import tempfile
from pathlib import Path
from typing import Self

import matplotlib.pyplot as plt
import numpy as np
from _data import load_r8, sample_r8
from matplotlib.axes import Axes
from numpy.typing import NDArray
from optuna.distributions import FloatDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.svm import LinearSVC

from skgpt import GPTTextClassifier
from skgpt.tuning import BaselineReport, GPTSearchCV, compare_with_baseline

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small, shrink

if SMALL:
    sample_r8, load_r8 = sample_small, load_small
# sphinx_gallery_end_ignore

SHORTHAND = {
    "pct": "percent",
    "dlrs": "dollars",
    "cts": "cents",
    "mln": "million",
    "bln": "billion",
    "shr": "share",
    "div": "dividend",
    "qtr": "quarter",
    "qtly": "quarterly",
    "revs": "revenues",
    "mths": "months",
    "vs": "versus",
    "u s": "US",
    "u k": "UK",
}
Texts = NDArray[np.object_]
PATTERN = re.compile(rf"\b({'|'.join(SHORTHAND)})\b")


class Opening(TransformerMixin, BaseEstimator):
    """The first words of each text, without the wire's sign-off, spelled out or not."""

    def __init__(self, n_words: int = 12, spell_out: bool = False) -> None:
        self.n_words = n_words
        self.spell_out = spell_out

    def fit(self, X: Texts, y: object = None) -> Self:
        return self

    def transform(self, X: Texts) -> Texts:
        return np.array([self._opening(text) for text in X], dtype=object)

    def _opening(self, text: str) -> str:
        words = text.removesuffix(" reuter").split()[: self.n_words]
        opening = " ".join(words)
        return (
            PATTERN.sub(lambda found: SHORTHAND[found[0]], opening) if self.spell_out else opening
        )


train, test = sample_r8(360, seed=0), load_r8("test")
print(f"{len(train.texts)} labelled articles, {len(test.texts)} to be judged on. For example:")
for text, topic in zip(Opening().transform(train.texts[:4]), train.topics, strict=False):
    print(f"  {topic:<9} {text}")

# %%
# Of the model's 30 layers the first 10 are kept, of which the last 2 learn. What the other 8 return
# is computed once per text, for all folds and trials.

pipeline = Pipeline(
    [
        ("opening", Opening()),
        (
            "gpt",
            GPTTextClassifier(
                n_layers=10,
                trainable_layers=2,
                max_length=24,
                max_epochs=4,
                batch_size=16,
                random_state=0,
            ),
        ),
    ]
)
folder = tempfile.TemporaryDirectory()
# sphinx_gallery_start_ignore
if SMALL:
    shrink(pipeline, folder.name)
# sphinx_gallery_end_ignore

# %%
# A search that is interrupted
# ----------------------------
#
# The space is a dict from parameter names to Optuna distributions or lists. ``storage`` keeps the
# search in a file. The folds of a trial advance together, epoch by epoch. From the fourth trial and
# the second epoch on, the search stops a trial whose mean accuracy is below the median of those
# before it.

space = {
    "opening__spell_out": [False, True],
    "gpt__learning_rate": FloatDistribution(3e-5, 3e-3, log=True),
    "gpt__head_learning_rate": FloatDistribution(3e-4, 3e-2, log=True),
    "gpt__pooling": ["mean", "last"],
}
folds = StratifiedKFold(3, shuffle=True, random_state=0)
file = Path(folder.name) / "search.db"


def search_for(n_trials: int) -> GPTSearchCV:
    search = GPTSearchCV(pipeline, space, n_trials=n_trials, cv=folds, storage=file, random_state=0)
    return search.fit(train.texts, train.topics)


def tell(search: GPTSearchCV) -> None:
    for trial in search.study_.trials:
        end = f"{trial.value:.1%}" if trial.state.name == "COMPLETE" else ""
        print(f"  {trial.number}  {trial.datetime_start:%H:%M:%S}  {trial.state.name:<8}  {end}")


first = search_for(n_trials=3)
tell(first)

# %%
# A process may be killed at any moment: the same call resumes from the file. Here the call asks for
# ten trials in all. The times at which the trials began show that the first three are not run
# again.

began = [trial.datetime_start for trial in first.study_.trials]
search = search_for(n_trials=10)
tell(search)
assert [trial.datetime_start for trial in search.study_.trials[:3]] == began
print(f"Best: {search.best_score_:.1%} over the folds, with")
for name, value in search.best_params_.items():
    print(f"  {name} = {value:.2g}" if isinstance(value, float) else f"  {name} = {value}")

# %%
# How the search went
# -------------------
#
# Each trial is shown at its accuracy, pruned ones at the last that they had reached. The line is
# the best so far of those that were trained to their end.

LOOKS = {  # colours that stay apart for colour-blind eyes, and shapes for all others
    "COMPLETE": {"color": "#0072B2", "marker": "o", "label": "complete"},
    "PRUNED": {"color": "#E69F00", "marker": "v", "label": "pruned"},
    "FAIL": {"color": "#000000", "marker": "x", "label": "failed"},
}


def reached(trial: FrozenTrial) -> NDArray[np.float64]:
    """Accuracy after each epoch, in percent, of the two folds that go ahead; at the end of all."""
    scores = [score for _, score in sorted(trial.intermediate_values.items())]
    if trial.state.name == "COMPLETE":
        scores[-1] = trial.value
    return 100 * np.array(scores)


def plot_history(trials: list[FrozenTrial], ax: Axes) -> None:
    lowest = min(reached(trial)[-1] for trial in trials if len(reached(trial)))
    for state, look in LOOKS.items():
        shown = [trial for trial in trials if trial.state.name == state]
        if shown:  # one that failed before its first epoch is put at the bottom
            ends = [reached(trial)[-1] if len(reached(trial)) else lowest for trial in shown]
            ax.scatter([trial.number for trial in shown], ends, s=45, zorder=3, **look)
    whole = [(t.number, 100 * t.value) for t in trials if t.state.name == "COMPLETE"]
    numbers, values = zip(*whole, strict=True)
    best = np.maximum.accumulate(values)
    ax.step(
        [*numbers, trials[-1].number], [*best, best[-1]], where="post", color="0.4", label="best"
    )
    ax.set(xlabel="trial", ylabel="accuracy, mean over folds (%)", title="Optimisation history")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(axis="y", alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
plot_history(search.study_.trials, ax)

# %%
# The study also knows each trial's accuracy after every epoch, on the first two folds, by which it
# is pruned. Pruned trials end early, and without the other folds: that is the time that pruning
# saves. Where a trial was trained to its end, the last point is the mean over all folds.


def plot_curves(trials: list[FrozenTrial], best: int, n_epochs: int, ax: Axes) -> None:
    for trial in trials:
        scores, look = reached(trial), LOOKS[trial.state.name]
        epochs = np.arange(1, len(scores) + 1)
        is_best = trial.number == best
        ax.plot(epochs, scores, color=look["color"], lw=3 if is_best else 1.2, alpha=0.8)
        ax.plot(epochs[-1:], scores[-1:], look["marker"], color=look["color"], ms=7)
    for state, look in LOOKS.items():
        if any(trial.state.name == state for trial in trials):
            ax.plot([], [], **look)
    ax.plot([], [], color=LOOKS["COMPLETE"]["color"], lw=3, label="best trial")
    ax.set(xlabel="epoch", ylabel="accuracy, mean over folds (%)", title="Learning curves")
    ax.set_xticks(range(1, n_epochs + 1))
    ax.grid(axis="y", alpha=0.3)
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
max_epochs = pipeline.get_params()["gpt__max_epochs"]
plot_curves(search.study_.trials, search.study_.best_trial.number, max_epochs, ax)

saved = 1 - search.cv_results_["n_epochs"].sum() / (max_epochs * len(search.cv_results_["params"]))
print(f"Epochs that pruning saved: {saved:.0%}")

# %%
# What mattered
# -------------
#
# Optuna explains the differences between trials by their parameters: it fits a forest of trees to
# them (fANOVA, Hutter et al., 2014). Only trials that were trained to their end count, so there are
# few of them here, and the bad ones are missing. Take it as a hint.


def plot_importances(study: Study, ax: Axes) -> None:
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    names = [name.split("__")[-1].replace("_", " ") for name in shares]
    bars = ax.barh(names, list(shares.values()), color="#0072B2", height=0.6)
    ax.bar_label(bars, fmt="%.2f", padding=4)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 1), xlabel="share of the differences explained", title="Importance of parameters"
    )


fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
plot_importances(search.study_, ax)

# %%
# Was it worth it?
# ----------------
#
# Linear models take seconds: on TF-IDF, and on frozen states of the same model. On the same folds,
# behind the same first step, the better of them against the search's best:

report = compare_with_baseline(search.best_estimator_, train.texts, train.topics, cv=folds)
print(report)

# %%
# The search has picked the best of ten by these very folds, which flatters it a little. What counts
# is the test split, which nothing here has seen. And a desk that has whole articles, not openings
# alone, would hand those to the linear model.


def linear(*before: BaseEstimator) -> Pipeline:
    return make_pipeline(
        *before, TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LinearSVC()
    )


opening = search.best_estimator_["opening"]
models = {
    "tuned GPT, openings": search,
    "TF-IDF, openings": linear(opening).fit(train.texts, train.topics),
    "TF-IDF, whole articles": linear().fit(train.texts, train.topics),
}
judged = {name: 100 * model.score(test.texts, test.topics) for name, model in models.items()}
for name, accuracy in judged.items():
    print(f"{name:<24} {accuracy:.1f} % of {len(test.texts)} articles")


OURS, THEIRS = "#0072B2", "#009E73"


def plot_comparison(
    report: BaselineReport, judged: dict[str, float], ax_folds: Axes, ax_test: Axes
) -> None:
    """Draw a line per fold between the two models' accuracies, and a bar per model on the test."""
    pairs = 100 * np.column_stack([report.baseline_scores, report.scores])
    ax_folds.plot([0, 1], pairs.T, color="0.6", zorder=1)
    for place, color in enumerate([THEIRS, OURS]):
        ax_folds.scatter(np.full(len(pairs), place), pairs[:, place], s=45, color=color)
    ax_folds.set(xlim=(-0.4, 1.4), ylabel="accuracy (%)", title=f"The same {len(pairs)} folds")
    ax_folds.set_xticks([0, 1], [report.baseline_name, "tuned GPT"])
    ax_folds.grid(axis="y", alpha=0.3)
    colors = [OURS if name.startswith("tuned") else THEIRS for name in judged]
    bars = ax_test.barh(list(judged), list(judged.values()), color=colors, height=0.6)
    ax_test.bar_label(bars, fmt="%.1f", padding=4)
    ax_test.invert_yaxis()
    ax_test.set(xlim=(0, 118), xlabel="accuracy (%)", title="Test split")
    ax_test.set_xticks(range(0, 101, 25))


fig, (ax_folds, ax_test) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
plot_comparison(report, judged, ax_folds, ax_test)

# %%
# The file is no longer needed.

folder.cleanup()
plt.show()
