"""A transformers tokenizer as the plain encoder that `skgpt.data.tokenization` asks for."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skgpt.data.batching import Progress, no_progress
from skgpt.exceptions import ModelNotSupportedError
from skgpt.pretrained.trust import harmless_tokenizer, tokenizer_class

_PROBE = "a"
_NEUTRAL = ("\n", ".", ",")
_PLACE = "skgpt-message"  # where a chat template puts the message
# Characters of the texts that are encoded in one call, in which Python sees no Ctrl-C. The pairs
# that say where a long text's tokens lie take 20 times its space, too.
_CHARACTERS_AT_ONCE = 2**18


class TextTokenizer:
    """Encodes texts as plain text, whatever they hold.

    Padding and truncation are state on the shared Rust object, so neither is ever used; ids are
    cut afterwards. The special tokens that the tokenizer would put around a text are found once,
    by comparing a probe with and without them. The ids of a shared tokenizer's texts are kept for
    other fits and predictions of this process.
    """

    def __init__(self, hf: Any, *, shared: bool = False) -> None:
        self.hf = hf
        self.identity = object() if shared else None
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

    def open_ended(self) -> "TextTokenizer":
        """Return a tokenizer that puts no special tokens behind a text: one that goes on."""
        return self.framed(self.prefix_ids, ())

    def framed(self, prefix_ids: tuple[int, ...], suffix_ids: tuple[int, ...]) -> "TextTokenizer":
        """Return a tokenizer that puts these tokens around a text."""
        twin = copy.copy(self)
        twin.prefix_ids, twin.suffix_ids = prefix_ids, suffix_ids
        return twin

    def in_chat(self) -> tuple["TextTokenizer", str]:
        """Return a tokenizer that makes a text a user's message, and what the answer stands behind.

        The answer's words follow that text, which stands behind the last special token.
        """
        if not getattr(self.hf, "chat_template", None):
            raise ModelNotSupportedError(
                "chat=True needs a tokenizer with a chat template, as those of models that were "
                "tuned to follow instructions have it. This one has none: set chat=False."
            )
        message = [{"role": "user", "content": _PLACE}]
        whole = self.hf.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before, place, after = whole.partition(_PLACE)
        if not place or _PLACE in after:
            raise ModelNotSupportedError(
                "chat=True needs a chat template that holds a user's message once. This "
                "tokenizer's doesn't: set chat=False."
            )
        found = self.hf([before, after], add_special_tokens=False)["input_ids"]
        specials = {*self.hf.all_special_tokens, *self.hf.get_added_vocab()}
        ends = [after.rfind(token) + len(token) for token in specials if token in after]
        return self.framed(*map(tuple, found)), after[max(ends, default=0) :]

    def neutral_ids(self) -> list[int]:
        """Return ids for a text that says nothing: punctuation where the tokenizer has it."""
        found = [ids[-1] for ids in self.encode(list(_NEUTRAL)) if ids]
        return [i for i in found if i != self.hf.unk_token_id] or [self.empty_id]

    def encode(self, texts: list[str], progress: Progress = no_progress) -> list[list[int]]:
        """Return the ids of each text; strings that look like special tokens are plain text."""
        ids: list[list[int]] = []
        for part in _parts(texts):
            ids += self._encode(texts[part])["input_ids"]
            progress(len(ids), len(texts))
        return ids

    def truncate(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        """Return of each text a beginning that is at most so many tokens by itself.

        It ends where its last token ends, or before the character that this token shares with the
        next one, or earlier if a text that ends there is made of other and more tokens. Slow
        tokenizers don't say where their tokens lie: they are asked by bisection.
        """
        if not texts:
            return []
        if not getattr(self.hf, "is_fast", False):
            return self._truncate_by_bisection(texts, n_tokens)
        heads = list(texts)
        kept = list(n_tokens)
        spans = self._first_spans(texts, n_tokens)
        todo = [i for i, n in enumerate(n_tokens) if len(spans[i]) > n]
        while todo:
            for i in todo:
                heads[i] = texts[i][: _end(spans[i], kept[i])]
            ids = self.encode([heads[i] for i in todo])
            over = {i: len(row) - n_tokens[i] for i, row in zip(todo, ids, strict=True)}
            todo = [i for i in todo if over[i] > 0 and kept[i] > 0]
            for i in todo:
                kept[i] = max(0, kept[i] - over[i])
        return heads

    def spans(self, texts: list[str]) -> list[list[tuple[int, int]]]:
        """Return where in its text each of `encode`'s tokens begins and ends, in characters.

        Bytes of one character are tokens that each span it.
        """
        if not getattr(self.hf, "is_fast", False):
            raise ModelNotSupportedError(
                "To say what a text's words are worth, the tokenizer must tell where in the text "
                f"its tokens lie. {type(self.hf).__name__} is not a fast one and doesn't: use a "
                "model whose folder has a tokenizer.json."
            )
        return self._first_spans(texts, [None] * len(texts))

    def _first_spans(
        self, texts: list[str], n_tokens: Sequence[int | None]
    ) -> list[list[tuple[int, int]]]:
        """Return where each text's first tokens lie, one more than asked for; all for None."""
        spans = []
        for part in _parts(texts):
            found = self._encode(texts[part], return_offsets_mapping=True)
            for row, n in zip(found["offset_mapping"], n_tokens[part], strict=True):
                spans.append(row if n is None else row[: n + 1])
        return spans

    def _truncate_by_bisection(self, texts: list[str], n_tokens: list[int]) -> list[str]:
        ids = self.encode(texts)
        low = [0] * len(texts)
        high = [len(text) for text in texts]
        for i, n in enumerate(n_tokens):
            if len(ids[i]) <= n:
                low[i] = high[i]
        while todo := [i for i in range(len(texts)) if low[i] < high[i]]:
            middle = {i: (low[i] + high[i] + 1) // 2 for i in todo}
            ids = self.encode([texts[i][: middle[i]] for i in todo])
            for i, row in zip(todo, ids, strict=True):
                if len(row) <= n_tokens[i]:
                    low[i] = middle[i]
                else:
                    high[i] = middle[i] - 1
        return [text[:end] for text, end in zip(texts, low, strict=True)]

    def _encode(self, texts: list[str], **options: Any) -> Any:
        return self.hf(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=True,
            verbose=False,  # no warning about texts beyond the model's length: ids are cut later
            **options,
        )

    def files(self) -> dict[str, str]:
        """Return the tokenizer as the text of the files that transformers would save."""
        with tempfile.TemporaryDirectory() as folder:
            self.hf.save_pretrained(folder)
            # latin-1 maps every byte to one character: binary vocabularies survive.
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes().decode("latin-1")
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }
            return harmless_tokenizer(files)[0]  # better refused now than when it is opened

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> "TextTokenizer":
        """Make the tokenizer again from what `files` returned; nothing in it is code to be run."""
        files, class_name = harmless_tokenizer(files)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = Path(folder, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode("latin-1"))
            kind = tokenizer_class(class_name)
            return cls(kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False))


def _parts(texts: list[str]) -> Iterator[slice]:
    """Yield what to encode in one call: texts of so many characters together, one at least."""
    start = size = 0
    for end, text in enumerate(texts, 1):
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE or end == len(texts):
            yield slice(start, end)
            start, size = end, 0


def _end(spans: Sequence[tuple[int, int]], n_tokens: int) -> int:
    """Return where the first tokens of a text end, given where each begins and ends.

    Not where the next one begins: there may be a space between them that only the next one's
    text would swallow. But no later than that: bytes of one character are tokens that each span it.
    """
    return min(spans[n_tokens - 1][1], spans[n_tokens][0]) if n_tokens else 0
