"""Pretrained trunks, tokenizers, pooling and heads; no training and no estimator."""
