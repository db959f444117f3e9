"""The tests' own ground: no sockets or downloads unless asked for, models that nobody changes."""

import os
import random
import socket
from collections.abc import Callable

import pytest

from tests.helpers import Fitted, FittedModels, global_random_state_unchanged


def test_network__unmarked_test__kept_off_sockets_and_pips_index() -> None:
    with pytest.raises(Exception, match="tried to use socket"):
        socket.create_connection(("localhost", 9), timeout=1)
    assert os.environ["PIP_NO_INDEX"] == "1"


@pytest.mark.network
def test_network__network_test__allowed() -> None:
    with socket.socket(socket.AF_INET) as made:
        assert made.fileno() > 0
    assert "PIP_NO_INDEX" not in os.environ


def test_global_random_state_unchanged__drawn_from__fails() -> None:
    with pytest.raises(AssertionError, match="random state of random"):  # noqa: SIM117
        with global_random_state_unchanged():
            random.random()


@pytest.mark.parametrize("kind", FittedModels.KINDS)
def test_shared_model__each_kind__has_learnt(
    kind: str, fitted_model: Callable[[str], Fitted]
) -> None:
    clf, X, y = fitted_model(kind)
    assert clf.score(X, y) > 0.7
    assert fitted_model(kind).clf is clf


def test_shared_model__changed__is_found(tiny_llama: str) -> None:
    models = FittedModels(tiny_llama)
    clf, X, y = models.get("head only")
    models.check_unchanged("head only")
    clf.partial_fit(X, y)
    with pytest.raises(AssertionError, match="changed the shared model 'head only'"):
        models.check_unchanged("head only")
