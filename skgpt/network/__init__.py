"""Trunk, pooling and head as one network, and running it within memory."""
