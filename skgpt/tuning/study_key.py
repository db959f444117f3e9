"""Which study is a search's own: all that its trials' results depend on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.study import Study
from scipy import sparse

from skgpt.exceptions import ContinuationError
from skgpt.pretrained.loading import hash_model_files
from skgpt.run_key import described, digest
from skgpt.tuning.space import Space
from skgpt.tuning.trial import Evaluation

_BELONGS_TO = "skgpt:belongs_to"
# Parameters that no score depends on, whatever step they are of.
_NOT_ASKED = frozenset({"verbose", "checkpoint_dir", "store_base", "memory", "n_jobs"})


def identity_of(work: Evaluation, scoring: Any, space: Space) -> dict[str, Any]:
    """Return all that a trial's results depend on, by the names that a user knows it by.

    Parameters
    ----------
    work : Evaluation
    scoring : object
        As the search was given it.
    space : Space

    Returns
    -------
    belongs_to : dict of str to object
        Values that JSON has words for.

    Raises
    ------
    ContinuationError
        If there is no telling what something is.
    """
    passed = {"what is passed to `fit`": described(dict(work.fit_params))}
    if work.score_params:
        passed["what is passed to the scorers"] = described(dict(work.score_params))
    return {
        **_of_parameters(work.estimator),
        **_of_files(work.estimator, space),
        "X": digest(_rows(work.X)),
        "y": digest(_rows(work.y)),
        "`cv`": digest(_splits(work.splits)),
        "`param_distributions`": {
            name: _of_distribution(among, space.given[name])
            for name, among in space.distributions.items()
        },
        "`scoring`": described(scoring),
        "`refit`": work.main_metric,
        "`return_train_score`": bool(work.return_train_score),
        **passed,
    }


def name_of(belongs_to: Mapping[str, Any]) -> str:
    """Return the study's name where none was given."""
    return "skgpt-" + digest([_text(belongs_to).encode()])[:24]


def check_belongs(study: Study, belongs_to: Mapping[str, Any]) -> None:
    """Note on a new study what it belongs to; refuse one that belongs to something else.

    Raises
    ------
    ContinuationError
        The message names what differs.
    """
    theirs = study.user_attrs.get(_BELONGS_TO)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(_BELONGS_TO, json.loads(_text(belongs_to)))
        return
    theirs = theirs or {}
    names = sorted({*theirs, *belongs_to})
    other = [n for n in names if _text(theirs.get(n)) != _text(belongs_to.get(n))]
    if other:
        raise ContinuationError(
            "To go on with a study, a search must be given what it was begun with. "
            f"{study.study_name!r} belongs to a search of which this differs: "
            f"{', '.join(other)}. Set another `study_name`, or None for one of its own."
        )


def _of_parameters(estimator: Any) -> dict[str, Any]:
    deep = estimator.get_params(deep=True)
    asked = {name: v for name, v in deep.items() if name.split("__")[-1] not in _NOT_ASKED}
    return {
        "the estimator": _kind(estimator),
        **{f"`{name}`": _shallow(value) for name, value in asked.items()},
    }


def _of_files(estimator: Any, space: Space) -> dict[str, Any]:
    """Describe the models in folders: what was written into one anew is another under its name."""
    named = list(estimator.get_params(deep=True).items())
    for name, given in space.given.items():
        choices = getattr(given, "choices", given)
        if isinstance(choices, list | tuple | np.ndarray):
            named += [(name, choice) for choice in choices]
    models = {v for n, v in named if n.split("__")[-1] == "model" and isinstance(v, str)}
    digests = {model: hash_model_files(model) for model in sorted(models)}
    return {f"the files of {model!r}": found for model, found in digests.items() if found}


def _shallow(value: Any) -> Any:
    """Describe a parameter; what an estimator's own are, get_params says beside it."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        return _kind(value)
    if isinstance(value, list | tuple):
        return [_shallow(item) for item in value]
    return described(value)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _of_distribution(among: BaseDistribution, given: Any) -> Any:
    if isinstance(given, BaseDistribution):
        return distribution_to_json(among)
    if hasattr(given, "dist"):  # scipy's: what it was frozen with
        return [given.dist.name, described(list(given.args)), described(dict(given.kwds))]
    return described(list(given) if isinstance(given, list | tuple | np.ndarray) else given)


def _rows(values: Any) -> Iterator[bytes]:
    """Yield a table or column of whatever kind, so that equal values yield the same."""
    if sparse.issparse(values):
        yield _text(described(values.tocsr().toarray())).encode()
        return
    table = np.asarray(values, dtype=object)
    columns = [str(name) for name in getattr(values, "columns", ())]
    yield f"{table.shape}{columns};".encode()
    for value in table.reshape(-1):
        text = value if isinstance(value, str) else f"{type(value).__name__} {value!r}"
        data = text.encode("utf-8", "surrogatepass")
        yield f"{len(data)};".encode()
        yield data


def _splits(
    splits: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
) -> Iterator[bytes]:
    for parts in splits:
        for rows in parts:
            yield f"{len(rows)};".encode()
            yield np.asarray(rows, dtype=np.int64).tobytes()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
