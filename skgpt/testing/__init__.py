"""Tools for testing text estimators: ours and other people's.

`tiny_gpt` writes a model small enough for a unit test, `check_text_estimator` runs scikit-learn's
checks and our own on anything that is fitted on texts. Neither knows skgpt's estimators.
"""

from skgpt.testing.checks import TextEstimatorReport, check_text_estimator
from skgpt.testing.tiny import tiny_gpt

__all__ = ["TextEstimatorReport", "check_text_estimator", "tiny_gpt"]
