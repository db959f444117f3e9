"""What the tests stand on: the shared fitted models, and that a change to one is found."""

from collections.abc import Callable

import pytest

from tests.helpers import Fitted, FittedModels


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
