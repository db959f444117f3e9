"""Losses over raw scores and what the scores mean."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skgpt.training.loss import BinaryCrossEntropy, CrossEntropy, JointCrossEntropy

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(6, 4, generator=GENERATOR)
CODES = torch.tensor([0, 3, 1, 1, 2, 0])
SETS = (torch.rand(6, 4, generator=GENERATOR) < 0.4).float()
ELEMENT_WEIGHTS = torch.rand(6, 4, generator=GENERATOR)
FLOAT32 = np.finfo(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy__weights_of_one__same_as_torch(smoothing: float) -> None:
    torchs = torch.nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
    got = CrossEntropy(smoothing).total(LOGITS, CODES, torch.ones(6))
    assert got.item() == pytest.approx(torchs(LOGITS, CODES).item(), rel=1e-6)


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


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_joint_cross_entropy__several_outputs__is_the_sum_of_their_own(smoothing: float) -> None:
    codes, weights = torch.stack([CODES % 3, CODES % 1], dim=1), ELEMENT_WEIGHTS[:, :2]
    own = CrossEntropy(smoothing)
    expected = own.total(LOGITS[:, :3], codes[:, 0], weights[:, 0])
    expected += own.total(LOGITS[:, 3:], codes[:, 1], weights[:, 1])
    joint = JointCrossEntropy((3, 1), smoothing)
    assert joint.total(LOGITS, codes, weights).item() == pytest.approx(expected.item(), rel=1e-6)
    assert joint.spread(torch.tensor([5.0, 7.0])).tolist() == [5.0, 5.0, 5.0, 7.0]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (8, 3), elements=st.floats(width=32, allow_nan=False)))
def test_binary_cross_entropy__any_score__probability_in_0_1_and_rising(logits: np.ndarray) -> None:
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
