"""The tests' own walls: no sockets and no downloads unless asked for, and processes still work."""

import os
import random
import socket

import pytest
from joblib import Parallel, delayed

from tests.helpers import global_random_state_unchanged, make_text_data


def test_sockets__unmarked_test__blocked() -> None:
    with pytest.raises(Exception, match="tried to use socket"):
        socket.create_connection(("localhost", 9), timeout=1)


@pytest.mark.network
def test_sockets__network_test__allowed() -> None:
    with socket.socket(socket.AF_INET) as made:
        assert made.fileno() > 0
    assert "PIP_NO_INDEX" not in os.environ


def test_pip__unmarked_test__kept_from_its_index() -> None:
    assert os.environ["PIP_NO_INDEX"] == "1"


def test_loky__unmarked_test__works() -> None:
    results = Parallel(n_jobs=2, backend="loky")(delayed(make_text_data)(2, 1, i) for i in range(2))
    assert [len(data.X) for data in results] == [2, 2]


def test_global_random_state_unchanged__drawn_from__fails() -> None:
    with pytest.raises(AssertionError, match="random state of random"):  # noqa: SIM117
        with global_random_state_unchanged():
            random.random()


@pytest.mark.gpu
def test_gpu_mark__no_cuda__skipped() -> None:
    import torch

    assert torch.cuda.is_available()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_make_text_data__same_seed__same_texts(n_classes: int) -> None:
    first, second = make_text_data(n_classes), make_text_data(n_classes)
    assert first.X.tolist() == second.X.tolist()
    assert len(set(first.y)) == n_classes
    assert not first.X.flags.writeable
