"""From what the user passes to arrays: texts, labels, weights, splits, tokens, batches."""
