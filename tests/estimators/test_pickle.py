"""A fitted estimator as a pickle: numpy arrays and text, opened anywhere, the same predictions."""

import copy
import pickle
import pickletools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.base import clone

from skgpt import GPTTextClassifier
from skgpt.exceptions import ModelNotFoundError, StateFormatError
from skgpt.pretrained.default_models import ALIASES
from skgpt.saving.state import FORMAT
from skgpt.testing import tiny_gpt
from skgpt.testing.tiny import _ARCHITECTURES as ARCHITECTURES
from tests.estimators.test_classifier import make
from tests.helpers import TextData, global_random_state_unchanged

_OPEN = """
import sys, joblib, numpy as np
clf = joblib.load(sys.argv[1])
texts, expected = joblib.load(sys.argv[2])
assert np.array_equal(clf.predict_proba(texts), expected), "other predictions"
print("same", clf.predict(texts)[0])
"""


def modules_in(data: bytes) -> set[str]:
    """Return the top-level modules that a pickle names."""
    strings: list[str] = []
    modules = set()
    for opcode, argument, _ in pickletools.genops(data):
        if "UNICODE" in opcode.name:
            strings.append(argument)
        elif opcode.name == "STACK_GLOBAL":
            # module and name are the two strings that were pushed or recalled last
            modules |= {s.split(".")[0] for s in strings[-4:] if s.replace(".", "").isidentifier()}
        elif opcode.name == "GLOBAL":
            modules.add(argument.split(".")[0])
    return modules


@pytest.mark.parametrize("trainable", ["all", 1, 0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pickle__round_trip__predicts_identically(
    trainable: Any, precision: str, tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    options = {"trainable_layers": trainable, "precision": precision, "n_layers": 2}
    clf = make(tiny_llama, max_epochs=2, **options).fit(X, y)
    again = pickle.loads(pickle.dumps(clf))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.history_ == clf.history_
    twice = pickle.loads(pickle.dumps(again))
    assert np.array_equal(twice.predict_proba(X), clf.predict_proba(X))


@pytest.mark.first_tier(architecture=["llama", "gpt2", "bert"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pickle__every_architecture_cut_short__predicts_identically(
    architecture: str, tiny_model: Callable[[str], str], two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_model(architecture), n_layers=2, max_epochs=1).fit(X, y)
    with global_random_state_unchanged():
        again = pickle.loads(pickle.dumps(clf))
        twice = pickle.loads(pickle.dumps(again))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(twice.predict_proba(X), clf.predict_proba(X))


def test_pickle__its_content__names_no_torch_object(
    tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    data = pickle.dumps(clf)
    assert not modules_in(data) & {"torch", "transformers", "tokenizers", "safetensors"}

    def leaves(value: Any) -> Any:
        if isinstance(value, dict):
            for item in value.values():
                yield from leaves(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from leaves(item)
        else:
            yield value

    kinds = {type(leaf) for leaf in leaves(clf.__getstate__())}
    assert kinds <= {str, int, float, bool, type(None), np.ndarray}


def test_pickle__in_a_fresh_process__predicts_identically(
    two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    folder = tmp_path / "base"
    clf = make(tiny_gpt(folder), max_epochs=2).fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    joblib.dump((list(X), clf.predict_proba(X)), tmp_path / "expected.joblib")
    for path in sorted(folder.iterdir()):  # a local folder's weights are inside the pickle
        path.unlink()
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", _OPEN, "clf.joblib", "expected.joblib"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("same")


def test_pickle__memory_mapped__opens(
    tiny_llama: str, two_class_data: TextData, tmp_path: Path
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    mapped = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    assert np.array_equal(mapped.predict_proba(X), clf.predict_proba(X))
    mapped.fit(X, y)


def test_pickle__of_the_same_fit__has_the_same_hash(
    tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    assert joblib.hash(pickle.loads(pickle.dumps(clf))) == joblib.hash(clf)
    other = make(tiny_llama, max_epochs=1, random_state=1).fit(*two_class_data)
    assert joblib.hash(other) != joblib.hash(clf)


def test_deepcopy__a_fitted_model__is_independent(
    tiny_llama: str, two_class_data: TextData
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    before = clf.predict_proba(X)
    twin = copy.deepcopy(clf)
    assert np.array_equal(twin.predict_proba(X), before)
    for master in twin._model.network.learnable.values():
        master.data.zero_()
    twin._model.network.refresh()
    assert np.array_equal(clf.predict_proba(X), before)


def test_pickle__an_unfitted_estimator__is_tiny(tiny_llama: str) -> None:
    clf = GPTTextClassifier(tiny_llama)
    assert len(pickle.dumps(clf)) < 2_000
    assert clone(pickle.loads(pickle.dumps(clf))).get_params() == clf.get_params()


def test_pickle__a_base_by_name__holds_only_what_was_learned(
    two_class_data: TextData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    folder = tiny_gpt(tmp_path / "base")
    monkeypatch.setitem(ALIASES, "tiny", None)
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", lambda alias: folder)
    clf = make("tiny", max_epochs=1).fit(X, y)
    data = pickle.dumps(clf)
    assert len(data) < len(pickle.dumps(make(folder, max_epochs=1).fit(X, y))) / 2
    again = pickle.loads(data)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    frozen = {n for n, _ in clf._model.network.trunk.named_parameters()} - set(
        clf._model.network.learnable
    )
    for name in frozen:  # two estimators of one base hold its tensors once
        one, two = (c._model.network.trunk.get_parameter(name) for c in (clf, again))
        assert one.data_ptr() == two.data_ptr()

    import skgpt

    skgpt.clear_cache()
    tiny_gpt(tmp_path / "base", seed=1)
    with pytest.raises(ModelNotFoundError, match="holds other weights"):
        pickle.loads(data)
    skgpt.clear_cache()
    monkeypatch.setattr(
        "skgpt.pretrained.loading.alias_folder", lambda alias: str(tmp_path / "gone")
    )
    with pytest.raises(ModelNotFoundError, match="stands on 'tiny'"):
        pickle.loads(data)


@pytest.mark.parametrize("other", [0, FORMAT + 1, 999])
def test_pickle__an_earlier_or_later_format__is_refused_by_name(
    other: int, tiny_llama: str, two_class_data: TextData
) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    state = clf.__getstate__()
    state["_model"]["format"] = other
    with pytest.raises(StateFormatError, match=f"Got {other}"):
        GPTTextClassifier.__new__(GPTTextClassifier).__setstate__(state)


def test_pickle__trained_where_there_was_a_gpu__opens_without_one(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, max_epochs=1, precision="fp32").fit(X, y)
    state = clf.__getstate__()
    state["_model"] |= {"device": "cuda:7", "precision": "fp32"}
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    opened = GPTTextClassifier.__new__(GPTTextClassifier)
    opened.__setstate__(state)
    assert opened.device_ == "cpu"
    np.testing.assert_allclose(opened.predict_proba(X), clf.predict_proba(X), atol=0.05)
