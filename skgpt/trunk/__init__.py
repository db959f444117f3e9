"""What is done to a transformers model: shorten it, enter it at a layer, attend without padding."""
