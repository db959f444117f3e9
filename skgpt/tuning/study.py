"""The Optuna study of a search: its storage, sampler and pruner, and the key that names it."""

import copy
import json
import logging
import os
import random
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna import pruners
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from scipy import sparse
from sqlalchemy.exc import DBAPIError

from skgpt.exceptions import ContinuationError, StorageError
from skgpt.pretrained.loading import hash_model_files
from skgpt.run_key import WITHOUT_EFFECT, described, digest
from skgpt.tuning.space import Space, choices_in
from skgpt.tuning.trial import Evaluator

try:
    from optuna.storages import RetryHeartbeatStaleTrialCallback as RetryCallback

    _ON_STALE_TRIAL = "heartbeat_stale_trial_callback"
except ImportError:  # Optuna before 4.9
    from optuna.storages import RetryFailedTrialCallback as RetryCallback

    _ON_STALE_TRIAL = "failed_trial_callback"

_LOG = logging.getLogger("skgpt")

Storage = str | PathLike[str] | BaseStorage | None

MAX_RETRIES = 2  # of a trial whose worker died: the parameters may be what it died of
# A worker is taken for dead when it has not said for so long that it is alive.
HEARTBEAT_SECONDS = 15
GRACE_SECONDS = 60
_LOCK_SECONDS = 60.0  # how long SQLite waits for another process that is writing
_WAITS = (0.2, 0.5, 1.0)  # seconds between tries to open a database

# Optuna's own defaults are for hundreds of trials of hundreds of epochs. A first epoch says
# little, as the learning rates are still rising in it.
_STARTUP = {"n_startup_trials": 3, "n_warmup_steps": 2}

PRUNERS = {
    "median": lambda: pruners.MedianPruner(**_STARTUP),
    "percentile": lambda: pruners.PercentilePruner(25.0, **_STARTUP),
    "halving": lambda: pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2),
    "hyperband": lambda: pruners.HyperbandPruner(min_resource=1, reduction_factor=2),
}

_KEY = "skgpt:belongs_to"
# Parameters of scikit-learn's pipelines and ensembles that no score depends on either.
_WITHOUT_EFFECT_IN_SKLEARN = frozenset({"memory", "n_jobs"})


def make_pruner(pruner: str | pruners.BasePruner | None) -> pruners.BasePruner:
    """Return the pruner of that name, or a copy of one that was passed: fits leave it as it was."""
    if pruner is None:
        return pruners.NopPruner()
    if isinstance(pruner, str):
        return PRUNERS[pruner]()
    return copy.deepcopy(pruner)


def make_sampler(sampler: BaseSampler | None, seed: int) -> BaseSampler:
    """Return TPE with this seed, or a copy of the sampler that was passed."""
    return SeededByTrial(seed) if sampler is None else copy.deepcopy(sampler)


class SeededByTrial(TPESampler):
    """TPE that is seeded anew for each trial, from the search's seed and the trial's number.

    So a resumed search draws what it would have drawn next, and no two workers draw the same.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self._seed_of_search = seed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Seed this trial's draws."""
        seeds = np.random.SeedSequence([self._seed_of_search, trial.number])
        super().__init__(seed=int(seeds.generate_state(1)[0]))
        super().before_trial(study, trial)

    def reseed_rng(self) -> None:
        """Do nothing: the trials' numbers make the workers differ."""


# --- Storage


def open_storage(storage: Storage) -> BaseStorage:
    """Return Optuna's storage: memory for None, an SQLite file for a path, a database for an URL.

    A storage that is opened here has heartbeats, by which others notice that a worker died.
    """
    if storage is None:
        return InMemoryStorage()
    if isinstance(storage, BaseStorage):
        return storage
    try:
        return _open_database(absolute(storage))
    except Exception as error:  # each database's driver has errors of its own
        raise StorageError(
            "`storage` must be a file that can be written to, in a folder that is there, an URL "
            f"of a database, or an Optuna storage. {shown(storage)} can't be opened: {error}"
        ) from error


def absolute(storage: str | PathLike[str]) -> str:
    """Return a path as one that is the same from every folder, and an URL as it is."""
    where = os.fspath(storage)
    return where if "://" in where else str(Path(where).expanduser().absolute())


def shown(storage: Storage) -> str:
    """Return a storage as messages name it, an URL without its password."""
    if isinstance(storage, BaseStorage | None):
        return repr(storage)
    return repr(re.sub(r"(://[^:/@]*):[^/]*@", r"\1:***@", os.fspath(storage)))


def storage_with(storage: Storage, name: str) -> BaseStorage | None:
    """Open a storage if there is a study of that name in it; never make a file to find out."""
    if isinstance(storage, str | PathLike):
        where = absolute(storage)
        if "://" not in where and not Path(where).exists():
            return None
    opened = open_storage(storage)
    return opened if name in optuna.get_all_study_names(opened) else None


def _open_database(where: str) -> BaseStorage:
    options: dict[str, Any] = {
        "heartbeat_interval": HEARTBEAT_SECONDS,
        "grace_period": GRACE_SECONDS,
        _ON_STALE_TRIAL: _retry,
    }
    url = where if "://" in where else f"sqlite:///{where}"
    if url.startswith("sqlite"):
        options["engine_kwargs"] = {"connect_args": {"timeout": _LOCK_SECONDS}}

    # Of those that find a database empty at the same time, one makes the tables; the others fail.
    waits = list(_WAITS)
    while True:
        try:
            with ignore_heartbeat_warnings():
                return RDBStorage(url, **options)
        except DBAPIError as error:
            # Without a statement there is no connection: a wrong password, a missing folder.
            if error.statement is None or not waits:
                raise
            time.sleep(waits.pop(0) * random.uniform(0.5, 1.0))


def _retry(study: Study, trial: FrozenTrial) -> None:
    """Queue the parameters of a trial whose worker died, unless they have been retried enough."""
    _LOG.warning("trial %d: its worker died", trial.number)
    with ignore_heartbeat_warnings():
        RetryCallback(max_retry=MAX_RETRIES)(study, trial)


@contextmanager
def ignore_heartbeat_warnings() -> Iterator[None]:
    """Ignore that Optuna calls heartbeats experimental, and expects `Study.optimize` with them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage", UserWarning)
        yield


# --- Study


def open_study(
    storage: BaseStorage,
    name: str,
    key: Mapping[str, Any] | None,
    sampler: BaseSampler,
    pruner: pruners.BasePruner,
) -> Study:
    """Open the study of that name, or make it.

    Raises ContinuationError if there is one with another key, or that doesn't maximise one score.
    """
    with quiet():
        study = optuna.create_study(
            storage=storage,
            sampler=sampler,
            pruner=pruner,
            study_name=name,
            direction="maximize",
            load_if_exists=True,
        )
    if study.directions != [StudyDirection.MAXIMIZE]:  # Optuna takes what is there as it is
        found = ", ".join(direction.name.lower() for direction in study.directions)
        raise ContinuationError(
            "A search needs a study that maximises one score. "
            f"{name!r} has been created with {found!r}: set another `study_name`."
        )
    if key is not None:
        check_key(study, key)
    return study


@contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna from announcing studies on the terminal."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def copied_to_memory(study: Study) -> Study:
    """Return a copy of a study that needs its storage no more; itself if it is in memory."""
    storage = study._storage
    if isinstance(storage, InMemoryStorage):
        return study
    memory = InMemoryStorage()
    with quiet():
        optuna.copy_study(from_study_name=study.study_name, from_storage=storage, to_storage=memory)
        return optuna.load_study(
            study_name=study.study_name, storage=memory, sampler=study.sampler, pruner=study.pruner
        )


# --- Key


def study_key(evaluator: Evaluator, scoring: Any, space: Space) -> dict[str, Any]:
    """Return all that a trial's results depend on, as JSON values by names that a user knows.

    `scoring` is as the search was given it. Raises ContinuationError if another process could not
    tell whether something is the same there, as with a lambda.
    """
    passed = {"what is passed to `fit`": described(dict(evaluator.fit_params))}
    if evaluator.score_params:
        passed["what is passed to the scorers"] = described(dict(evaluator.score_params))
    return {
        "the estimator": _kind(evaluator.estimator),
        **{
            f"`{name}`": _shallow(value)
            for name, value in evaluator.estimator.get_params(deep=True).items()
            if name.split("__")[-1] not in WITHOUT_EFFECT | _WITHOUT_EFFECT_IN_SKLEARN
        },
        **_key_of_files(evaluator.estimator, space),
        "X": _hash_of_rows(evaluator.X),
        "y": _hash_of_rows(evaluator.y),
        "`cv`": digest(
            f"{len(rows)};".encode() + np.asarray(rows, dtype=np.int64).tobytes()
            for split in evaluator.splits
            for rows in split
        ),
        "`param_distributions`": {
            name: _key_of_distribution(distribution, space.made_of[name])
            for name, distribution in space.distributions.items()
        },
        "`scoring`": described(scoring),
        "`refit`": evaluator.main_metric,
        "`return_train_score`": bool(evaluator.return_train_score),
        **passed,
    }


def name_of(key: Mapping[str, Any]) -> str:
    """Return the study's name where none was given."""
    return "skgpt-" + digest([_text(key).encode()])[:24]


def check_key(study: Study, key: Mapping[str, Any]) -> None:
    """Note the key on a new study; raise ContinuationError if a study has another one."""
    theirs = study.user_attrs.get(_KEY)
    if theirs is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(_KEY, json.loads(_text(key)))
        return
    if theirs is None:
        raise ContinuationError(
            "`study_name` must be new, or name a study of an earlier GPTSearchCV. "
            f"{study.study_name!r} has trials of something else: set another name, or None for one "
            "of its own."
        )
    names = sorted({*theirs, *key})
    different = [name for name in names if _text(theirs.get(name)) != _text(key.get(name))]
    if different:
        raise ContinuationError(
            "To go on with a study, a search must be given what it was begun with. "
            f"{study.study_name!r} belongs to a search of which this differs: "
            f"{', '.join(different)}. Set another `study_name`, or None for one of its own."
        )


def _key_of_files(estimator: Any, space: Space) -> dict[str, Any]:
    """Hash the models in local folders: somebody may write another one under the same name."""
    named = [*estimator.get_params(deep=True).items(), *choices_in(space.given)]
    values = [value for name, value in named if name.split("__")[-1] == "model"]
    models = {os.fspath(value) for value in values if isinstance(value, str | PathLike)}
    digests = {model: hash_model_files(model) for model in sorted(models)}
    return {f"the files of {model!r}": found for model, found in digests.items() if found}


def _shallow(value: Any) -> Any:
    """Describe a parameter; get_params names the parameters of an estimator beside it."""
    if hasattr(value, "get_params") and not isinstance(value, type):
        return _kind(value)
    if isinstance(value, list | tuple):
        return [_shallow(item) for item in value]
    return described(value)


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _key_of_distribution(distribution: BaseDistribution, given: Any) -> Any:
    if isinstance(given, BaseDistribution):
        return distribution_to_json(distribution)
    if hasattr(given, "dist"):  # scipy's: what it was frozen with
        return [given.dist.name, described(list(given.args)), described(dict(given.kwds))]
    return described(given if hasattr(given, "rvs") else list(given))


def _hash_of_rows(values: Any) -> str:
    """Hash a table or column of whatever container; equal values give equal hashes."""
    table = np.asarray(values.toarray() if sparse.issparse(values) else values, dtype=object)
    names = getattr(values, "column_names", getattr(values, "columns", ()))  # pyarrow's, others'
    columns = [str(name) for name in names]
    cells = (v if isinstance(v, str) else [type(v).__name__, repr(v)] for v in table.reshape(-1))
    return digest(_text(part).encode() for part in ([table.shape, columns], *cells))


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
