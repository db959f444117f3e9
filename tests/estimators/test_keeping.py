"""Every way to keep a fitted model: the same predictions, safe to open, and it goes on learning."""

import copy
import logging
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import skops.io
from sklearn.base import clone

import skgpt
from skgpt import GPTTextClassifier
from skgpt.exceptions import ModelNotFoundError, StateFormatError
from skgpt.pretrained.default_models import ALIASES, WheelFile, alias_folder, no_downloads
from skgpt.saving.state import FORMAT
from skgpt.tensor_files import from_bytes
from skgpt.testing import tiny_gpt
from skgpt.tuning import GPTSearchCV
from tests.helpers import (
    KINDS,
    Fitted,
    global_random_state_unchanged,
    make,
    make_text_data,
    rewritten,
)

X, y = make_text_data(n_classes=2)
Keep = Callable[[GPTTextClassifier, Path], GPTTextClassifier]


def by_pickle(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    return pickle.loads(pickle.dumps(clf))


def by_joblib(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    joblib.dump(clf, folder / "clf.joblib", compress=3)
    return joblib.load(folder / "clf.joblib")


def by_joblib_mapped(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    joblib.dump(clf, folder / "clf.joblib")
    return joblib.load(folder / "clf.joblib", mmap_mode="r")


def by_skops(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    skops.io.dump(clf, folder / "clf.skops")
    untrusted = skops.io.get_untrusted_types(file=folder / "clf.skops")
    ours = ["skgpt.classifier.GPTTextClassifier"]
    assert untrusted == (ours if clf.lora is None else [*ours, "skgpt.lora.LoRA"])
    return skops.io.load(folder / "clf.skops", trusted=untrusted)


def by_deepcopy(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    return copy.deepcopy(clf)


def by_folder(clf: GPTTextClassifier, folder: Path) -> GPTTextClassifier:
    skgpt.save(clf, folder / "saved")
    return skgpt.load(folder / "saved")


WAYS = [by_pickle, by_joblib, by_joblib_mapped, by_skops, by_deepcopy, by_folder]


def attributes(clf: GPTTextClassifier) -> dict[str, Any]:
    fitted = {name: value for name, value in vars(clf).items() if name.endswith("_")}
    return {**fitted, "classes_": [(each.dtype, each.tolist()) for each in class_lists(clf)]}


def class_lists(clf: GPTTextClassifier) -> list[Any]:
    return clf.classes_ if isinstance(clf.classes_, list) else [clf.classes_]


@pytest.mark.first_tier(keep=[by_pickle, by_folder])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", WAYS)
def test_keep__every_kind_of_model__is_the_same(
    keep: Keep, kind: str, fitted_model: Callable[[str], Fitted], tmp_path: Path
) -> None:
    clf, X, _ = fitted_model(kind)
    with global_random_state_unchanged():
        again = keep(clf, tmp_path)
    assert np.array_equal(np.hstack(again.predict_proba(X)), np.hstack(clf.predict_proba(X)))
    assert repr(again.get_params(deep=False)) == repr(clf.get_params(deep=False))
    assert attributes(again) == attributes(clf)


@pytest.mark.parametrize("keep", WAYS)
def test_keep__between_fits__changes_nothing(keep: Keep, tiny_llama: str, tmp_path: Path) -> None:
    clf = make(tiny_llama).partial_fit(X[:20], y[:20], classes=["money", "sport"])
    before = clf.predict_proba(X)
    again = keep(clf, tmp_path).partial_fit(X[20:], y[20:])
    assert np.array_equal(clf.predict_proba(X), before)  # they share nothing that learns
    clf.partial_fit(X[20:], y[20:])
    assert again.n_iter_ == 2
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    for estimator in (clf, again):
        estimator.set_params(warm_start=True, max_epochs=1).fit(X, y)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))


@pytest.mark.parametrize("keep", [by_skops, by_folder])
def test_keep__columns_and_scores__come_back(keep: Keep, tiny_llama: str, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"title": X, "body": X[::-1]})
    clf = make(tiny_llama, template="{title}: {body}", early_stopping=True, scoring="accuracy")
    clf.fit(table, y == "money")
    again = keep(clf, tmp_path)
    assert np.array_equal(again.predict_proba(table), clf.predict_proba(table))
    assert again.feature_names_in_.tolist() == ["title", "body"]
    assert again.classes_.dtype == bool
    assert again.validation_scores_ == clf.validation_scores_
    tags = np.column_stack([y == "money", y != "money"]).astype(np.uint8)
    clf = make(tiny_llama, class_weight=[{0: 1.0, 1: 2.0}, {0: 1, 1: 1}], max_epochs=1)
    again = keep(clf.fit(X, tags), tmp_path)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert again.class_weight == clf.class_weight


def test_pickle__its_content__is_values_and_arrays(fitted_model: Callable[[str], Fitted]) -> None:
    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            value = list(value.values())
        if isinstance(value, list | tuple):
            return [leaf for item in value for leaf in leaves(item)]
        return [value]

    kinds = {type(leaf) for leaf in leaves(fitted_model("calibrated").clf.__getstate__())}
    assert kinds <= {str, int, float, bool, type(None), np.ndarray}


def test_pickle__of_the_same_fit__has_the_same_hash(tiny_llama: str) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    assert joblib.hash(pickle.loads(pickle.dumps(clf))) == joblib.hash(clf)
    other = make(tiny_llama, max_epochs=1, random_state=1).fit(X, y)
    assert joblib.hash(other) != joblib.hash(clf)


def assert_frozen_is_shared(one: GPTTextClassifier, two: GPTTextClassifier) -> None:
    assert one._model.network is not two._model.network
    learnable = one._model.network.learnable
    for name, parameter in one._model.network.trunk.named_parameters():
        shared = parameter.data_ptr() == two._model.network.trunk.get_parameter(name).data_ptr()
        assert shared == (name not in learnable)


def test_deepcopy__the_base__is_shared(tiny_llama: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clf = make(tiny_llama, max_epochs=1).fit(X, y)
    monkeypatch.setattr("skgpt._base.pack", lambda *_: pytest.fail("serialised"))
    twin = copy.deepcopy([clf, clf])
    assert twin[0] is twin[1]
    assert_frozen_is_shared(clf, twin[0])


# Whether the base model goes in, what opening asks for, and which damage it sees.


@pytest.fixture
def tiny_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make "tiny" an alias, and return the folder that stands for its converted file."""
    folder = tmp_path / "tiny"
    tiny_gpt(folder)
    wheel = WheelFile("no-such-package", "1", "no_such_package", "a/b.gguf", "0" * 64, 1000)
    monkeypatch.setitem(ALIASES, "tiny", wheel)
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", lambda alias: folder)
    return folder


def opened(state: dict[str, Any]) -> GPTTextClassifier:
    clf = GPTTextClassifier.__new__(GPTTextClassifier)
    clf.__setstate__(state)
    return clf


@pytest.fixture
def state(fitted_model: Callable[[str], Fitted]) -> dict[str, Any]:
    """Return what a pickle of a fitted model holds."""
    return fitted_model("two classes").clf.__getstate__()


def changed(
    state: dict[str, Any], change: Callable[[dict[str, Any], dict[str, Any]], object]
) -> dict[str, Any]:
    """Return a pickle's state with other values and tensors in its model."""
    packed = state["_model"]
    return {**state, "_model": {**packed, "state": rewritten(packed["state"], change)}}


def holds_base(clf: GPTTextClassifier) -> bool:
    return "base" in from_bytes(clf.__getstate__()["_model"]["state"]).values["network"]


def test_store_base__true__an_alias_is_inside_and_opens_where_it_is_not(
    tiny_alias: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make("tiny", max_epochs=1, store_base=True).fit(X, y)
    data = pickle.dumps(clf)
    assert len(data) > 2 * len(pickle.dumps(clf.set_params(store_base="auto")))
    expected = clf.predict_proba(X)
    skgpt.clear_cache()
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", lambda alias: pytest.fail("asked"))
    again = pickle.loads(data)
    assert np.array_equal(again.predict_proba(X), expected)
    assert again.model_id_ == "tiny"
    again.set_params(warm_start=True).fit(X, y)
    # It is still that alias, so that the base need not stay inside for ever.
    assert not holds_base(again.set_params(store_base="auto"))
    assert holds_base(again.set_params(store_base=True))


def test_store_base__false__a_folder_stays_out_and_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = make(tiny_gpt(tmp_path / "base"), max_epochs=1, store_base=False).fit(X, y)
    data = pickle.dumps(clf)
    assert len(data) < len(pickle.dumps(clf.set_params(store_base="auto"))) / 2
    again = pickle.loads(data)
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    skgpt.clear_cache()
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ModelNotFoundError, match="store_base=True") as caught:
        pickle.loads(data)
    assert str(tmp_path / "base") in str(caught.value)
    tiny_gpt(tmp_path / "base", seed=1)
    with pytest.raises(ModelNotFoundError, match="holds other weights"):
        pickle.loads(data)


def test_store_base__false_and_a_relative_path__the_hub_is_not_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_gpt(tmp_path / "models" / "base")
    clf = make("models/base", max_epochs=1, store_base=False).fit(X, y)
    data = pickle.dumps(clf)
    monkeypatch.chdir("/")
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained", lambda *a, **k: pytest.fail("asked the hub")
    )
    with pytest.raises(ModelNotFoundError, match="no such file or folder"):
        pickle.loads(data)


def test_store_base__something_else__is_refused(fitted_model: Callable[[str], Fitted]) -> None:
    clf, X, y = fitted_model("two classes")
    with pytest.raises(ValueError, match="'store_base' parameter"):
        clone(clf).set_params(store_base="yes").fit(X, y)
    with pytest.raises(ValueError, match="`store_base` must be"):
        pickle.dumps(copy.copy(clf).set_params(store_base="yes"))


def test_store_base__after_opening__frozen_tensors_are_shared(tiny_alias: Path) -> None:
    data = pickle.dumps(make("tiny", max_epochs=1).fit(X, y))
    assert_frozen_is_shared(pickle.loads(data), pickle.loads(data))


def test_open__an_alias_that_is_not_here__says_where_it_looked_and_what_helps(
    tiny_alias: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pickle.dumps(make("tiny", max_epochs=1).fit(X, y))
    skgpt.clear_cache()
    cache = tiny_alias.parent / "cache"
    monkeypatch.setenv("SKGPT_CACHE", str(cache))
    monkeypatch.setattr("skgpt.pretrained.loading.alias_folder", alias_folder)
    with no_downloads(), pytest.raises(ModelNotFoundError, match="downloads are not") as caught:
        pickle.loads(data)
    for part in ("'tiny'", str(cache), "store_base=True", "no-such-package==1"):
        assert part in str(caught.value)
    assert not cache.exists()  # looking writes nothing


@pytest.mark.parametrize("other", [0, FORMAT + 1])
def test_open__another_format__is_refused_by_name(other: int, state: dict[str, Any]) -> None:
    state = changed(state, lambda values, _: values["model"].update(format=other))
    with pytest.raises(StateFormatError, match=f"Got {other}"):
        opened(state)


@pytest.mark.parametrize(
    ("setting", "message"), [({"mixture": 3}, "'mixture'"), ({"n_outputs": 10**12}, "head")]
)
def test_open__a_setting_that_makes_no_sense__is_refused_before_anything_is_made(
    setting: dict[str, Any], message: str, state: dict[str, Any]
) -> None:
    state = changed(state, lambda values, _: values["network"]["learned"]["spec"].update(setting))
    with pytest.raises(StateFormatError, match=message):
        opened(state)


def test_open__any_tensor_of_another_shape__is_refused(state: dict[str, Any]) -> None:
    def cut(name: str, values: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[name] = tensors[name][:1]

    tensors = from_bytes(state["_model"]["state"]).tensors
    names = [name for name in tensors if name.startswith(("network/learned/", "network/base/"))]
    assert any(name.startswith("network/base/") for name in names)
    for name in names:
        with pytest.raises(StateFormatError, match=r"must (hold|have a head)"):
            opened(changed(state, partial(cut, name)))


@pytest.mark.parametrize("asked", ["cuda:7", "auto"])
def test_open__the_device_it_was_fitted_on_is_missing__says_which_it_is_on(
    asked: str, tiny_llama: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clf = make(tiny_llama, max_epochs=1, precision="fp32", device="cpu").fit(X, y)
    was = {"device": asked, "fitted_on": "cuda:7"}
    state = changed(clf.__getstate__(), lambda values, _: values["model"].update(was))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("skgpt.device.has_fast_bf16", lambda device: True)
    with caplog.at_level(logging.INFO, logger="skgpt"):
        again = opened(state)
    assert again.device_ == "cpu"
    assert caplog.messages == ["GPTTextClassifier was fitted on cuda:7 and is on cpu now"]
    # fp32 was asked for, and fp32 it is.
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    caplog.clear()
    pickle.loads(pickle.dumps(again))
    assert not caplog.messages


def test_pickle__paths_among_the_parameters__go_in_as_text(tiny_llama: str, tmp_path: Path) -> None:
    options = {"checkpoint_dir": tmp_path, "warm_start": True, "max_epochs": 1}
    clf = make(Path(tiny_llama), **options).fit(X, y)
    search = GPTSearchCV(clone(clf), {"batch_size": [8]}, storage=tmp_path / "search.db")
    for estimator in (clf, clone(clf), search):
        assert b"pathlib" not in pickle.dumps(estimator)
    again = by_skops(clf, tmp_path)
    assert (again.model, again.checkpoint_dir) == (tiny_llama, str(tmp_path))
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert np.array_equal(again.fit(X, y).predict_proba(X), clf.fit(X, y).predict_proba(X))
