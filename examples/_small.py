"""A tiny model and made-up news, on which the tests run the gallery's examples without a network.

SKGPT_EXAMPLES_SMALL asks for them. Lines that use them stand between sphinx-gallery's marks for
what a page doesn't show.
"""

import os

import numpy as np
import pandas as pd
from _data import GENRES, News, Rated, Split
from sklearn.pipeline import Pipeline

from skgpt.testing import tiny_gpt

SMALL = bool(os.environ.get("SKGPT_EXAMPLES_SMALL"))
_WORDS = {
    "crude": ["oil", "barrel", "opec", "refinery"],
    "earn": ["shr", "net", "revs", "qtr"],
    "grain": ["wheat", "tonnes", "crop", "maize"],
}


def sample_small(n: int, seed: int) -> News:
    """Return n made-up texts of three topics, 36 at most, every topic among them."""
    n = min(n, 36)
    rng = np.random.default_rng(seed)
    topics = np.resize(np.array(list(_WORDS)), n)
    filler = ["the", "pct", "mln", "said", "reuter"]
    rows = [[*rng.choice(_WORDS[topic], 2), *rng.choice(filler, 3)] for topic in topics]
    return News(np.array([" ".join(row) for row in rows], dtype=object), topics)


def load_small(split: Split) -> News:
    """Return 30 made-up texts, others for each split."""
    return sample_small(30, seed=("train", "test").index(split) + 100)


def rated_small(split: Split) -> Rated:
    """Return 30 made-up texts whose ratings are their length in letters, others for each split."""
    texts = load_small(split).texts
    return Rated(texts, np.array([len(text) for text in texts]) / 10 - 2)


def films_small() -> pd.DataFrame:
    """Return 48 made-up films, each genre with words and a length of its own."""
    rng = np.random.default_rng(0)
    genre = np.resize(np.array(GENRES), 48)
    number = np.arange(48) % len(GENRES)
    words = np.array([*_WORDS.values(), ["the", "pct", "mln", "said"]])
    return pd.DataFrame(
        {
            "title": [" ".join(rng.choice(words[i], 2)) for i in number],
            "director": rng.choice(["reuter", "opec"], 48),
            "year": rng.integers(1940, 2015, 48),
            "minutes": np.where(rng.random(48) < 0.1, np.nan, 60.0 + 20 * number),
            "reviews": rng.integers(5, 200, 48),
            "liked": rng.integers(0, 101, 48),
            "country": pd.Categorical(rng.choice(["France", "Japan"], 48)),
            "language": pd.Categorical(rng.choice(["French", "Japanese"], 48)),
            "genre": genre,
        }
    )


def shrink(pipeline: Pipeline, folder: str) -> Pipeline:
    """Give the last step, named "gpt", a tiny model that is written to a folder."""
    return pipeline.set_params(
        gpt__model=tiny_gpt(folder), gpt__n_layers=None, gpt__trainable_layers=1
    )
