"""Which study is a search's own, where models are in folders that somebody writes into."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution

from skgpt.exceptions import ContinuationError
from skgpt.pretrained.loading import hash_model_files
from skgpt.testing import tiny_gpt
from skgpt.tuning.space import Space
from skgpt.tuning.study import (
    check_key,
    make_pruner,
    make_sampler,
    name_of,
    open_storage,
    open_study,
    study_key,
)
from skgpt.tuning.trial import Evaluator
from tests.helpers import TextData, make
from tests.tuning.searching import DATA, RATES, piped


def key_of(estimator: Any, data: TextData, space: Any = RATES) -> dict[str, Any]:
    rows = np.arange(len(data.X))
    work = Evaluator(estimator, data.X, data.y, [(rows[:20], rows[20:])], None, {}, {})
    return study_key(work, None, Space(space))


@pytest.mark.parametrize("build", [make, piped])
def test_study_key__another_model_there__is_another_search(tmp_path: Path, build: Any) -> None:
    folder = tiny_gpt(str(tmp_path / "model"))
    first = key_of(build(folder), DATA)
    shutil.copytree(folder, tmp_path / "kept")
    (tmp_path / "model" / "search.db").write_text("not the model's")
    os.utime(tmp_path / "model" / "config.json")
    assert key_of(build(folder), DATA) == first
    shutil.rmtree(folder)
    tiny_gpt(folder, seed=1)
    other = key_of(build(folder), DATA)
    assert name_of(other) != name_of(first)
    assert {n for n in first if first[n] != other[n]} == {f"the files of {folder!r}"}
    study = open_study(open_storage(None), "mine", first, make_sampler(None, 0), make_pruner(None))
    with pytest.raises(ContinuationError, match=r"differs: the files of '.*model'\. Set"):
        check_key(study, other)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    assert name_of(key_of(build(folder), DATA)) == name_of(first)


def test_check_key__somebody_elses_study__is_refused_as_such() -> None:
    study = optuna.create_study(study_name="theirs")
    study.tell(study.ask(), 0.5)
    with pytest.raises(ContinuationError, match=r"'theirs' has trials of something else: set ano"):
        check_key(study, {"X": 1})


def test_study_key__models_to_choose_from__their_files_count(tmp_path: Path) -> None:
    folders = [tiny_gpt(str(tmp_path / name), seed=i) for i, name in enumerate("ab")]
    for among in (folders, CategoricalDistribution(folders)):
        found = key_of(make("smollm2-135m"), DATA, {"model": among})
        assert [n for n in found if n.startswith("the files")] == [
            f"the files of {folder!r}" for folder in folders
        ]
        assert len({found[f"the files of {folder!r}"] for folder in folders}) == 2


def test_study_key__other_weights_for_the_scorer_alone__is_another_search(tiny_llama: str) -> None:
    rows = np.arange(len(DATA.X))
    estimator, splits = make(tiny_llama), [(rows[:20], rows[20:])]
    names = []
    for last in (1.0, 1.0, 2.0):
        passed = {"sample_weight": np.r_[np.ones(len(rows) - 1), last]}
        work = Evaluator(estimator, *DATA[:2], splits, None, {}, passed)
        names.append(name_of(study_key(work, None, Space(RATES))))
    assert names[0] == names[1] != names[2]


def test_files_digest__what_is_had_by_name_or_is_none__is_none(tmp_path: Path) -> None:
    assert (
        hash_model_files("smollm2-135m") is None and hash_model_files("someone/something") is None
    )
    assert hash_model_files(str(tmp_path)) is None and hash_model_files("") is None


def test_files_digest__one_bit_differs__is_another(tmp_path: Path) -> None:
    folder = tiny_gpt(str(tmp_path / "model"))
    first = hash_model_files(folder)
    weights = max(Path(folder).glob("*.safetensors"))
    assert first is not None and hash_model_files(str(weights)) not in (None, first)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert hash_model_files(folder) != first
