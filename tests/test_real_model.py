"""The default model and the quickstart, for real: fetched, converted, fine-tuned, kept."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

import skgpt
from skgpt import GPTTextClassifier, LoRA
from skgpt.pretrained.default_models import alias_folder

pytestmark = pytest.mark.network

ROOT = Path(__file__).parent.parent
TEXTS = [
    "shares of the bank rose after a record quarterly profit",
    "the striker scored twice in the second half of the final",
    "the company raised its dividend and bought back stock",
    "the goalkeeper saved a penalty in extra time",
] * 3
LABELS = ["money", "sport"] * 6

_OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise OSError("no network here")
socket.socket.connect = socket.create_connection = refuse
import joblib, numpy as np
classifier, texts, expected = (joblib.load(path) for path in sys.argv[1:])
assert np.array_equal(classifier.predict_proba(texts), expected)
print("same")
"""


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the module a cache folder of its own and remove it afterwards: it is half a GB."""
    folder = tmp_path_factory.mktemp("real_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKGPT_CACHE", str(folder))
        yield folder
    shutil.rmtree(folder)
    skgpt.clear_cache()


def classifier(**options: Any) -> GPTTextClassifier:
    """Return the default model, cut to six layers and unfitted."""
    fast = {"n_layers": 6, "trainable_layers": 2, "batch_size": 4, "learning_rate": 3e-4}
    return GPTTextClassifier(**{**fast, "random_state": 0, **options})


def test_default_model__a_few_texts__fits_and_opens_in_a_fresh_process_offline(
    real_cache: Path, tmp_path: Path
) -> None:
    clf = classifier(max_epochs=5).fit(TEXTS, LABELS)
    unseen = ["a late goal decided the match", "the lender reported higher earnings"]
    assert clf.predict(unseen).tolist() == ["sport", "money"]
    assert clf.model_id_ == "smollm2-135m"

    data = pickle.dumps(clf)
    learned = sum(m.numel() for m in clf._model.network.learnable.values())
    assert len(data) < 4 * learned + 100_000  # what was learned, in fp32; not the base
    paths = []
    for name, value in {"clf": clf, "X": unseen, "p": clf.predict_proba(unseen)}.items():
        paths.append(str(tmp_path / name))
        joblib.dump(value, paths[-1])
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _OFFLINE, *paths], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "same\n"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "megabytes"),
    [
        ({"trainable_layers": 4}, 62),
        ({"lora": LoRA(rank=8), "trainable_layers": "all"}, 6),
        ({"trainable_layers": 0}, 1),
    ],
    ids=str,
)
def test_default_model__at_16_layers__takes_little_to_keep(
    options: dict[str, Any], megabytes: int, real_cache: Path, tmp_path: Path
) -> None:
    clf = classifier(n_layers=16, max_epochs=1, max_length=16, **options)
    data = pickle.dumps(clf.fit(TEXTS[:4], LABELS[:4]))
    assert len(data) < megabytes * 1e6
    skgpt.save(clf, tmp_path / "saved")
    assert sum(path.stat().st_size for path in (tmp_path / "saved").iterdir()) < megabytes * 1e6
    for again in (pickle.loads(data), skgpt.load(tmp_path / "saved")):
        assert np.array_equal(again.predict_proba(TEXTS), clf.predict_proba(TEXTS))


@pytest.mark.thorough
def test_default_model__bf16__a_texts_neighbours_hardly_matter(real_cache: Path) -> None:
    clf = classifier(max_epochs=10, precision="bf16").fit(TEXTS, LABELS)
    X = [f"{text} {'and so on ' * n}" for n, text in enumerate(TEXTS)]
    together = clf.predict_proba(X)
    alone = np.concatenate([clf.predict_proba([text]) for text in X])
    assert np.ptp(together) > 0.5  # it has learned to be sure of something
    assert np.abs(together - alone).max() < 0.02  # as the user guide says


def test_encoder__by_its_alias__head_on_the_states_that_transformers_has(real_cache: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    clf = GPTTextClassifier("minilm-l6", trainable_layers=0, precision="fp32", random_state=0)
    clf.fit(TEXTS, LABELS)
    probes = ["a late goal decided the match", "the lender reported higher earnings", "why?"]
    assert clf.predict(probes[:2]).tolist() == ["sport", "money"]
    assert (clf.model_id_, clf.n_layers_, clf.attention_) == ("minilm-l6", 6, "bidirectional")
    folder = alias_folder("minilm-l6")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with torch.no_grad():
        states = [model(**tokenizer(t, return_tensors="pt"))[0].mean(1) for t in probes]
        scores = torch.cat(states) @ clf._model.network.head.weight.T
    np.testing.assert_allclose(
        clf.predict_proba(probes), scores.softmax(1).numpy(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.thorough
def test_quickstart__small__tells_the_whole_story(real_cache: Path, tmp_path: Path) -> None:
    out = tmp_path / "news.joblib"
    run = subprocess.run(
        [sys.executable, "-W", "error", "examples/quickstart.py", "--small", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    for expected in (
        "Training on 100 labelled articles of 8 topics.",
        "GPTTextClassifier on 100 unseen articles",
        "f1-score",
        "Accuracy of all, trained on the same 100:",
        "%  frozen MiniLM + linear model",
        "%  TF-IDF + linear SVM",
        "The winner is: ",
        "In a fresh process:",
        "OPEC ministers",
    ):
        assert expected in run.stdout
    assert "epoch 1/1: loss" in run.stderr
    assert out.exists()
