"""Beginnings of texts in tokens: tokenizers trained on the spot, of every kind that models have."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BertTokenizer,
    ByT5Tokenizer,
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
)

from skgpt.caching import clear_cache
from skgpt.data.template import parse_template
from skgpt.data.tokenization import tokenise_rows
from skgpt.pretrained.loading import load_pretrained
from skgpt.pretrained.tokenizer import TextTokenizer
from tests.helpers import make

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "She sells sea shells by the sea shore; the shells she sells are surely sea shells.",
    "Fine-tuning a pretrained model on a handful of labelled texts works surprisingly well.",
    "Ça va? 日本語のテキスト и русский текст 😀😀.",
]
# A mark on the letter before it, a ligature and a letter that some normalisers take apart, emoji
# glued into one, what looks like a special token, and what some tokenizers drop.
PIECES = [
    *("the", " sea", " again", "  ", "\n", "é", "e\u0301", "ﬁ", "İ", "日本", "한", "😀"),
    *("👩\u200d👧", "</s>", "Q7", "\x00", "\u200b"),
]
texts_of_pieces = st.lists(st.sampled_from(PIECES), max_size=15).map("".join)


def byte_level(**options: bool) -> Tokenizer:
    """Like GPT-2's: bytes, merged; a space belongs to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **options)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(tokenizer, trainers.BpeTrainer, initial_alphabet=alphabet)


def byte_level_nfd() -> Tokenizer:
    """A normaliser that makes several characters of one."""
    tokenizer = byte_level()
    tokenizer.normalizer = normalizers.NFD()
    return tokenizer


def metaspace() -> Tokenizer:
    """Like sentencepiece's: a space goes in front of the text, NFKC makes one of many."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer, trainers.UnigramTrainer, unk_token="<unk>")


def byte_fallback() -> Tokenizer:
    """Like Llama 2's: a space in front by normalisation, bytes for what is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    return trained(tokenizer, trainers.BpeTrainer, [f"<0x{byte:02X}>" for byte in range(256)])


def word_piece() -> Tokenizer:
    """Like BERT's: spaces and control characters are no tokens, letters lose case and accents."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer)


def trained(
    tokenizer: Tokenizer, trainer: Any, more: list[str] | None = None, **options: Any
) -> Tokenizer:
    special = ["<unk>", "<s>", "</s>", *(more or [])]
    tokenizer.train_from_iterator(
        SENTENCES * 5,
        trainer(vocab_size=350, special_tokens=special, show_progress=False, **options),
    )
    return tokenizer


class Fake:
    """A letter is a token, lying where `span` says; but "abcdefgh" as a whole is one token."""

    bos_token_id = eos_token_id = cls_token_id = pad_token_id = 0

    def __init__(self, span: Callable[[int], tuple[int, int]] | None) -> None:
        self.span = span
        self.is_fast = span is not None

    def __call__(self, texts: str | list[str], **options: Any) -> dict[str, Any]:
        if isinstance(texts, str):
            return {"input_ids": [ord(c) for c in texts]}
        ids = [[99] if text == "abcdefgh" else [ord(c) for c in text] for text in texts]
        if self.span is None:
            return {"input_ids": ids}
        spans = [[self.span(i) for i in range(len(row))] for row in ids]
        return {"input_ids": ids, "offset_mapping": spans}


MAKERS: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "byte_level_one_word": lambda: byte_level(use_regex=False),
    "byte_level_nfd": byte_level_nfd,
    "metaspace": metaspace,
    "byte_fallback": byte_fallback,
    "word_piece": word_piece,
}


@pytest.fixture(scope="module", params=[*MAKERS, "bytes", "slow"])
def tokenizer(request: pytest.FixtureRequest, tiny_llama: str) -> TextTokenizer:
    """Return one tokenizer after the other."""
    if request.param == "slow":
        return TextTokenizer(ByT5Tokenizer())
    if request.param == "bytes":
        return load_pretrained(tiny_llama, None).tokenizer
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=MAKERS[request.param]()))


def n_tokens(tokenizer: TextTokenizer, text: str) -> int:
    return len(tokenizer.encode([text])[0]) if text else 0


@given(texts=st.lists(texts_of_pieces, min_size=1, max_size=4), n=st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_truncate__any_text__is_a_beginning_of_at_most_so_many_tokens(
    tokenizer: TextTokenizer, texts: list[str], n: int
) -> None:
    heads = tokenizer.truncate(texts, [n + i for i in range(len(texts))])
    for i, (text, head) in enumerate(zip(texts, heads, strict=True)):
        assert text.startswith(head)
        assert n_tokens(tokenizer, head) <= n + i
        if n_tokens(tokenizer, text) <= n + i:
            assert head == text
        assert tokenizer.truncate([text], [n + i]) == [head]  # alone as among others


@pytest.mark.parametrize("n", range(1, 40, 3))
def test_truncate__words__have_all_the_tokens_they_may(tokenizer: TextTokenizer, n: int) -> None:
    for text in ("A slow white cat will jump on the table, over and over." * 2, "xyzzy " * 30):
        (head,) = tokenizer.truncate([text], [n])
        # A space that the tokenizer puts in front is a token without a character.
        assert n - (n == 1) <= n_tokens(tokenizer, head) <= n


@pytest.mark.parametrize(
    "text", ["日本語のテキスト", "😀😀😀😀", "éé日😀" * 3, "e\u0301" * 9, "a😀b"]
)
def test_truncate__characters_of_several_bytes__are_whole(tiny_llama: str, text: str) -> None:
    tokenizer = load_pretrained(tiny_llama, None).tokenizer
    for n in range(len(text.encode()) + 2):
        (head,) = tokenizer.truncate([text], [n])
        assert head == text.encode()[:n].decode(errors="ignore")


def test_truncate__many_texts__are_what_each_is_alone(tokenizer: TextTokenizer) -> None:
    texts = [SENTENCES[i % 4] + f" {i}" for i in range(600)]
    limits = [i % 17 for i in range(600)]
    heads = tokenizer.truncate(texts, limits)
    for i in (0, 16, 255, 256, 257, 511, 512, 599):
        assert tokenizer.truncate([texts[i]], [limits[i]]) == [heads[i]]
    assert tokenizer.truncate([], []) == []


@pytest.mark.parametrize(
    "span",
    [lambda i: (i, i + 1), lambda i: (i, i + 3), lambda i: (i + 3, i + 4), lambda i: (0, 0)],
    ids=["true", "late end", "late", "nowhere"],
)
def test_truncate__untrue_spans__never_too_long(span: Callable[[int], tuple[int, int]]) -> None:
    text = "xyzxyzxyz"
    for n in range(10):
        (head,) = TextTokenizer(Fake(span)).truncate([text], [n])
        assert text.startswith(head)
        assert len(head) <= n
        if span(0) == (0, 1) or n == len(text):
            assert len(head) == n


@pytest.mark.parametrize("span", [None, lambda i: (i, i + 1)])
def test_truncate__more_tokens_in_a_beginning_than_in_the_whole__keep_the_whole(
    span: Callable[[int], tuple[int, int]] | None,
) -> None:
    assert TextTokenizer(Fake(span)).truncate(["abcdefgh", "abcdefghi"], [1, 2]) == [
        "abcdefgh",
        "ab",
    ]


@given(
    columns=st.lists(st.tuples(texts_of_pieces, texts_of_pieces), min_size=1, max_size=4),
    max_length=st.integers(16, 40),
)
@settings(max_examples=60, deadline=None)
def test_tokenise_rows__a_trained_tokenizer__keeps_the_words_and_cuts_ends(
    tokenizer: TextTokenizer, columns: list[tuple[str, str]], max_length: int
) -> None:
    template = parse_template("sea: {0}\n\nthe {1}.", 2, None)
    titles, bodies = (list(column) for column in zip(*columns, strict=True))
    tokens = tokenise_rows([titles, bodies], template, tokenizer, max_length)
    n_special = len(tokenizer.prefix_ids) + len(tokenizer.suffix_ids)
    for i, (title, body) in enumerate(columns):
        row = tokens.row(i).tolist()
        bare = row[len(tokenizer.prefix_ids) : len(row) - len(tokenizer.suffix_ids)]
        whole = tokenizer.encode([template.render([title, body])])[0]
        if len(whole) + n_special <= max_length:
            assert bare == whole
            continue
        assert len(row) <= max_length
        cut = [
            template.render([title[:j], body[:k]])
            for j in range(len(title) + 1)
            for k in range(len(body) + 1)
        ]
        assert bare in tokenizer.encode(cut)


def _class_of_bytes(kind: Any) -> Any:
    model = json.loads(byte_level().to_str())["model"]
    return kind(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def _class_of_fallback(kind: Any, **options: Any) -> Any:
    model = json.loads(byte_fallback().to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return kind(vocab=model["vocab"], merges=merges, **options)


def _bert() -> Any:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "text", "##s", "e"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: _class_of_bytes(GPT2Tokenizer),
        lambda: _class_of_fallback(LlamaTokenizer),
        lambda: _class_of_fallback(LlamaTokenizer, add_bos_token=True, add_eos_token=True),
        lambda: _class_of_fallback(GemmaTokenizer),
        _bert,
        ByT5Tokenizer,
    ],
    ids=["gpt2", "llama", "llama with ends", "gemma", "bert", "byt5"],
)
def test_from_files__a_class_of_its_own__encodes_the_same(make: Callable[[], Any]) -> None:
    one = TextTokenizer(make())
    two = TextTokenizer.from_files(one.files())
    texts = ["the texts", " a  b \u00e9", "", "sea </s> \U0001f600", "[CLS] <bos> 123\n\nthe"]
    assert two.encode(texts) == one.encode(texts)
    ends = [(t.prefix_ids, t.suffix_ids, t.empty_id) for t in (one, two)]
    assert ends[0] == ends[1]
    assert two.files() == TextTokenizer.from_files(two.files()).files()


def test_tokenising__many_texts__ctrl_c_waits_for_a_few_of_them_at_most(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python sees no signal while it waits for the tokenizer: each call must be a short one."""
    X = [f"{'some words ' * (i % 90)}{i}" for i in range(400)]
    columns = np.array([X, X[::-1]]).T
    clf = make(tiny_llama, template="{0} and {1}", max_length=32, max_epochs=1, n_layers=1)
    expected = clf.fit(columns, np.arange(400) % 2).predict_proba(columns)
    sizes: list[int] = []
    encode = TextTokenizer._encode

    def watched(self: TextTokenizer, texts: list[str], **options: Any) -> Any:
        sizes.append(sum(map(len, texts[:-1])))  # the last one may go beyond
        return encode(self, texts, **options)

    monkeypatch.setattr(TextTokenizer, "_encode", watched)
    monkeypatch.setattr("skgpt.pretrained.tokenizer._CHARACTERS_AT_ONCE", 3000)
    for method in (clf.predict_proba, clf.plan, clf.explain):
        clear_cache()
        sizes.clear()
        found = method(columns if method != clf.explain else columns[:20])
        assert len(sizes) > 5 and max(sizes) < 3000
        if method == clf.predict_proba:
            np.testing.assert_allclose(found, expected, atol=1e-6)


def test_encode__in_parts__says_how_far_it_is(
    tiny_llama: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load_pretrained(tiny_llama).tokenizer
    expected = tokenizer.encode(SENTENCES)
    monkeypatch.setattr("skgpt.pretrained.tokenizer._CHARACTERS_AT_ONCE", 100)
    seen: list[tuple[int, int]] = []
    assert tokenizer.encode(SENTENCES, lambda *at: seen.append(at)) == expected
    assert seen == [(2, 4), (4, 4)]
    assert tokenizer.encode([]) == []
