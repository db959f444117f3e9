"""save_pretrained and from_pretrained: what transformers says of a folder is what we say."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss
from transformers import pipeline

from skgpt import GPTTextClassifier
from skgpt.exceptions import FolderTakenError, ModelNotSupportedError, StateFormatError
from skgpt.saving import huggingface as hf
from tests.helpers import TextData, global_random_state_unchanged, make, make_text_data
from tests.pretrained.checkpoints import plain_checkpoint

X, y = DATA = make_text_data(n_classes=2)

# Of unequal lengths, alone in its batch or not; with special tokens' strings; and one to be cut.
PROBES = [
    "goal match",
    "a",
    "the bank of the league",
    "orbit </s>",
    "<|endoftext|>",
    "<s> rocket </s> launch",
    "ünï \U0001f600 profit",
    "a new report about the market " * 9,
    "planet",
]


def fitted(folder: str, data: TextData, **options: Any) -> GPTTextClassifier:
    settings = {"pooling": "last", "precision": "fp32", "max_epochs": 2, **options}
    return make(folder, **settings).fit(data.X, data.y)


@pytest.fixture(scope="module")
def exported(tiny_llama: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what a fitted classifier of two classes has written: to read, or to copy."""
    out = tmp_path_factory.mktemp("exported") / "out"
    fitted(tiny_llama, DATA).save_pretrained(out)
    return out


def piped(folder: Any, names: list[str], batch_size: int = 4) -> NDArray[np.float64]:
    """Return the probabilities that transformers' pipeline gives, in the order of these names."""
    classify = pipeline("text-classification", str(folder), device="cpu")
    rows = classify(PROBES, top_k=None, truncation=True, batch_size=batch_size)
    by_name = [{found["label"]: found["score"] for found in row} for row in rows]
    assert all(set(row) == set(names) for row in by_name)
    return np.array([[row[name] for name in names] for row in by_name])


def same(a: Any, b: Any, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(a, b, atol=atol, rtol=0)


@pytest.mark.parametrize("labels", [[7, 30], [False, True], ["b", "ä | <b>"], None])
def test_from_pretrained__labels_of_any_type__come_back_as_they_were(
    labels: list[Any] | None, tiny_llama: str, tmp_path: Path
) -> None:
    several = np.array([["bank" in text, "goal" in text, "the" in text] for text in X]).astype(int)
    target = several if labels is None else np.array(labels)[(y == "money").astype(int)]
    clf = fitted(tiny_llama, TextData(X, target))
    clf.save_pretrained(tmp_path / "out")
    names = [str(label) for label in clf.classes_.tolist()]
    same(piped(tmp_path / "out", names), clf.predict_proba(PROBES), 1e-4)
    opened = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    assert opened.classes_.dtype == clf.classes_.dtype
    assert opened.classes_.tolist() == clf.classes_.tolist()
    assert opened.predict(X).tolist() == clf.predict(X).tolist()


@pytest.mark.parametrize("trainable", ["all", 0])
def test_save_pretrained__trained_in_bf16__says_what_fp32_says(
    trainable: Any, tiny_llama: str, tmp_path: Path
) -> None:
    clf = fitted(tiny_llama, DATA, precision="bf16", trainable_layers=trainable)
    clf.save_pretrained(tmp_path / "out")
    exact = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    same(piped(tmp_path / "out", clf.classes_.tolist()), exact.predict_proba(PROBES), 1e-4)
    for name, master in clf._model.network.learnable.items():
        learned = exact._model.network.trunk.get_parameter(name).detach()
        assert np.array_equal(learned.numpy(), master.numpy())
    half = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="bf16")
    same(half.predict_proba(PROBES), clf.predict_proba(PROBES))


def test_from_pretrained__what_was_exported__is_fitted_and_goes_on(
    tiny_llama: str, three_class_data: TextData, tmp_path: Path
) -> None:
    X, y = three_class_data
    clf = fitted(tiny_llama, three_class_data, n_layers=2, batch_size=4)
    with global_random_state_unchanged():
        clf.save_pretrained(tmp_path / "out")
        opened = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    assert (opened.model, opened.n_layers, opened.pooling) == (str(tmp_path / "out"), None, "last")
    assert (opened.batch_size, opened.max_length, opened.random_state) == (4, 64, 0)
    assert (opened.n_iter_, opened.history_, opened.pooling_) == (0, [], "last")
    assert opened.model_id_ == opened.model
    again = pickle.loads(pickle.dumps(opened))
    before = clf.predict_proba(X)
    for one in (opened, again):
        same(one.predict_proba(X), before)
        one.set_params(warm_start=True, max_epochs=3).fit(X, y)
        assert one.loss_curve_[0] < np.log(3)
        assert log_loss(y, one.predict_proba(X)) < log_loss(y, before)
    same(opened.predict_proba(X), again.predict_proba(X))
    parts = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32", verbose=0)
    parts.partial_fit(X, y)
    assert parts.n_iter_ == 1
    assert parts._model.trained_on["rows"] == 2 * len(X)
    opened.save_pretrained(tmp_path / "out")  # over what it stands on
    next_ = GPTTextClassifier.from_pretrained(tmp_path / "out", precision="fp32")
    same(next_.predict_proba(X), opened.predict_proba(X))


@pytest.mark.parametrize("pad", [None, "</s>", "<s>"])
@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_from_pretrained__what_transformers_wrote__says_the_same(
    problem: str | None, pad: str | None, tiny_llama: str, tmp_path: Path
) -> None:
    names = ["sport", "money", "a"]
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", names, problem=problem, pad=pad)
    opened = GPTTextClassifier.from_pretrained(folder, precision="fp32")
    assert opened.max_length == 1024
    by_hand = names if problem else sorted(names)
    expected = range(3) if problem else by_hand
    assert opened.classes_.tolist() == list(expected)
    proba = opened.predict_proba(PROBES[:3])
    same(piped(folder, by_hand, batch_size=1 if pad is None else 4)[:3], proba, 1e-4)
    again = pickle.loads(pickle.dumps(opened))
    assert np.array_equal(again.predict_proba(PROBES[:3]), proba)
    if problem is None:
        opened.set_params(warm_start=True, max_epochs=1).fit(["x", "y", "z"], names)
        assert opened.classes_.tolist() == by_hand


@pytest.mark.parametrize("trainable", [1, 0])
def test_from_pretrained__a_hub_id__is_read_from_the_cache_and_pickled_by_name(
    trainable: Any, tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    clf = fitted(tiny_llama, TextData(X, (y == "money").astype(int)))
    clf.save_pretrained(repository / "snapshots" / ("0" * 40))
    opened = GPTTextClassifier.from_pretrained(
        "somebody/tiny", precision="fp32", trainable_layers=trainable
    )
    assert opened.classes_.tolist() == [0, 1]
    same(opened.predict_proba(X), clf.predict_proba(X))
    opened.set_params(warm_start=True, max_epochs=1).fit(X, opened.predict(X))
    data = pickle.dumps(opened)
    assert len(data) < len(pickle.dumps(clf)) / 2
    assert np.array_equal(pickle.loads(data).predict_proba(X), opened.predict_proba(X))


@pytest.mark.parametrize(
    ("options", "columns", "message"),
    [
        ({"pooling": "mean"}, 1, "`pooling`"),
        ({"template": "Text: {text}"}, 1, "`template`"),
        ({}, 2, "`template`.*single column"),
    ],
)
def test_save_pretrained__what_the_format_has_no_word_for__is_refused_by_name(
    options: dict[str, Any], columns: int, message: str, tiny_llama: str, tmp_path: Path
) -> None:
    clf = fitted(tiny_llama, TextData(np.column_stack([X] * columns), y), **options)
    with pytest.raises(ModelNotSupportedError, match=message):
        clf.save_pretrained(tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("n_layers", "named"), [(None, "model"), (2, "n_layers")])
def test_save_pretrained__a_proof_that_fails__leaves_the_folder_as_it_was(
    n_layers: int | None,
    named: str,
    tiny_llama: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    clf = fitted(tiny_llama, DATA, n_layers=n_layers)
    clf.save_pretrained(out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    read = hf._read_scores
    monkeypatch.setattr(hf, "_read_scores", lambda folder: read(folder) + 1e-3)
    with pytest.raises(ModelNotSupportedError, match=rf"`{named}`.*differ by 0\.001"):
        clf.save_pretrained(out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_save_pretrained__a_strangers_folder__is_left_alone(exported: Path, tmp_path: Path) -> None:
    clf = GPTTextClassifier.from_pretrained(exported)
    for name, content in {"notes.txt": "mine", "skgpt.json": '{"written_by": "me"}'}.items():
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text(content)
        with pytest.raises(FolderTakenError, match="other files"):
            clf.save_pretrained(out)
        assert {path.name: path.read_text() for path in out.iterdir()} == {name: content}
    for _ in range(2):  # its own folder it replaces
        clf.save_pretrained(tmp_path / "own")
    (tmp_path / "own" / ".git").mkdir()
    with pytest.raises(FolderTakenError, match=r"'\.git'"):
        clf.save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / ".git").is_dir()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"pooling": "mean"}, "pooling"),
        ({"template": "{text}"}, "template"),
        ({"n_layers": 1}, "n_layers"),
        ({"long_text": "windows"}, "long_text"),
        ({"model": "another"}, "model"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_length": 4096}, "max_length"),
    ],
)
def test_from_pretrained__parameters_that_do_not_fit__are_named(
    options: dict[str, Any], name: str, tiny_llama: str, tmp_path: Path
) -> None:
    folder = plain_checkpoint(tiny_llama, tmp_path / "plain", ["a", "b"])
    with pytest.raises(ValueError, match=name):
        GPTTextClassifier.from_pretrained(folder, **options)


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 1 of save_pretrained. Got 2"),
        ({"written_by": "me"}, "save_pretrained. Got None"),
        (
            {"classes": {"!": "array", "dtype": "<U1", "shape": [2], "items": ["x", "y"]}},
            "id2label",
        ),
        ({"classes": {"!": "code"}}, "can't be read"),
        ("[" * 100_000, "can't be read"),
    ],
    ids=lambda value: "",
)
def test_from_pretrained__notes_that_do_not_fit__say_so(
    changes: Any, message: str, exported: Path, tmp_path: Path
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    notes = tmp_path / "out" / "skgpt.json"
    notes.write_text(changes) if isinstance(changes, str) else edit(notes, **changes)
    with pytest.raises(StateFormatError, match=message):
        GPTTextClassifier.from_pretrained(tmp_path / "out")
    (tmp_path / "out" / "skgpt.json").unlink()
    opened = GPTTextClassifier.from_pretrained(tmp_path / "out")
    assert opened.classes_.tolist() == ["money", "sport"]
    assert opened.max_length == 64  # the tokenizer says it too


def test_from_pretrained__labels_out_of_order__are_refused(exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(exported, out)
    classes = {"!": "array", "dtype": "object", "shape": [2], "items": ["sport", "money"]}
    edit(out / "skgpt.json", classes=classes)
    edit(out / "config.json", id2label={"0": "sport", "1": "money"})
    with pytest.raises(StateFormatError, match="sorted"):
        GPTTextClassifier.from_pretrained(out)


def test_card__with_held_out_rows__says_what_is_known(tiny_llama: str, tmp_path: Path) -> None:
    labels = np.array(["a|b", "<c>"], dtype=object)[(y == "money").astype(int)]
    clf = fitted(tiny_llama, TextData(X, labels), early_stopping=True, validation_fraction=0.25)
    clf.save_pretrained(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    front = card.split("---\n")[1]
    assert "library_name: transformers\npipeline_tag: text-classification\n" in front
    assert 'base_model: "llama"\n' in front
    assert "30 texts." in card and "| a\\|b | 15 |" in card and "| \\<c\\> | 15 |" in card
    for record in clf.history_:
        assert f"| {record['validation_score']:.6g} |" in card
    assert "`learning_rate`: 0.001" in card and "`weight_decay`" not in card
    assert str(tmp_path) not in card and tiny_llama not in card
    for library in ("skgpt", "torch", "transformers", "scikit-learn", "numpy"):
        assert f"- {library} " in card


def test_card__opened_and_not_fitted_on__knows_what_was_noted(
    exported: Path, tiny_llama: str, tmp_path: Path
) -> None:
    opened = GPTTextClassifier.from_pretrained(exported)
    opened.save_pretrained(tmp_path / "again")
    assert "40 texts." in (tmp_path / "again" / "README.md").read_text("utf-8")
    plain = plain_checkpoint(tiny_llama, tmp_path / "plain", ["a", "b"])
    other = GPTTextClassifier.from_pretrained(plain)
    other.save_pretrained(tmp_path / "other")
    assert "is not known" in (tmp_path / "other" / "README.md").read_text("utf-8")
    other.partial_fit(X, np.where(np.arange(len(X)) % 2, "a", "b"))
    assert other._model.trained_on is None


def test_trained_on__calls_of_partial_fit__add_up_where_classes_join(tiny_llama: str) -> None:
    clf = make(tiny_llama)
    clf.partial_fit(["x", "y", "y"], ["a", "c", "c"], classes=["a", "c"])
    clf.partial_fit(["z", "x"], ["b", "a"], classes=["a", "b", "c"])
    assert clf._model.trained_on == {"rows": 5, "labels": {"a": 2, "b": 1, "c": 2}}
    clf.fit(["x", "y", "z"], [0, 1, 1])
    assert clf._model.trained_on == {"rows": 3, "labels": {"0": 1, "1": 2}}
    clf.fit(["x", "y", "z"], [[0, 1], [1, 1], [0, 0]])
    assert clf._model.trained_on == {"rows": 3, "labels": {"0": 1, "1": 2}}
