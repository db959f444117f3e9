"""Displays in scikit-learn's manner; matplotlib is imported when one of them is drawn."""

from skgpt.plots.error_table import ErrorTableDisplay
from skgpt.plots.token_attribution import TokenAttributionDisplay
from skgpt.plots.training_curve import TrainingCurveDisplay

__all__ = ["ErrorTableDisplay", "TokenAttributionDisplay", "TrainingCurveDisplay"]
