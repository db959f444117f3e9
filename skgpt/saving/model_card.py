"""The model card of an exported classifier: what it is, what it was trained on, how well it did."""

import json
import platform
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

from skgpt import __version__

_LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy")
_OF_THE_MACHINE = frozenset({"checkpoint_dir", "device", "verbose"})
# On the hub, by the names that skgpt has for them.
_HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
_COLUMNS = {
    "epoch": "epoch",
    "loss": "training loss",
    "validation_loss": "held-out loss",
    "validation_score": "held-out score",
}


def model_card(clf: Any) -> str:
    """Return the text of the README.md that goes beside the weights.

    Parameters
    ----------
    clf : GPTTextClassifier
        Fitted.

    Returns
    -------
    card : str
        Markdown with the front matter that the hub reads.
    """
    parts = [
        _front_matter(clf),
        f"# {_base_name(clf)}, fine-tuned to classify texts",
        _what_it_is(clf),
        "## Training data",
        _data(clf),
        "## Scores",
        _scores(clf),
        "## Parameters",
        _parameters(clf),
        "## Versions",
        "\n".join([f"- Python {platform.python_version()}", *_versions()]),
        "## Use",
        _use(clf),
    ]
    return "\n\n".join(parts) + "\n"


def _base_name(clf: Any) -> str:
    pretrained = clf._network.pretrained
    if pretrained.downloadable:
        return _HUB_NAMES.get(pretrained.model, pretrained.model)
    return Path(pretrained.model).expanduser().resolve().name  # a path is of a machine


def _front_matter(clf: Any) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-classification"]
    lines += [f"base_model: {json.dumps(_base_name(clf), ensure_ascii=False)}"]  # JSON is YAML
    return "\n".join([*lines, "tags:", "- skgpt", "---"])


def _what_it_is(clf: Any) -> str:
    spec, pretrained = clf._network.spec, clf._network.pretrained
    if clf._fitted_with["multilabel"]:
        task = f"says of a text, for each of {spec.n_outputs} labels, whether it applies"
    else:
        task = f"tells {spec.n_outputs} classes of texts apart"
    learned = {"all": "all weights", 0: "the head alone", 1: "the last layer and the head"}.get(
        spec.trainable_layers, f"the last {spec.trainable_layers} layers and the head"
    )
    if spec.lora is not None:
        learned = f"adapters of rank {spec.lora.rank}, merged into the weights, and the head"
    calibrated = ""
    if hasattr(clf, "calibration_"):
        found = clf.calibration_
        calibrated = (
            " Its probabilities are calibrated: the head is divided by "
            f"{found['temperature']:.4g}, a temperature fitted on {found['n_rows']} held-out texts."
        )
    return (
        f"It {task}. The trunk is {spec.n_layers} of the {pretrained.full_depth} layers of "
        f"`{_base_name(clf)}`; the head is one matrix on the last token's hidden state. Fine-tuned "
        f"with skgpt: {learned} learned.{calibrated}"
    )


def _data(clf: Any) -> str:
    counts = clf._fitted_with.get("trained_on")
    if counts is None:
        rows = ["How many texts it was trained on is not known.", "", "| label |", "|---|"]
        return "\n".join([*rows, *(f"| {_cell(label)} |" for label in clf.classes_.tolist())])
    rows = [f"{counts['rows']} texts.", "", "| label | texts |", "|---|---|"]
    return "\n".join([*rows, *(f"| {_cell(k)} | {n} |" for k, n in counts["labels"].items())])


def _scores(clf: Any) -> str:
    if not clf.history_:
        return "No fit since the checkpoint was opened."
    there = [key for key in _COLUMNS if key in clf.history_[-1]]
    head = "| " + " | ".join(_COLUMNS[key] for key in there) + " |"
    lines = [head, "|" + "---|" * len(there)]
    for record in clf.history_:
        cells = (f"{record[key]:.6g}" if key in record else "" for key in there)
        lines.append("| " + " | ".join(cells) + " |")
    if "validation_score" not in there:
        return "\n".join(["No texts were held out.", "", *lines])
    best = f"Higher scores are better; the highest was epoch {clf.best_iter_}'s"
    kept = ", whose weights these are." if clf.early_stopping else "; the weights are the last's."
    return "\n".join([best + kept, "", *lines])


def _parameters(clf: Any) -> str:
    defaults = signature(type(clf).__init__).parameters
    lines = []
    for name, value in clf.get_params(deep=False).items():
        if name == "model" and not clf._network.pretrained.downloadable:
            value = _base_name(clf)
        shown = repr(value)
        if name not in _OF_THE_MACHINE and shown != repr(defaults[name].default):
            lines.append(f"- `{name}`: {_cell(shown)}")
    return "\n".join(["Those that are not skgpt's defaults:", "", *lines])


def _cell(value: Any) -> str:
    """Return a value as text that Markdown shows as it is, in a table too."""
    text = " ".join(str(value).split())
    for mark in "\\`*_<>[]|":
        text = text.replace(mark, f"\\{mark}")
    return text


def _versions() -> list[str]:
    return [f"- skgpt {__version__}", *(f"- {name} {version(name)}" for name in _LIBRARIES)]


def _use(clf: Any) -> str:
    every = ", top_k=None" if clf._fitted_with["multilabel"] else ""
    length = clf._fitted_with["max_length"]
    return f"""With transformers (`truncation=True` cuts texts at {length} tokens):

```python
from transformers import pipeline

classify = pipeline("text-classification", "this folder")
classify(["a text"], truncation=True{every})
```

With skgpt, as a scikit-learn classifier that can go on learning:

```python
from skgpt import GPTTextClassifier

clf = GPTTextClassifier.from_pretrained("this folder")
clf.predict(["a text"])
```"""
