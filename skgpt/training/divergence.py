"""Errors of training that ran off to infinity: what didn't stay finite, and what to do about it."""

from skgpt.exceptions import DivergedError
from skgpt.training.plan import TrainingPlan


def of_steps(plan: TrainingPlan, in_a_row: int, step: int) -> DivergedError:
    """Return the error for steps that were skipped.

    Parameters
    ----------
    plan : TrainingPlan
    in_a_row : int
        How many, one after the other; 0 for all that there were.
    step : int
        The last of them.
    """
    which = f"They didn't in {in_a_row} steps in a row" if in_a_row else "They did in no step"
    what = "The training loss and its gradient must stay finite"
    return _error(plan, f"{what}. {which}, up to step {step}")


def of_weights(plan: TrainingPlan) -> DivergedError:
    """Return the error for weights, which the last steps' losses may not have shown."""
    return _error(plan, "What was learned must stay finite. It didn't in the last steps")


def of_scores(plan: TrainingPlan, epoch: int) -> DivergedError:
    """Return the error for the raw scores, or the loss, of held-out rows after an epoch."""
    return _error(
        plan,
        f"The raw scores must stay finite. Those of the held-out rows didn't in epoch {epoch}",
    )


def _error(plan: TrainingPlan, what: str) -> DivergedError:
    return DivergedError(
        f"{what}: lower `learning_rate` ({plan.learning_rate}) or `head_learning_rate` "
        f"({plan.head_learning_rate}), set `max_grad_norm=1.0`, or use precision='fp32'."
    )
