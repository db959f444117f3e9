"""
A title and a body
==================

A table of articles has a column for the title and one for the body. Which of them says what an
article is about? This example passes a DataFrame to the classifier as it is, compares the accuracy
of either column alone with that of both, and measures which of the two the model uses.

It takes two minutes on a CPU, and needs ``pip install -e ".[examples]"``.
"""

# %%
# A table
# -------
#
# Articles of Reuters R8 begin with their headline, but nothing marks its end. The first eight words
# serve as a title here.

import tempfile
import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from _data import News, load_r8, sample_r8
from matplotlib.axes import Axes
from sklearn.base import clone

from skgpt import GPTTextClassifier
from skgpt.exceptions import CutTextsWarning

# sphinx_gallery_start_ignore
# isort: split
from _small import SMALL, load_small, sample_small

from skgpt.testing import tiny_gpt

if SMALL:
    sample_r8, load_r8 = sample_small, load_small
# sphinx_gallery_end_ignore

N_TITLE = 8
# sphinx_gallery_start_ignore
if SMALL:
    N_TITLE = 2
# sphinx_gallery_end_ignore


def table_of(news: News) -> pd.DataFrame:
    words = [text.removesuffix(" reuter").split() for text in news.texts]
    return pd.DataFrame(
        {
            "title": [" ".join(row[:N_TITLE]) for row in words],
            "body": [" ".join(row[N_TITLE:]) for row in words],
            "topic": news.topics,
        }
    )


train, test = table_of(sample_r8(240, seed=0)), table_of(load_r8("test"))
test = test.sample(min(400, len(test)), random_state=0)
print(train.head(5).to_string(max_colwidth=28))

# %%
# One text of two columns
# -----------------------
#
# ``template`` lays the columns out as one text, with their names in braces. Where that is longer
# than ``max_length`` tokens, the longest column is cut: a title survives any body. No step of a
# Pipeline has to join them.

TEMPLATES = {
    "title": "{title}",
    "body": "{body}",
    "title and body": "{title}\n{body}",
}
folder = tempfile.TemporaryDirectory()
gpt = GPTTextClassifier(
    n_layers=10,
    trainable_layers=2,
    pooling="mean",
    max_length=40,
    max_epochs=6,
    batch_size=8,
    learning_rate=3e-4,
    random_state=0,
)
warnings.simplefilter("ignore", CutTextsWarning)  # texts are cut on purpose
# sphinx_gallery_start_ignore
if SMALL:
    gpt.set_params(model=tiny_gpt(folder.name), n_layers=None, trainable_layers=1, max_epochs=2)
# sphinx_gallery_end_ignore


def columns_of(template: str) -> list[str]:
    return [name for name in ("title", "body") if f"{{{name}}}" in template]


fitted, accuracies = {}, {}
for name, template in TEMPLATES.items():
    columns = columns_of(template)
    clf = clone(gpt).set_params(template=template)
    fitted[name] = clf.fit(train[columns], train["topic"])
    accuracies[name] = 100 * clf.score(test[columns], test["topic"])
    print(f"{name:<15} {accuracies[name]:.1f} % of {len(test)} articles")


def plot_accuracies(accuracies: dict[str, float], ax: Axes) -> None:
    bars = ax.barh(list(accuracies), list(accuracies.values()), color="#0072B2", height=0.6)
    ax.bar_label(bars, fmt="%.1f", padding=4)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 112),
        xlabel="accuracy (%)",
        title=f"{gpt.max_length} tokens of an article at most, {len(train)} labels",
    )
    ax.set_xticks(range(0, 101, 20))


fig, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
plot_accuracies(accuracies, ax)

# %%
# The columns don't compete on equal terms: a title is eight words, and a body often fills all
# ``max_length`` tokens. A difference of a point or two is a handful of articles, which another draw
# of the labels may turn round. ``cross_val_score`` over the table, or a search over ``template``,
# tells more.
#
# Which column the model goes by
# ------------------------------
#
# ``explain`` says for each token what it adds to the score of the predicted class, and which column
# it stands in. Added up over an article, the share of each column shows what the decision rests on.

both = fitted["title and body"]
some = test.iloc[:30]
tokens = both.explain(some[["title", "body"]])
weight = tokens.assign(size=tokens["value"].abs()).pivot_table(
    index="text", columns="column", values="size", aggfunc="sum", fill_value=0.0
)
shares = 100 * weight.div(weight.sum(axis=1), axis=0)
counts = tokens.pivot_table(
    index="text", columns="column", values="value", aggfunc="size", fill_value=0
)
lengths = 100 * counts.div(counts.sum(axis=1), axis=0)
for column in shares:
    print(
        f"{column:<6} {lengths[column].mean():3.0f} % of the tokens, "
        f"{shares[column].mean():3.0f} % of what they say"
    )


above = (shares["title"] > lengths["title"]).sum()
print(f"The title says more than its part of the tokens in {above} of {len(shares)} articles")


def plot_shares(shares: pd.DataFrame, lengths: pd.DataFrame, ax: Axes) -> None:
    order = shares.sort_values("title", ascending=False)
    places = np.arange(len(order))
    ax.bar(places, order["title"], color="#0072B2", width=0.9, label="title")
    ax.bar(places, order["body"], bottom=order["title"], color="#E69F00", width=0.9, label="body")
    even = lengths.loc[order.index, "title"]  # bodies differ in length, so each has its own
    ax.plot(
        places, even, "D", color="black", mfc="white", ms=4.5, label="title's part of the tokens"
    )
    ax.set(xlabel="article", ylabel="share (%)", title="What the predictions rest on", xticks=[])
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


fig, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
plot_shares(shares, lengths, ax)

# %%
# Each bar is an article. Where the blue part reaches above the diamond, a token of the title counts
# on average for more than one of the body. That goes for the model with both columns: it doesn't
# say how well another would do with the body alone, as the bars further up do.

folder.cleanup()
plt.show()
