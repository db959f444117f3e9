"""save_onnx: what the graph and the example's server say is what the estimator says."""

import functools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from skgpt import GPTTextClassifier, GPTTextRegressor
from skgpt.data.template import Template
from skgpt.data.tokenization import tokenise_rows
from skgpt.exceptions import (
    FolderTakenError,
    InvalidArgumentError,
    MissingPackageError,
    ModelNotSupportedError,
)
from skgpt.lora import LoRA
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.saving import onnx
from skgpt.saving.onnx import how_to_prepare, write_tokenizer
from tests.helpers import columns_of_classes, make, make_text_data

EXAMPLES = Path(__file__).parents[2] / "examples"

X, y = make_text_data(n_classes=3)
# Of unequal lengths, one to be cut, and with strings that look like special tokens.
PROBES = [
    *("goal match", "a", "", "orbit </s>", "<|endoftext|> [CLS]", "ünï \U0001f600 profit"),
    "a new report about the market " * 9,
]

KINDS: dict[str, dict[str, Any]] = {
    "mean, both ways": {"attention": "bidirectional", "pooling": "mean"},
    "mean, causal": {"attention": "causal", "pooling": "mean"},
    "last": {"pooling": "last"},
    "head alone": {"trainable_layers": 0},
    "bf16": {"precision": "bf16"},
    "calibrated": {"calibrate": True, "validation_fraction": 0.25},
    "lora": {"lora": LoRA(rank=4), "trainable_layers": "all", "learning_rate": 1e-2},
    "multilabel": {"trainable_layers": "all"},
    "several outputs": {},
    "label words": {
        "n_layers": None,
        "template": "{text}\nTopic:",
        "label_words": {"money": "m", "space": "sp", "sport": "st"},
    },
}


@pytest.fixture(scope="module")
def server_module() -> Any:
    """Return the example's module."""
    with patch.object(sys, "path", [str(EXAMPLES), *sys.path]):
        return __import__("onnx_server")


def fitted(folder: str, kind: str) -> GPTTextClassifier:
    target: Any = y
    if kind == "multilabel":
        target = np.stack([y == label for label in ("money", "space", "sport")], axis=1)
        target = target.astype(np.int64)
    if kind == "several outputs":
        target = columns_of_classes(y)
    options = {"n_layers": 2, "precision": "fp32", "max_epochs": 1, "max_length": 48}
    options |= KINDS[kind]
    return make(folder, **options).fit(X, target)


# --- What the graph says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *[("llama", kind) for kind in KINDS],
        *[("gpt2", kind) for kind in ("mean, both ways", "last")],
        *[("gpt_neox", kind) for kind in ("mean, both ways", "lora")],
        ("qwen3", "last"),
        ("bert", "multilabel"),
        # Each attends in a way of its own, some within windows.
        *[("gpt_neo", "last"), ("gemma3", "mean, both ways"), ("bloom", "mean, causal")],
        *[("opt", "last"), ("roberta", "calibrated"), ("modernbert", "head alone")],
    ],
)
@pytest.mark.first_tier(architecture=["llama"], kind=["mean, both ways"])
def test_save_onnx__each_architecture_and_kind__gives_the_same_probabilities(
    architecture: str,
    kind: str,
    tiny_model: Callable[[str], str],
    tmp_path: Path,
    server_module: Any,
) -> None:
    clf = fitted(tiny_model(architecture), kind)
    clf.save_onnx(tmp_path / "out")
    model = server_module.Model(tmp_path / "out", threads=1)
    exact = clf.predict_proba(PROBES)
    found = model.predict(PROBES)
    atol = 0.02 if kind == "bf16" else 1e-4  # the graph computes in fp32
    for theirs, ours in zip(found, exact if isinstance(exact, list) else [exact], strict=True):
        np.testing.assert_allclose(theirs, ours, atol=atol, rtol=0)
    alone = [model.predict([text])[0] for text in PROBES]
    np.testing.assert_allclose(np.concatenate(alone), found[0], atol=1e-5, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("n_columns", [None, 2])
def test_save_onnx__a_regressor__gives_the_same_numbers_in_the_shape_of_y(
    n_columns: int | None, tiny_llama: str, tmp_path: Path, server_module: Any
) -> None:
    numbers = 1e6 + 3 * np.unique(y, return_inverse=True)[1]
    target = numbers if n_columns is None else np.stack([numbers] * n_columns, axis=1)
    reg = GPTTextRegressor(tiny_llama, max_epochs=2, precision="fp32", random_state=0)
    reg.fit(X, target).save_onnx(tmp_path / "out")
    (found,) = server_module.Model(tmp_path / "out", threads=1).predict(PROBES)
    expected = reg.predict(PROBES)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=3e-4, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_save_onnx__int8__has_the_matrices_that_do_not_narrow_in_int8_and_is_near(
    architecture: str, tiny_model: Callable[[str], str], tmp_path: Path, server_module: Any
) -> None:
    import onnx as onnx_package

    clf = fitted(tiny_model(architecture), "mean, both ways")
    clf.save_onnx(tmp_path / "out", int8=True)
    graph = onnx_package.load(tmp_path / "out" / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "MatMulInteger")]
    learned = [stored[node.input[1]] for node in products if node.input[1] in stored]
    kind_of = onnx_package.TensorProto.DataType.Name
    kinds = [(kind_of(each.data_type), each.dims[0] > each.dims[1]) for each in learned]
    n_layers = clf.n_layers_ * (7 if architecture == "llama" else 4)
    assert len(kinds) == n_layers + 1
    narrows = {"INT8": False, "FLOAT": True}
    assert all(narrows.get(kind, is_narrow) == is_narrow for kind, is_narrow in kinds)
    assert {kind for kind, _ in kinds} == {*narrows, "DOUBLE"}  # that is the head
    (found,) = server_module.Model(tmp_path / "out", threads=1).predict(PROBES)
    apart = np.abs(found - clf.predict_proba(PROBES))
    assert 0 < apart.max() < 0.1
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(
        json.loads((tmp_path / "out" / "server.json").read_text())["files"]
    )


# --- What is refused, and what is left alone --------------------------------------------------


def test_save_onnx__texts_in_windows__are_refused(
    fitted_model: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelNotSupportedError, match="`long_text` must be 'cut'"):
        fitted_model("windows").clf.save_onnx(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_save_onnx__without_one_of_the_packages__names_the_extra(
    package: str, fitted_model: Callable[[str], Any], tmp_path: Path
) -> None:
    absent = patch.dict(sys.modules, {package: None})
    with absent, pytest.raises(MissingPackageError, match=r'pip install "skgpt-text\[onnx\]"'):
        fitted_model("default").clf.save_onnx(tmp_path / "out")


def test_save_onnx__a_graph_that_cant_be_written_or_says_something_else__leaves_no_folder(
    fitted_model: Callable[[str], Any], tmp_path: Path
) -> None:
    clf, out = fitted_model("default").clf, tmp_path / "out"
    failing = patch("torch.onnx.export", side_effect=KeyError("no such operator"))
    with failing, pytest.raises(ModelNotSupportedError, match="no such operator"):
        clf.save_onnx(out)
    wrong = [np.full((2, 3), 1 / 3)]
    with (
        patch.object(onnx, "_write_graph"),
        patch.object(onnx, "_run", return_value=wrong),
        pytest.raises(ModelNotSupportedError, match="predictions differ by"),
    ):
        clf.save_onnx(out)
    assert list(tmp_path.iterdir()) == []


def test_save_onnx__a_wrong_column_of_small_numbers__is_found_beside_one_of_large(
    tiny_llama: str, tmp_path: Path
) -> None:
    codes = np.unique(y, return_inverse=True)[1]
    reg = GPTTextRegressor(tiny_llama, trainable_layers=0, precision="fp32")
    reg.fit(X, np.stack([1e6 * codes, codes], axis=1))
    wrong = reg.predict(list(onnx.PROBES)) + np.array([0, 1])
    with (
        patch.object(onnx, "_write_graph"),
        patch.object(onnx, "_run", return_value=[wrong]),
        pytest.raises(ModelNotSupportedError, match="predictions differ by"),
    ):
        reg.save_onnx(tmp_path / "out")


def test_label__dates_of_any_unit__are_texts() -> None:
    dates = [np.datetime64("2020-01-02", unit) for unit in ("D", "ns")]
    assert [onnx._label(date)[:10] for date in dates] == ["2020-01-02"] * 2


def test_save_onnx__a_folder_that_it_wrote__is_replaced_unless_something_was_added(
    fitted_model: Callable[[str], Any], tmp_path: Path
) -> None:
    clf, out = fitted_model("default").clf, tmp_path / "out"
    with patch.object(onnx, "_write_graph"), patch.object(onnx, "_compare"):
        clf.save_onnx(out)
        clf.save_onnx(out)
        (out / "notes.txt").touch()
        with pytest.raises(FolderTakenError, match=r"notes\.txt"):
            clf.save_onnx(out)


def test_save_onnx__int8_that_is_no_bool__is_refused(
    fitted_model: Callable[[str], Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="`int8` must be True or False"):
        fitted_model("default").clf.save_onnx(tmp_path / "out", int8="no")
    assert list(tmp_path.iterdir()) == []


# --- The server -------------------------------------------------------------------------------


def merging_tokenizer(frame: str | None) -> TextTokenizer:
    """Return a byte-level tokenizer whose tokens depend on what stands beside them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("a", "b"),
        ("ab", "c"),
        ("Ġ", "ab"),
        ("b", "c"),
        ("Ċ", "Ċ"),
        (":", "Ġab"),
        ("Ã", "¼"),
    ]
    words = [*alphabet, *("".join(pair) for pair in merges), "<s>", "</s>"]
    backend = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if frame is not None:
        special = [(token, words.index(token)) for token in ("<s>", "</s>")]
        backend.post_processor = processors.TemplateProcessing(single=frame, special_tokens=special)
    return TextTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    )


@pytest.mark.parametrize("frame", [None, "<s> $A", "<s> $A </s>"])
@pytest.mark.parametrize(
    "template",
    [
        Template(("", ""), (0,)),
        Template(("", "\n\n", ""), (0, 1)),
        Template(("ab", ": ", " c", "abc"), (1, 0, 1)),
        Template(("", "\nTopic:"), (1,)),
    ],
)
@pytest.mark.parametrize("max_length", [13, 18, 40])
def test_preparation__any_row_and_template__gives_skgpts_own_ids(
    frame: str | None, template: Template, max_length: int, tmp_path: Path, server_module: Any
) -> None:
    encoder = merging_tokenizer(frame)
    write_tokenizer(encoder, tmp_path)
    about = {"columns": ["title", "body"], **how_to_prepare(template, encoder, max_length)}
    (tmp_path / "server.json").write_text(json.dumps(about))
    preparation = server_module.Preparation(tmp_path)

    # Texts that merge at seams, that are cut inside of characters, and that are no Unicode.
    random = np.random.default_rng(max_length)
    pieces = [
        "ab",
        "abc",
        "bc",
        " ab",
        "c",
        "\n",
        "ü",
        "\U0001f600",
        "</s>",
        "\ud83d",
        "\ude00",
        ": ",
    ]
    rows = [
        ["".join(random.choice(pieces, n)) for n in random.integers(0, 14, 2)] for _ in range(60)
    ]
    expected = tokenise_rows(
        list(map(list, zip(*rows, strict=True))), template, encoder, max_length
    )
    assert expected.n_cut > 10 or max_length == 40
    for i, (title, body) in enumerate(rows):
        assert preparation.ids_of([title, body]) == expected.row(i).tolist()
        assert preparation.ids_of({"body": body, "title": title}) == expected.row(i).tolist()


@pytest.mark.allow_hosts(["127.0.0.1"])
def test_server__columns_with_names_calibrated__answers_as_the_estimator(
    tiny_llama: str, tmp_path: Path, server_module: Any
) -> None:
    frame = pd.DataFrame({"title": X, "n": range(len(X)), "body": np.roll(X, 1)})
    clf = make(
        tiny_llama,
        template="{body}: {title}",
        max_length=24,
        precision="fp32",
        calibrate=True,
        validation_fraction=0.25,
    ).fit(frame, y)
    clf.save_onnx(tmp_path / "out")
    handler = server_module.Handler
    handler.model = server_module.Model(tmp_path / "out", threads=1)

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/classify"
            ask = functools.partial(_ask, url)
            rows = frame[["title", "body"]].to_dict("records")[:20]
            said = ask({"rows": rows})
            refused = [
                ask(body) for body in ({"rows": [{"title": "a"}]}, {"rows": []}, [], {"rows": [3]})
            ]
            refused += [_ask_raw(url, body) for body in (b"", b"[" * 100_000)]
            refused += [_ask_raw(url, b"{}", {"Content-Length": n}) for n in ("-1", "2000001")]
        finally:
            server.shutdown()
    assert said["classes"] == clf.classes_.tolist()
    assert said["labels"] == clf.predict(frame[:20]).tolist()
    np.testing.assert_allclose(said["probabilities"], clf.predict_proba(frame[:20]), atol=1e-4)
    assert {each["status"] for each in refused} == {400}
    assert [each["detail"][:14] for each in refused] == [
        *("every column o", 'send {"texts":', 'send {"texts":', "a row must hav"),
        *("a body must be", "a body must be", "a body must be", "a body must be"),
    ]


def _ask(url: str, body: Any) -> Any:
    return _ask_raw(url, json.dumps(body).encode())


def _ask_raw(url: str, body: bytes, headers: dict[str, str] | None = None) -> Any:
    try:
        with urlopen(Request(url, body, headers or {}), timeout=60) as reply:
            return json.load(reply)
    except HTTPError as error:
        return {**json.load(error), "status": error.code}


def test_server__its_imports__are_numpy_onnxruntime_and_tokenizers_alone() -> None:
    code = "import sys, onnx_server; print({'torch', 'transformers', 'skgpt'} & {*sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "set()", "")
