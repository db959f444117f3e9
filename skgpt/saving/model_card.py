"""The model card of an exported model: what it is, what it was trained on, how well it did."""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from skgpt import __version__
from skgpt.fitted_model import FittedClassifier, FittedModel, FittedRegressor
from skgpt.run_key import WITHOUT_EFFECT

_LIBRARIES = ("torch", "transformers", "scikit-learn", "numpy")
# On the hub, by the names that skgpt has for them.
_HUB_NAMES = {
    "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "minilm-l6": "sentence-transformers/all-MiniLM-L6-v2",
}
_COLUMNS = {
    "epoch": "epoch",
    "loss": "training loss",
    "validation_loss": "held-out loss",
    "validation_score": "held-out score",
}


def model_card(model: FittedModel, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Return the README.md beside the weights: Markdown with the front matter that the hub reads.

    `params` are the estimator's, and `defaults` what they are if nobody sets them.
    """
    parts = [
        _front_matter(model),
        f"# {_base_name(model)}, fine-tuned to {_verb(model)}",
        _what_it_is(model),
        "## Training data",
        _data(model),
        "## Scores",
        _scores(model, early_stopping=params["early_stopping"]),
        "## Parameters",
        _parameters(model, params, defaults),
        "## Versions",
        "\n".join([f"- Python {platform.python_version()}", *_versions()]),
        "## Use",
        _use(model),
    ]
    return "\n\n".join(parts) + "\n"


def _verb(model: FittedModel) -> str:
    return "classify texts" if isinstance(model, FittedClassifier) else "predict numbers from texts"


def _base_name(model: FittedModel) -> str:
    pretrained = model.network.pretrained
    if pretrained.downloadable:
        return _HUB_NAMES.get(pretrained.model, pretrained.model)
    return Path(pretrained.model).expanduser().resolve().name  # a path is of a machine


def _front_matter(model: FittedModel) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-classification"]
    lines += [f"base_model: {json.dumps(_base_name(model), ensure_ascii=False)}"]  # JSON is YAML
    return "\n".join([*lines, "tags:", "- skgpt", "---"])


def _what_it_is(model: FittedModel) -> str:
    spec, pretrained = model.network.spec, model.network.pretrained
    if isinstance(model, FittedRegressor):
        n = spec.n_outputs
        task = f"predicts {'a number' if n == 1 else f'{n} numbers'} from a text"
    elif getattr(model, "multilabel", False):
        task = f"says of a text, for each of {spec.n_outputs} labels, whether it applies"
    else:
        task = f"tells {spec.n_outputs} classes of texts apart"
    learned = {"all": "all weights", 0: "the head alone", 1: "the last layer and the head"}.get(
        spec.trainable_layers, f"the last {spec.trainable_layers} layers and the head"
    )
    if spec.lora is not None:
        learned = f"adapters of rank {spec.lora.rank}, merged into the weights, and the head"
    calibrated = ""
    if isinstance(model, FittedClassifier) and isinstance(found := model.calibration, dict):
        calibrated = (
            " Its probabilities are calibrated: the head is divided by "
            f"{found['temperature']:.4g}, a temperature fitted on {found['n_rows']} held-out texts."
        )
    return (
        f"It {task}. The trunk is {spec.n_layers} of the {pretrained.full_depth} layers of "
        f"`{_base_name(model)}`; the head is one matrix on the last token's hidden state. "
        f"Fine-tuned with skgpt: {learned} learned.{calibrated}"
    )


def _data(model: FittedModel) -> str:
    counts = model.trained_on
    if not isinstance(model, FittedClassifier):
        return f"{'An unknown number of' if counts is None else counts['rows']} texts."
    if counts is None:
        rows = ["How many texts it was trained on is not known.", "", "| label |", "|---|"]
        return "\n".join([*rows, *(f"| {_cell(label)} |" for label in model.classes.tolist())])
    rows = [f"{counts['rows']} texts.", "", "| label | texts |", "|---|---|"]
    return "\n".join([*rows, *(f"| {_cell(k)} | {n} |" for k, n in counts["labels"].items())])


def _scores(model: FittedModel, *, early_stopping: bool) -> str:
    if not model.history:
        return "No fit since the checkpoint was opened."
    history: list[Mapping[str, Any]] = [*model.history]
    there = [key for key in _COLUMNS if key in history[-1]]
    head = "| " + " | ".join(_COLUMNS[key] for key in there) + " |"
    lines = [head, "|" + "---|" * len(there)]
    for record in history:
        cells = (f"{record[key]:.6g}" if key in record else "" for key in there)
        lines.append("| " + " | ".join(cells) + " |")
    if "validation_score" not in there:
        return "\n".join(["No texts were held out.", "", *lines])
    if not model.best_iteration:
        return "\n".join(["No epoch's score was a number.", "", *lines])
    best = f"Higher scores are better; the highest was epoch {model.best_iteration}'s"
    kept = ", whose weights these are." if early_stopping else "; the weights are the last's."
    return "\n".join([best + kept, "", *lines])


def _parameters(model: FittedModel, params: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    lines = []
    for name, value in params.items():
        if name == "model" and not model.network.pretrained.downloadable:
            value = _base_name(model)
        shown = repr(value)
        if name not in WITHOUT_EFFECT | {"device"} and shown != repr(defaults[name]):
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


def _use(model: FittedModel) -> str:
    length, is_classifier = model.max_length, isinstance(model, FittedClassifier)
    several = getattr(model, "multilabel", False) or not is_classifier
    every = ", top_k=None" if several and model.network.spec.n_outputs > 1 else ""
    name, call = ("clf", "classify") if is_classifier else ("reg", "rate")
    kind = "Classifier" if is_classifier else "Regressor"
    return f"""With transformers (`truncation=True` cuts texts at {length} tokens):

```python
from transformers import pipeline

{call} = pipeline("text-classification", "this folder")
{call}(["a text"], truncation=True{every})
```

With skgpt, as a scikit-learn {kind.lower()} that can go on learning:

```python
from skgpt import GPTText{kind}

{name} = GPTText{kind}.from_pretrained("this folder")
{name}.predict(["a text"])
```"""
