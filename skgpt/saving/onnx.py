"""A FittedModel as a graph for ONNX Runtime, with all that a server needs to prepare texts.

The graph takes padded token ids and gives probabilities, or numbers of a regressor. What is written
is run and compared with the model before the folder takes its name.
"""

import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skgpt import __version__
from skgpt._files import atomic_folder, check_nothing_else, storage_errors
from skgpt.data.template import Template
from skgpt.data.tokenization import Tokens, cuts_values
from skgpt.exceptions import ModelNotSupportedError, SkgptError, import_optional
from skgpt.fitted_model import FittedClassifier, FittedModel, FittedRegressor
from skgpt.network.network import pad_id_of
from skgpt.pretrained.tokenizer import TextTokenizer
from skgpt.saving.huggingface import CPU, PROBES, exact_scores, whole_tensors
from skgpt.trunk.attention import make_bidirectional
from skgpt.trunk.layers import find_blocks

GRAPH = "model.onnx"
TOKENIZER = "tokenizer.json"
NOTES = "server.json"
_FORMAT = 1
_WRITTEN_BY = "skgpt save_onnx"
_INPUTS = ("input_ids", "attention_mask")
_TOLERANCE = 1e-4  # of a probability, or of a deviation of a column of y
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# A string that looks like a special token is plain text, and so is half a character.
_ODD_TEXTS = ("<s> [CLS] <|endoftext|> </s>", "", " Ünï \U0001f600\n")


def export_onnx(model: FittedModel, folder: Path, *, int8: bool = False) -> None:
    """Write graph, tokenizer and notes, whole or not at all."""
    _check_exportable(model)
    with (
        storage_errors("`folder`", folder, "name another"),
        atomic_folder(folder, _is_ours) as draft,
    ):
        write_tokenizer(model.network.tokenizer, draft)
        _write_graph(model, draft / GRAPH)
        _compare(model, draft / GRAPH)
        if int8:
            _quantise(draft / GRAPH)
        files = sorted([NOTES, *(path.name for path in draft.iterdir())])
        notes = json.dumps({**_notes(model), "files": files}, indent=2)
        (draft / NOTES).write_text(notes + "\n", encoding="utf-8")


def _check_exportable(model: FittedModel) -> None:
    """Check what can be known before anything is computed."""
    for package in _PACKAGES:
        import_optional(package, "`save_onnx`", extra="onnx")
    if model.long_text != "cut":
        raise ModelNotSupportedError(
            "`long_text` must be 'cut': a server would have to put the windows of a text together. "
            f"This model was fitted with {model.long_text!r}: fit another, or use skgpt.save."
        )


def _is_ours(folder: Path) -> bool:
    """Say whether `save_onnx` wrote a folder, and all that is in it."""
    try:
        notes = json.loads((folder / NOTES).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):  # no such file, or somebody else's
        return False
    ours = isinstance(notes, dict) and notes.get("written_by") == _WRITTEN_BY
    if ours:
        names = notes.get("files")
        check_nothing_else(folder, map(str, names) if isinstance(names, list) else ())
    return ours


# What a server needs to know.


def _notes(model: FittedModel) -> dict[str, Any]:
    """Return how texts become the graph's inputs, and what its outputs mean."""
    names = model.columns.get("feature_names_in_")
    return {
        "written_by": _WRITTEN_BY,
        "format": _FORMAT,
        "skgpt": __version__,
        **_meaning(model),
        "columns": None if names is None else [str(name) for name in names],
        **how_to_prepare(model.template, model.network.tokenizer, model.max_length),
        "pad_id": pad_id_of(model.network.pretrained),
    }


def how_to_prepare(template: Template, encoder: TextTokenizer, max_length: int) -> dict[str, Any]:
    """Return what, with the tokenizer, takes a server from the columns of a row to its ids.

    Of a row that is too long, the "values" lose their ends, or the whole text its "end".
    """
    return {
        "template": {"words": list(template.words), "fields": list(template.fields)},
        "max_length": max_length,
        "cuts": "values" if cuts_values(template, encoder, max_length) else "end",
        "prefix_ids": list(encoder.prefix_ids),
        "suffix_ids": list(encoder.suffix_ids),
        "empty_id": encoder.empty_id,
    }


def _meaning(model: FittedModel) -> dict[str, Any]:
    if not isinstance(model, FittedClassifier):
        return {"kind": "regressor"}
    each = model.classes if isinstance(model.classes, list) else [model.classes]
    classes = [[_label(label) for label in of_output] for of_output in each]
    return {"kind": "classifier", "classes": classes, "multilabel": model.multilabel}


def _label(label: Any) -> bool | int | float | str:
    """Return a label as JSON has it, as its text where JSON has no word for it."""
    # The item of a date in nanoseconds is an int.
    is_date = isinstance(label, np.datetime64 | np.timedelta64)
    plain = label.item() if isinstance(label, np.generic) and not is_date else label
    return plain if isinstance(plain, bool | int | float | str) else str(label)


def write_tokenizer(encoder: TextTokenizer, folder: Path) -> None:
    """Write the tokenizer as the package tokenizers alone reads it, and compare."""
    from tokenizers import Tokenizer

    content = encoder.files().get(TOKENIZER)
    if content is None:
        raise ModelNotSupportedError(
            "`model` must have a tokenizer that the package tokenizers reads alone: a folder "
            f"with a {TOKENIZER}. {type(encoder.hf).__name__} is none: use skgpt.save."
        )
    written = Tokenizer.from_str(content.encode("latin-1").decode("utf-8"))
    written.no_truncation()
    written.no_padding()
    written.save(str(folder / TOKENIZER))
    texts = [*PROBES, *_ODD_TEXTS]
    written.encode_special_tokens = True
    theirs = [each.ids for each in written.encode_batch(texts, add_special_tokens=False)]
    if theirs != encoder.encode(texts):
        raise ModelNotSupportedError(
            "`model` must have a tokenizer that says the same without transformers. "
            f"{type(encoder.hf).__name__} doesn't: use skgpt.save."
        )


# The graph.


class _Graph(nn.Module):
    """From padded token ids to what the model predicts, in plain operations."""

    def __init__(self, model: FittedModel) -> None:
        super().__init__()
        network, pretrained = model.network, model.network.pretrained
        self.spec, self.can = network.spec, pretrained.capabilities
        self.trunk: Any = pretrained.copy_trunk(self.spec.n_layers, torch.float32, CPU)
        blocks: Any = find_blocks(self.trunk)
        make_bidirectional(blocks[len(blocks) - self.spec.n_bidirectional :])
        for name, tensor in whole_tensors(network).items():
            self.trunk.get_parameter(name).data = tensor.float()
        # In fp64, as the sums of a head that was solved for need the digits.
        self.weight = nn.Buffer(network.head.weight.detach().cpu().double().T.contiguous())
        self.offset = nn.Buffer(network.offset.cpu().double())
        self.link: Any = _link_of(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """Return what is predicted for texts of any number, padded on the right."""
        pooled = self._pool(self._hidden(input_ids, attention_mask), attention_mask)
        return self.link(pooled.double() @ self.weight + self.offset)

    def _hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.can.supports_packing:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
            inputs = {"position_ids": positions, "within_BT": mask.bool()}
        else:
            inputs = {"attention_mask": mask} if self.can.needs_mask else {}
        return self.trunk(input_ids=ids, use_cache=False, **inputs).last_hidden_state

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.spec.pooling == "last":
            ends = (mask.sum(1) - 1)[:, None, None].expand(-1, 1, hidden.shape[2])
            return hidden.gather(1, ends)[:, 0]
        if self.spec.pooling == "mean":
            # Padding may have states that are no numbers.
            within = hidden.masked_fill(~mask.bool()[..., None], 0.0)
            return within.sum(1) / mask.sum(1, keepdim=True)
        raise NotImplementedError(f"a graph can't pool by {self.spec.pooling!r}")


class _ToNumbers(nn.Module):
    """From raw scores to the units of y."""

    def __init__(self, model: FittedRegressor) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.tensor(model.units.scale, dtype=torch.float64))
        self.mean = nn.Buffer(torch.tensor(model.units.mean, dtype=torch.float64))
        self.is_1d = model.units.is_1d

    def forward(self, scores: Tensor) -> Tensor:
        """Return numbers, in the shape of y."""
        values = scores * self.scale + self.mean
        return values[:, 0] if self.is_1d else values


class _ToProbabilities(nn.Module):
    """From raw scores to probabilities, calibrated if the model is: one tensor for each output."""

    def __init__(self, model: FittedClassifier) -> None:
        super().__init__()
        nothing = np.zeros((1, model.network.spec.n_outputs), dtype=np.float32)
        views = model.of_outputs(nothing)
        self.sizes = [part.shape[1] for _, part in views]
        self.temperatures = [view.temperature for view, _ in views]
        self.multilabel = model.multilabel

    def forward(self, scores: Tensor) -> tuple[Tensor, ...]:
        """Return the probabilities of each output, of one mostly."""
        parts = zip(scores.split(self.sizes, dim=1), self.temperatures, strict=True)
        scaled = [part / temperature for part, temperature in parts]
        return tuple(s.sigmoid() if self.multilabel else s.softmax(dim=1) for s in scaled)


def _link_of(model: FittedModel) -> nn.Module:
    if isinstance(model, FittedRegressor):
        return _ToNumbers(model)
    assert isinstance(model, FittedClassifier)
    return _ToProbabilities(model)


def _output_names(model: FittedModel) -> list[str]:
    if not isinstance(model, FittedClassifier):
        return ["values"]
    if not isinstance(model.classes, list):
        return ["probabilities"]
    return [f"probabilities_{i}" for i in range(len(model.classes))]


@torch.no_grad()
def _write_graph(model: FittedModel, path: Path) -> None:
    """Trace the model on two texts of different lengths, and write what was traced."""
    ids = torch.tensor([[2, 3, 5, 7, 11], [13, 17, 19, pad_id_of(model.network.pretrained), 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    axes = {0: torch.export.Dim("texts", min=1), 1: torch.export.Dim("tokens", min=1)}
    with _quiet("torch.onnx"), _unsupported_unless_right(model):
        torch.onnx.export(
            _Graph(model).eval(),
            (ids, mask),
            path,
            input_names=list(_INPUTS),
            output_names=_output_names(model),
            dynamic_shapes=dict.fromkeys(_INPUTS, axes),
            dynamo=True,
            external_data=True,
            verbose=False,
        )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep exporters, which log under this name, from warning about themselves."""
    logger = logging.getLogger(name)
    level, handler = logger.level, logging.NullHandler()
    logger.setLevel(logging.CRITICAL)
    logger.addHandler(handler)  # or a warning to the root logger would give it one for good
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextmanager
def _unsupported_unless_right(model: FittedModel) -> Iterator[None]:
    """Turn whatever an exporter or a runtime raises for a model into one error."""
    try:
        yield
    except (SkgptError, OSError, MemoryError):
        raise
    except Exception as error:  # of any class
        raise _unsupported(model, repr(error)[:300]) from error


def _unsupported(model: FittedModel, reason: str) -> ModelNotSupportedError:
    pretrained = model.network.pretrained
    return ModelNotSupportedError(
        "`model` must be one that torch's exporter writes as a graph that predicts the same. "
        f"{pretrained.model!r} ({type(pretrained.trunk).__name__}) isn't ({reason}): use "
        "skgpt.save."
    )


# Running it.


def _compare(model: FittedModel, path: Path) -> None:
    """Compare what the graph says of two padded texts with the model, in fp32 on the CPU."""
    cells = [list(PROBES) for _ in range(max(model.template.fields) + 1)]
    tokens = model.tokenise(cells)
    with _unsupported_unless_right(model):
        found = _run(path, tokens)
    scores = exact_scores(model.network, tokens).numpy()
    if isinstance(model, FittedRegressor):
        expected, unit = [model.units.values_of(scores)], np.array(model.units.scale)
    else:
        assert isinstance(model, FittedClassifier)
        probabilities = model.probabilities(scores)
        expected = probabilities if isinstance(probabilities, list) else [probabilities]
        unit = np.ones(1)
    pairs = zip(found, expected, strict=True)
    far = np.max([(np.abs(theirs - ours) / unit).max() for theirs, ours in pairs])  # nan if one is
    if not far <= _TOLERANCE:
        raise _unsupported(model, f"predictions differ by {far:.2g}")


def _run(path: Path, tokens: Tokens) -> list[NDArray[np.float64]]:
    """Run the graph on texts as a server does: side by side, padded on the right."""
    import onnxruntime

    at = np.arange(tokens.lengths.max())
    mask = (at < tokens.lengths[:, None]).astype(np.int64)
    ids = np.zeros_like(mask)
    ids[mask == 1] = tokens.ids
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float64]] = session.run(None, {_INPUTS[0]: ids, _INPUTS[1]: mask})
    return found


def _quantise(path: Path) -> None:
    """Have matrices of the blocks in int8, by ONNX Runtime's own tool, in place.

    Those that narrow stay as they are: what goes into the one behind a gate has outliers, and with
    it rounded more labels move.
    """
    onnx = import_optional("onnx", "`save_onnx`", extra="onnx")
    quantization = import_optional("onnxruntime.quantization", "`save_onnx`", extra="onnx")
    graph = onnx.load(path, load_external_data=False).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    narrowing = [
        name
        for node in graph.node
        if node.op_type in ("MatMul", "Gemm") and _narrows(node, shapes.get(node.input[1], (0, 0)))
        for name in (node.name, f"{node.name}_MatMul")  # what the tool makes of a Gemm
    ]
    # The tool adds to a file of weights that is there.
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet("root"):
        for file in list(path.parent.glob(f"{path.name}*")):
            file.rename(Path(folder, file.name))
        quantization.quantize_dynamic(
            Path(folder, path.name),
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=narrowing,
            per_channel=True,
            use_external_data_format=True,
        )


def _narrows(product: Any, shape: tuple[int, ...]) -> bool:
    """Say whether more numbers go into a product with a matrix of this shape than come out."""
    is_transposed = any(each.name == "transB" and each.i for each in product.attribute)
    n_in, n_out = shape[::-1] if is_transposed else shape
    return n_in > n_out
