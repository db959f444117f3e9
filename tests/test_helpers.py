"""The tests' own ground: no sockets or downloads unless asked for, models that nobody changes."""

import os
import socket

import pytest


def test_network__unmarked_test__kept_off_sockets_and_pips_index() -> None:
    with pytest.raises(Exception, match="tried to use socket"):
        socket.create_connection(("localhost", 9), timeout=1)
    assert os.environ["PIP_NO_INDEX"] == "1"


@pytest.mark.network
def test_network__network_test__allowed() -> None:
    with socket.socket(socket.AF_INET) as made:
        assert made.fileno() > 0
    assert "PIP_NO_INDEX" not in os.environ
