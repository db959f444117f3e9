"""Where models come from: aliases, files, tokenizers."""
