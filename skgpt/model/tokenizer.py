"""A transformers tokenizer as the plain encoder that `skgpt.text.tokens` asks for."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skgpt.exceptions import ModelNotSupportedError

_PROBE = "a"


class TextTokenizer:
    """Encodes texts as plain text, whatever they hold.

    Padding and truncation are state on the shared Rust object, so neither is ever used; ids are
    cut afterwards. The special tokens that the tokenizer would put around a text are found once,
    by comparing a probe with and without them.

    Parameters
    ----------
    hf : transformers tokenizer
    """

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        bare = self.encode([_PROBE])[0]
        framed = list(hf(_PROBE, add_special_tokens=True)["input_ids"])
        start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), None)
        if start is None or not bare:
            raise ModelNotSupportedError(
                "The tokenizer must encode a text as the same ids with and without special tokens "
                f"around it. Got {bare} and {framed} for {_PROBE!r}: use another model."
            )
        self.prefix_ids = tuple(framed[:start])
        self.suffix_ids = tuple(framed[start + len(bare) :])
        ends = [hf.bos_token_id, hf.eos_token_id, hf.cls_token_id, hf.pad_token_id, 0]
        self.empty_id = int(next(i for i in ends if i is not None))

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; strings that look like special tokens are plain text."""
        encoded = self.hf(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,
            verbose=False,  # no warning about texts beyond the model's length: ids are cut later
        )
        ids: list[list[int]] = encoded["input_ids"]
        return ids

    def files(self) -> dict[str, str]:
        """Return the tokenizer as the text of the files that transformers would save."""
        with tempfile.TemporaryDirectory() as folder:
            self.hf.save_pretrained(folder)
            files = {}
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    # latin-1 maps every byte to one character: binary vocabularies survive
                    files[str(path.relative_to(folder))] = path.read_bytes().decode("latin-1")
            return files

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> "TextTokenizer":
        """Make the tokenizer again from what `files` returned."""
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                if not path.resolve().is_relative_to(Path(folder).resolve()):
                    raise ModelNotSupportedError(
                        f"A tokenizer file must lie inside its folder. Got {name!r}."
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode("latin-1"))
            return cls(
                AutoTokenizer.from_pretrained(
                    folder, local_files_only=True, trust_remote_code=False
                )
            )
