"""Memory that runs out, simulated: less is run at a time, and the result stays."""

import itertools
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import skgpt
from skgpt.device import own_settings
from skgpt.exceptions import LowMemoryWarning, NoMemoryError
from skgpt.network.features import TextFeatures
from skgpt.network.layout import Layout
from skgpt.network.microbatches import MicroBatcher, token_budget
from skgpt.network.network import TextNetwork
from skgpt.pretrained.loading import load_pretrained
from skgpt.training.optimizer import Optimizer
from tests.helpers import TextData, make
from tests.network.test_network import build

LIMIT = 90  # tokens; the longest text of the data has 36
PADDED = "bloom"  # can't be packed


@pytest.fixture(autouse=True)
def empty_stores() -> Iterator[None]:
    skgpt.clear_cache()
    yield
    skgpt.clear_cache()  # lowered budgets too


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Return a function that has more tokens than its argument run out of memory, and counts."""
    lay = Layout.lay

    def limit_to(most: int) -> list[int]:
        refused: list[int] = []

        def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
            laid_out = lay(self, *args, **kwargs)
            if (n_tokens := laid_out.shape[0] * laid_out.shape[1]) > most:
                refused.append(n_tokens)
                raise torch.OutOfMemoryError(f"tried to run {n_tokens} tokens")
            return laid_out

        monkeypatch.setattr(Layout, "lay", limited)
        return refused

    return limit_to


@pytest.mark.first_tier(architecture=["llama"], trainable=["all"])
@pytest.mark.first_tier(architecture=[PADDED], trainable=[1])
@pytest.mark.parametrize("architecture", ["llama", PADDED])
@pytest.mark.parametrize("trainable", ["all", 1, 0])
def test_fit_and_predict__memory_runs_out__the_result_is_the_same(
    architecture: str,
    trainable: Any,
    tiny_model: Callable[[str], str],
    two_class_data: TextData,
    small_memory: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data
    clf = make(tiny_model(architecture), trainable_layers=trainable, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    losses = clf.loss_curve_
    refused = small_memory(LIMIT)
    skgpt.clear_cache()
    with pytest.warns(LowMemoryWarning, match="ran out with .* tokens at once"):
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-4)
    assert refused
    refused.clear()
    skgpt.clear_cache()
    with pytest.warns(LowMemoryWarning, match="ran out with .* tokens at once"):
        clf.fit(X, y)
    assert refused
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowMemoryWarning)  # predict may try more at once
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-4)
    refused.clear()
    clf.fit(X, y).predict_proba(X)  # warnings are errors: what held is known by now
    assert not refused


@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-4), ("bf16", 3e-2)])
def test_fit__memory_runs_out_in_a_backward_pass__no_gradient_counts_twice(
    precision: str,
    atol: float,
    tiny_llama: str,
    two_class_data: TextData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = two_class_data
    monkeypatch.setattr("skgpt.fitting.token_budget", lambda network, learning: 150)
    clf = make(tiny_llama, trainable_layers="all", precision=precision, max_epochs=3)
    expected = clf.fit(X, y).predict_proba(X)
    gradients, calls = Optimizer.gradients, itertools.count(1)

    def breaks(self: Optimizer, loss: torch.Tensor) -> Any:
        if next(calls) in (2, 5):  # the gradients of the parts before it are there
            raise torch.OutOfMemoryError("in the middle of a step")
        return gradients(self, loss)

    monkeypatch.setattr(Optimizer, "gradients", breaks)
    with pytest.warns(LowMemoryWarning):
        clf.fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=atol)


@pytest.mark.parametrize("trainable", ["all", 1])
def test_fit__not_even_one_text_fits__says_so_and_keeps_the_earlier_fit(
    trainable: Any,
    tiny_llama: str,
    two_class_data: TextData,
    small_memory: Callable[[int], list[int]],
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=trainable).fit(X[:20], y[:20])
    losses = clf.loss_curve_
    skgpt.clear_cache()
    small_memory(33)  # what frozen layers are tried out with is 32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowMemoryWarning)
        with pytest.raises(NoMemoryError, match=r"max_length.*with a text of \d+ tokens alone"):
            clf.fit(X, y)
        with pytest.raises(MemoryError):  # as anybody would catch it
            clf.predict(X)
    assert clf.loss_curve_ is losses


def test_token_budget__of_one_model__follows_memory_and_what_learns(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_pretrained(tiny_llama)
    whole = build(source, trainable_layers="all")
    last = build(source, trainable_layers=1)
    head = build(source, trainable_layers=0)

    def budget(network: Any, gib: float, *, learning: bool) -> int:
        monkeypatch.setattr(
            "skgpt.network.microbatches.total_memory", lambda device: int(gib * 2**30)
        )
        return token_budget(network, learning=learning)

    assert budget(whole, 100, learning=True) == 2048  # a CPU's cap
    small = [budget(n, 0.02, learning=True) for n in (whole, last)]
    assert 128 < small[0] < small[1] <= 2048
    assert budget(whole, 0.02, learning=False) > small[0]
    assert budget(head, 0.02, learning=True) == budget(head, 0.02, learning=False) < 2048
    assert budget(whole, 0.0001, learning=True) == 128
    monkeypatch.setattr(whole, "device", torch.device("cuda", 0))
    assert budget(whole, 1000, learning=True) == 65_536


def test_fit_and_predict__in_a_container__keep_to_its_cores_and_give_threads_back(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    monkeypatch.setattr("skgpt.device.loky.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 64)
    monkeypatch.setattr("torch.set_num_threads", seen.append)
    monkeypatch.setattr("skgpt.network.microbatches.n_threads", lambda device: 1)
    clf = make(tiny_llama, max_epochs=1).fit(*two_class_data)
    assert seen == [2, 64]
    clf.predict(two_class_data.X)
    assert seen == [2, 64] * 2
    with pytest.raises(ZeroDivisionError), own_settings():
        divmod(1, 0)
    assert seen == [2, 64] * 3
    monkeypatch.setattr("skgpt.device.loky.cpu_count", lambda: 99)  # more than are in use
    with own_settings():
        assert seen == [2, 64] * 3


def test_fit__memory_runs_out_with_what_is_kept_for_others__that_is_given_up_first(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, y = two_class_data
    clf = make(tiny_llama, trainable_layers=1, precision="fp32")
    expected = clf.fit(X, y).predict_proba(X)
    pooled = TextNetwork.pooled

    def short_of_memory(self: Any, *args: Any) -> torch.Tensor:
        if skgpt.cache_info()["states on cpu"]["bytes"]:
            raise torch.OutOfMemoryError("states of other fits")
        return pooled(self, *args)

    monkeypatch.setattr(TextNetwork, "pooled", short_of_memory)
    again = make(tiny_llama, trainable_layers="all", precision="fp32").fit(X, y)  # no warning
    assert again.loss_curve_
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"),
        MemoryError("Unable to allocate 1. GiB for an array"),  # numpy's
    ],
)
def test_micro_batcher__other_errors__count_if_of_memory(error: Exception, tiny_llama: str) -> None:
    batcher = MicroBatcher(build(load_pretrained(tiny_llama)), 100)
    rows, lengths = np.arange(4), np.full(4, 10)
    work = Mock(side_effect=[error, *4 * [None]])
    assert sum(len(part) for part, _ in batcher.map(work, rows, lengths)) == 4
    with pytest.raises(RuntimeError, match="shapes"):
        next(batcher.map(Mock(side_effect=RuntimeError("shapes don't fit")), rows, lengths))


def test_fit__no_room_for_what_learns__names_what_to_lower_and_keeps_no_states_alive(
    tiny_llama: str, two_class_data: TextData, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[Any]] = []
    begin = TextFeatures.__init__

    def noting(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        made.append(weakref.ref(self))

    full = Mock(side_effect=torch.OutOfMemoryError("no room for moments"))
    monkeypatch.setattr(TextFeatures, "__init__", noting)
    monkeypatch.setattr(torch.optim.AdamW, "step", full)
    with pytest.raises(NoMemoryError, match=r"no room.*n_layers or trainable_layers") as held:
        make(tiny_llama, trainable_layers=1).fit(*two_class_data)
    assert held.value and made and made[0]() is None  # while somebody holds the error
