"""Search spaces: Optuna's distributions, the parameters that their values stand for, defaults."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial, Trial
from scipy.stats import rv_discrete
from sklearn.base import clone

from skgpt._base import BaseGPTText
from skgpt.device import own_settings, resolve_device
from skgpt.exceptions import TuningError
from skgpt.pretrained.loading import load_pretrained
from skgpt.tuning.folds import last_step, path_to_last_step

_SEEDS = 2**31 - 1
_EDGE = 1e-9  # of quantiles: at 0 and 1 some are infinite
_ON_GPU = ("cuda", "mps")
_WAY_OUT = (
    "Pass a dict from parameter names to Optuna distributions, lists of values, or scipy "
    "distributions; or a list of such dicts, of which each trial takes one."
)
_WHICH = "param_distributions"  # the name that Optuna knows the choice of a dict by


class Space:
    """A search space: what the user has `given`, and the `distributions` for Optuna.

    Optuna stores numbers, texts and None. Other values of a list go by their place in it, and of
    scipy's distributions, but for plain ranges, the quantile is drawn. Of several dicts, a trial
    draws which one counts and, as samplers want one space for all trials, the values of each; a
    name is followed by its dict's place. `made_of` has what each distribution was made of;
    messages call the space `parameter`.
    """

    def __init__(self, given: Any, parameter: str = "param_distributions") -> None:
        parts = subspaces(given)
        if not parts or not all(isinstance(part, Mapping) and part for part in parts):
            raise TuningError(
                f"`{parameter}` must name at least one parameter to search over. "
                f"Got {given!r}. {_WAY_OUT}"
            )
        self.given = given
        self.distributions: dict[str, BaseDistribution] = {}
        self.made_of: dict[str, Any] = {}
        self._meaning: dict[str, Callable[[Any], Any]] = {}
        self._names: list[dict[str, str]] = []  # of each dict, what Optuna knows its names by
        if len(parts) > 1:
            self.made_of[_WHICH] = self.distributions[_WHICH] = CategoricalDistribution(
                range(len(parts))
            )
        for i, part in enumerate(parts):
            known_by = {name: name if len(parts) == 1 else f"{name} [{i}]" for name in part}
            self._names.append(known_by)
            for name, values in part.items():
                drawn, self.made_of[known_by[name]] = known_by[name], values
                self.distributions[drawn], meaning = _dimension(name, values, parameter)
                if meaning is not None:
                    self._meaning[drawn] = meaning

    def params(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a trial drew as an estimator's parameters, in the order of the space."""
        return {
            name: self._meaning[key](drawn[key]) if key in self._meaning else drawn[key]
            for name, key in self._names[drawn.get(_WHICH, 0)].items()
        }


def subspaces(given: Any) -> list[Any]:
    """Return the dicts of a space, which is one or a list of them."""
    return [*given] if isinstance(given, list | tuple) else [given]


def _is_list(given: Any) -> bool:
    """Say whether values are listed one by one: in a list, a range, an array, a Series."""
    return (isinstance(given, Sequence) and not isinstance(given, str | bytes)) or (
        hasattr(given, "tolist") and np.ndim(given) > 0
    )


def _dimension(
    name: str, given: Any, parameter: str
) -> tuple[BaseDistribution, Callable[[Any], Any] | None]:
    if isinstance(given, BaseDistribution):
        return given, None
    if hasattr(given, "rvs"):
        return _of_scipy(given)
    if _is_list(given) and len(given):
        values = [_plain(value) for value in given]
        if all(value is None or isinstance(value, bool | int | float | str) for value in values):
            return CategoricalDistribution(values), None
        places = {f"{i}: {type(value).__name__}": value for i, value in enumerate(values)}
        return CategoricalDistribution(list(places)), places.__getitem__
    raise TuningError(f"`{parameter}` must say what {name!r} may be. Got {given!r}. {_WAY_OUT}")


def _of_scipy(given: Any) -> tuple[BaseDistribution, Callable[[Any], Any] | None]:
    """Return a scipy distribution as one of Optuna's that the same values come from."""
    kind = getattr(getattr(given, "dist", None), "name", None)
    if kind in ("uniform", "loguniform", "reciprocal", "randint"):
        low, high = (float(end) for end in given.support())
        if kind == "randint":
            return IntDistribution(int(low), int(high)), None
        # One that was shifted is no longer log-uniform, and its mean is another.
        log_mean = (high - low) / math.log(high / low) if kind != "uniform" else 0.0
        if kind == "uniform" or math.isclose(given.mean(), log_mean, rel_tol=1e-9):
            return FloatDistribution(low, high, log=kind != "uniform"), None
    if hasattr(given, "ppf"):
        # Quantiles of whole numbers come as floats, which parameters such as layers don't take.
        number = int if isinstance(given.dist, rv_discrete) else float
        return FloatDistribution(_EDGE, 1 - _EDGE), lambda quantile: number(given.ppf(quantile))
    # Nothing is known of it but that it can be drawn from.
    return IntDistribution(0, _SEEDS), lambda seed: _plain(given.rvs(random_state=seed))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def draw(trial: BaseTrial, distributions: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Have a trial suggest a value from each distribution."""
    suggest: Any = trial._suggest  # type: ignore[attr-defined]  # the public ones take no distribution
    return {name: suggest(name, among) for name, among in distributions.items()}


def choices_in(given: Any) -> list[tuple[str, Any]]:
    """Return what a space lists value by value, each value with its parameter's name."""
    listed = (
        (name, getattr(values, "choices", values))
        for part in subspaces(given)
        for name, values in part.items()
    )
    return [(name, choice) for name, choices in listed if _is_list(choices) for choice in choices]


def check_names(given: Any, estimator: Any, parameter: str = "param_distributions") -> None:
    """Raise TuningError if a space names a parameter that the estimator lacks.

    What depends on another choice is left to the trials: ``lora__rank`` where `lora` may be None,
    say. `parameter` is what the message calls the space.
    """
    known = estimator.get_params()
    for space, name in ((part, name) for part in subspaces(given) for name in part):
        steps = name.split("__")
        if name in known or any("__".join(steps[:i]) in space for i in range(1, len(steps))):
            continue
        try:  # get_params doesn't name all that every estimator takes
            clone(estimator).set_params(**{name: None})
        except (ValueError, TypeError, AttributeError) as error:  # the last of lora=None
            like = get_close_matches(name, known, n=1)
            hint = f"did you mean {like[0]!r}?" if like else "see its get_params()."
            raise TuningError(
                f"`{parameter}` must name parameters of the estimator. {name!r} is none "
                f"of this {type(estimator).__name__}: {hint} Those of `lora` are there once it is "
                "a LoRA(), those of a Pipeline's step as <step>__<name>."
            ) from error


@own_settings()
def default_space(estimator: Any) -> dict[str, BaseDistribution]:
    """Return what is worth searching over for an estimator, given its model and its device.

    Learning rates, weight decay, batch size, pooling (of decoders), how many layers are kept and
    how many of them learn, and the rank of adapters where it has some. Not the epochs: those are
    what a search saves by pruning. On a CPU, at most a quarter of the layers learn, so that what
    comes before them is computed once for all trials of the same depth. Where nothing but the
    head learns (``trainable_layers=0``) that stays so, and `n_layers` is the most that is kept.
    With `label_words` depth and pooling are given, and the rates are lower.

    Parameters
    ----------
    estimator : GPTTextClassifier or Pipeline
        A Pipeline's last step must be one. It is not changed; its model is loaded.

    Returns
    -------
    space : dict of str to optuna.distributions.BaseDistribution
        By names that ``estimator.set_params`` takes.

    Raises
    ------
    TuningError
        If the estimator, or the Pipeline's last step, is not one of skgpt's.
    OSError
        If the model can't be found, fetched or read.

    Examples
    --------
    >>> from skgpt import GPTTextClassifier, LoRA
    >>> from skgpt.testing import tiny_gpt
    >>> from skgpt.tuning import default_space
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     space = default_space(GPTTextClassifier(tiny_gpt(folder + "/gpt"), lora=LoRA()))
    >>> space["lora__rank"].choices
    (4, 8, 16, 32)
    """
    prefix, final = path_to_last_step(estimator), last_step(estimator)
    if not isinstance(final, BaseGPTText):
        raise TuningError(
            "A default space is known for skgpt's estimators that train and for Pipelines whose "
            f"last step is one. Got {type(final).__name__}: pass `param_distributions`."
        )
    pretrained = load_pretrained(final.model, final.revision)
    on_gpu = resolve_device(final.device).type in _ON_GPU
    # Behind a prompt a head starts from words, which higher rates wash out.
    prompted = getattr(final, "label_words", None) is not None
    low, high = (1e-5, 1e-3) if prompted else (3e-4, 3e-2)
    space: dict[str, BaseDistribution] = {
        "head_learning_rate": FloatDistribution(low, high, log=True),
        "weight_decay": FloatDistribution(1e-3, 0.3, log=True),
        "batch_size": CategoricalDistribution([16, 32, 64] if on_gpu else [8, 16, 32]),
    }
    free = final.n_layers in (None, "auto")
    deepest = pretrained.full_depth if free else int(final.n_layers)
    shares = (1.0,) if prompted else (0.5, 0.8, 1.0)
    kept = sorted({max(1, round(deepest * share)) for share in shares})
    if not prompted:
        space["n_layers"] = CategoricalDistribution(kept)
        if pretrained.capabilities.causal:
            space["pooling"] = CategoricalDistribution(["mean", "last"])
    if final.lora is not None:
        space["lora__rank"] = CategoricalDistribution([4, 8, 16, 32])
    if final.trainable_layers != 0:
        # Adapters start from nothing and are small: they stand, and need, more.
        low, high = (1e-4, 5e-3) if final.lora is not None else (2e-5, 1e-3)
        if prompted:
            low, high = low / 10, high / 10
        space["learning_rate"] = FloatDistribution(low, high, log=True)
        space["trainable_layers"] = CategoricalDistribution(_learning(kept, on_gpu))
    return {prefix + name: among for name, among in space.items()}


def _learning(kept: list[int], on_gpu: bool) -> list[Any]:
    """Return how many layers may learn: as many as the shallowest choice has, at most."""
    most = min(kept[0], max(1, kept[-1] // (2 if on_gpu else 4)))
    powers: list[Any] = [2**i for i in range(most.bit_length())]
    return [*powers, "all"] if on_gpu else powers


def suggest(trial: Trial, estimator: Any) -> dict[str, Any]:
    """Have a trial of a study of your own suggest an estimator's parameters.

    Parameters
    ----------
    trial : optuna.trial.Trial
        Its study remembers what was suggested.
    estimator : GPTTextClassifier or Pipeline
        As in `default_space`, which is what is suggested from.

    Returns
    -------
    params : dict of str to object
        For ``estimator.set_params(**params)``.

    Raises
    ------
    TuningError
        If the estimator, or the Pipeline's last step, is not one of skgpt's.

    Examples
    --------
    >>> import optuna
    >>> from sklearn.base import clone
    >>> from skgpt.tuning import suggest
    >>> def objective(trial: optuna.Trial) -> float:
    ...     candidate = clone(clf).set_params(**suggest(trial, clf))
    ...     return candidate.fit(X, y).score(X_val, y_val)
    """
    return draw(trial, default_space(estimator))
