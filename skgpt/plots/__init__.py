"""Displays in scikit-learn's manner; matplotlib is imported when one of them is drawn."""

from skgpt.plots.token_attribution import TokenAttributionDisplay

__all__ = ["TokenAttributionDisplay"]
