"""What is in a model's files: a name says where a folder is, not what was written into it since."""

import hashlib
from functools import lru_cache

from skgpt.model.sources import place_of

# What transformers reads of a folder: configuration, weights, tokenizer.
_READ_FROM = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    "*.model",
)


def files_digest(model: str) -> str | None:
    """Return a hash of the files that a model is read from; no other in its folder counts.

    It is taken once for files that are as they were, by their times and sizes.

    Parameters
    ----------
    model : str
        As of `load_source`.

    Returns
    -------
    digest : str or None
        None for a model that is had by name, or where there is none.
    """
    path, local = place_of(model)
    if not local or (path.is_dir() and not (path / "config.json").is_file()):
        return None
    files = [path]
    if path.is_dir():
        files = sorted({f for pattern in _READ_FROM for f in path.glob(pattern) if f.is_file()})
    stats = [(str(f.resolve()), f.name, f.stat()) for f in files]
    return _digest_of(tuple((at, name, s.st_mtime_ns, s.st_size) for at, name, s in stats))


@lru_cache(maxsize=64)
def _digest_of(files: tuple[tuple[str, str, int, int], ...]) -> str:
    whole = hashlib.sha256()
    for at, name, _, size in files:
        with open(at, "rb") as file:
            whole.update(
                f"{name};{size};{hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
            )
    return whole.hexdigest()
