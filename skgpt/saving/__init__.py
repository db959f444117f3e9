"""A fitted model as tensors and plain values, and back."""
