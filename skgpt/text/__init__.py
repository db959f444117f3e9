"""Texts, labels and weights as arrays: numpy and scikit-learn only, never torch."""
