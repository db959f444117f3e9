"""Losses over raw scores and what the scores mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn import functional as F

from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=GENERATOR)
CODES = torch.tensor([0, 3, 1, 1, 2, 0])
SETS = (torch.rand(6, 4, generator=GENERATOR) < 0.4).float()
WEIGHTS = torch.rand(6, generator=GENERATOR)
ELEMENT_WEIGHTS = torch.rand(6, 4, generator=GENERATOR)
FLOAT32 = np.finfo(np.float32)


def cases(smoothing: float) -> list[tuple]:
    return [
        (CrossEntropy(smoothing), CODES, WEIGHTS),
        (BinaryCrossEntropy(smoothing), SETS, ELEMENT_WEIGHTS),
    ]


def test_cross_entropy__no_smoothing__bit_for_bit_the_plain_one() -> None:
    plain = (F.cross_entropy(LOGITS, CODES, reduction="none") * WEIGHTS).sum()
    assert torch.equal(CrossEntropy().total(LOGITS, CODES, WEIGHTS), plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy__weights_of_one__same_as_torch(smoothing: float) -> None:
    torchs = torch.nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
    got = CrossEntropy(smoothing).total(LOGITS, CODES, torch.ones(6))
    assert got.item() == pytest.approx(torchs(LOGITS, CODES).item(), rel=1e-6)


def test_binary_cross_entropy__weighted__same_as_torch() -> None:
    torchs = torch.nn.BCEWithLogitsLoss(weight=ELEMENT_WEIGHTS, reduction="sum")
    got = BinaryCrossEntropy().total(LOGITS, SETS, ELEMENT_WEIGHTS)
    assert got.item() == pytest.approx(torchs(LOGITS, SETS).item(), rel=1e-6)


def test_binary_cross_entropy__smoothed__mixes_the_target_with_its_complement() -> None:
    def total(target: torch.Tensor, smoothing: float) -> float:
        return BinaryCrossEntropy(smoothing).total(LOGITS, target, ELEMENT_WEIGHTS).item()

    mixed = 0.9 * total(SETS, 0.0) + 0.1 * total(1 - SETS, 0.0)
    assert total(SETS, 0.2) == pytest.approx(mixed, rel=1e-6)
    assert total(SETS, 1.0) == pytest.approx(total(1 - SETS, 1.0), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_two_classes__one_score_against_zero__both_losses_are_equal(smoothing: float) -> None:
    z, y, w = LOGITS[:, :1], SETS[:, :1], ELEMENT_WEIGHTS[:, :1]
    two = torch.cat([torch.zeros_like(z), z], dim=1)
    binary = BinaryCrossEntropy(smoothing)
    classes = CrossEntropy(smoothing)
    assert binary.total(z, y, w).item() == pytest.approx(
        classes.total(two, y[:, 0].long(), w[:, 0]).item(), rel=1e-6
    )
    assert binary.probabilities(z.numpy())[:, 0] == pytest.approx(
        classes.probabilities(two.numpy())[:, 1], rel=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("which", [0, 1])
def test_total__its_gradient__agrees_with_finite_differences(which: int, smoothing: float) -> None:
    loss, target, weight = cases(smoothing)[which]
    target = target.double() if target.is_floating_point() else target
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss.total(z, target, weight.double()), logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("which", [0, 1])
def test_total__weight_two__equals_the_row_twice(which: int, smoothing: float) -> None:
    loss, target, weight = cases(smoothing)[which]
    often = torch.tensor([0, 1, 1, 2, 3, 4, 5])
    doubled = weight.clone()
    doubled[1] *= 2
    twice = loss.total(LOGITS[often], target[often], weight[often])
    assert loss.total(LOGITS, target, doubled).item() == pytest.approx(twice.item(), rel=1e-6)


@pytest.mark.parametrize("which", [0, 1])
def test_total__of_the_truth__is_minus_its_log_probability(which: int) -> None:
    loss, target, weight = cases(0.0)[which]
    log_p = loss.log_probabilities(LOGITS.numpy())
    if which == 0:
        want = -(log_p[np.arange(6), CODES.numpy()] * weight.numpy()).sum()
    else:
        truth = np.where(SETS.numpy() == 1, log_p, loss.log_probabilities(-LOGITS.numpy()))
        want = -(truth * weight.numpy()).sum()
    assert loss.total(LOGITS, target, weight).item() == pytest.approx(want, rel=1e-5)


def test_cross_entropy__probabilities__sum_to_one() -> None:
    p = CrossEntropy().probabilities(LOGITS.numpy())
    assert p.dtype == np.float64
    assert p.sum(axis=1) == pytest.approx(np.ones(6), rel=1e-14)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (8, 3), elements=st.floats(width=32, allow_nan=False)))
def test_binary_cross_entropy__any_score__probability_inside_0_and_1_and_rising(
    logits: np.ndarray,
) -> None:
    logits.flags.writeable = False
    p = BinaryCrossEntropy().probabilities(logits)
    assert p.dtype == np.float64
    assert p.shape == logits.shape
    assert (p > 0).all() and (p < 1).all()
    order = np.argsort(logits, axis=None)
    assert (np.diff(p.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("centre", [-745, -708, -90, -17, -1, 0, 1, 17, 37])
def test_binary_cross_entropy__neighbouring_scores__probability_never_falls(centre: float) -> None:
    bits = np.float32(centre).view(np.int32) + np.arange(50_000, dtype=np.int32)
    p = BinaryCrossEntropy().probabilities(np.sort(bits.view(np.float32)))
    assert (np.diff(p) >= 0).all()


def test_binary_cross_entropy__complements__sum_to_one() -> None:
    logits = np.linspace(-15, 15, 1001, dtype=np.float32)
    loss = BinaryCrossEntropy()
    assert loss.probabilities(logits) + loss.probabilities(-logits) == pytest.approx(1, rel=1e-6)
    assert loss.probabilities(logits) == pytest.approx(
        torch.sigmoid(torch.from_numpy(logits)).numpy(), rel=1e-6
    )


def test_binary_cross_entropy__log_probabilities__are_the_logs_and_finite() -> None:
    loss = BinaryCrossEntropy()
    logits = np.linspace(-80, 15, 1001, dtype=np.float32)
    log_p = loss.log_probabilities(logits)
    assert log_p.dtype == np.float64
    assert log_p == pytest.approx(np.log(loss.probabilities(logits)), rel=1e-5, abs=1e-7)
    extreme = loss.log_probabilities(np.array([-FLOAT32.max, -1e4, 1e4, FLOAT32.max], np.float32))
    assert np.isfinite(extreme).all()
    assert extreme[1] == -1e4
    assert (extreme <= 0).all()
