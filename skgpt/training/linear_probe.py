"""A linear probe: where the head alone learns, it is solved for instead of stepped towards."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from skgpt.data.batching import Rows
from skgpt.training.run import TrainingRun

_MAX_ITERATIONS = 1000
# Label words that a head starts from are worth so many rows: with fewer, the penalty is larger.
_ROWS_OF_WORDS = 1000


def solve_head(run: TrainingRun, rows: Rows) -> None:
    """Minimise the weighted mean loss over the rows and a penalty on the head's weight: L-BFGS.

    The states are divided by their deviations over the rows first, and the weight takes these in:
    a few that are far larger than the others would decide everything. Loss and penalty are means,
    so the scale of the weights changes nothing, and a row of weight two is that row twice. The
    penalty is on the distance from label words, if the head starts from some, and then it falls
    with the number of rows.
    """
    rows = np.sort(rows[run.row_weight[rows] > 0])
    if len(rows) == 0:
        run.optimizer.skip_step()
        return
    states_NH = run.features.pooled_array(rows).astype(np.float64)
    total = run.row_weight[rows].sum()
    share_N = run.row_weight[rows] / total
    deviation_H = np.sqrt(share_N @ (states_NH - share_N @ states_NH) ** 2)
    deviation_H[deviation_H == 0] = 1.0

    scaled_NH = torch.from_numpy(states_NH / deviation_H)
    target = run.target_N[torch.from_numpy(rows).to(run.target_N.device)].cpu()
    if target.is_floating_point():
        target = target.double()
    weight = torch.from_numpy(run.rows.weight[rows] / total)
    # The columns of a target, labels or numbers, are solved for side by side, each as if alone, and
    # so are several outputs.
    share_J = weight.sum(0) if weight.ndim == 2 else torch.ones(1)
    penalty_K1 = run.loss.penalty * run.loss.spread(share_J)[:, None]
    shape = run.network.head.weight.shape
    offset_K = run.network.offset.cpu().double()
    start_KH = run.network.head.weight.detach().cpu().double().numpy() * deviation_H
    centre_KH = torch.zeros(shape)
    if run.network.spec.prompted:
        centre_KH = torch.from_numpy(start_KH)
        penalty_K1 = max(1.0, _ROWS_OF_WORDS / len(rows)) * penalty_K1

    def loss_of(weight_KH: torch.Tensor) -> torch.Tensor:
        return run.loss.total(scaled_NH @ weight_KH.T + offset_K, target, weight)

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight_KH = torch.from_numpy(flat).view(shape).requires_grad_()
        value = loss_of(weight_KH) + (penalty_K1 / 2 * (weight_KH - centre_KH).square()).sum()
        (gradient,) = torch.autograd.grad(value, weight_KH)
        return float(value.detach()), gradient.numpy().ravel()

    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS}
    found = minimize(objective, start_KH.ravel(), jac=True, method="L-BFGS-B", options=options)
    loss = loss_of(torch.from_numpy(found.x).view(shape)).float()
    skipped = run.optimizer.put_head(found.x.reshape(shape) / deviation_H, loss)
    run.running_loss.add([loss], float(total), skipped)
