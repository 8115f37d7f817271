"""A ``qwen.tiktoken`` converted, against tiktoken itself with the original's pattern and special tokens, on random text and random vocabularies."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lmmblocks.chat import load_tokenizer, write_tokenizer
from lmmblocks.chat.qwen_tokenizer import write_vocabulary
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.chat.tiktoken_convert import bytes_of, letters_of, tokenizer_spec
from lmmblocks.spec import LmmError

sys.path.insert(0, str(Path(__file__).parents[1]))
from qwen_vocabulary import CORPUS, ROLES, TAGS, learned, original, write_tokenizer_files

SAID, IMAGES = TAGS[:6], TAGS[6:]
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=("Cs", "Cn"))),
    st.text(st.sampled_from(" \n\r\tab'sLLſ12一猫é\u0301ñ.?!<>|/\u0338")),
    st.lists(st.sampled_from([*CORPUS.split(), *TAGS, *ROLES, " ", "\n", "  ", "\r\n", "don't", "I'LL", "\u0338"])).map("".join),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_tokenizer_files(tmp_path_factory.mktemp("qwen"))
    (made / "config.json").write_text(json.dumps({"model_type": "qwen", "visual": {}}))
    return made


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


@given(text=TEXTS)
@settings(max_examples=500, deadline=None)
def test_ids_equal_those_of_tiktoken_on_any_text(tokenizer, text):
    """The original brings a text to NFC; its chat then reads the tokens of references and boxes in it, ours those that are no image's."""
    theirs, normal = original(), unicodedata.normalize("NFC", text)
    whole = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if all(mark not in text for mark in "\u0338\u0301"):  # NFC may join one to a token's end; the library looks for tokens before that
        assert whole.encode(text).ids == theirs.encode(normal, allowed_special="all")
    encoder = text_encoder(tokenizer)
    assert list(encoder.encode(text)) == theirs.encode(normal, allowed_special=set(SAID), disallowed_special=())
    assert encoder.decode(theirs.encode(normal, disallowed_special=())) == normal


PIECES = r"\p{L}+|\P{L}+"
WORDS = st.text("ab", min_size=1, max_size=40)


@given(corpus=st.lists(WORDS, min_size=1, max_size=12).map(" ".join), merges=st.integers(1, 60), texts=st.lists(WORDS, min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_vocabulary_cuts_as_tiktoken_does(corpus, merges, texts):
    """Of two letters, so that many tokens begin and end alike and neighbours compete."""
    ranks = learned(corpus, merges)
    theirs = tiktoken.Encoding("small", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_str(json.dumps(tokenizer_spec(ranks, pattern=PIECES, normalizer=None, added=[])))
    for text in (*texts, " ".join(texts)):
        assert ours.encode(text).ids == theirs.encode(text), (text, ranks)


def test_a_piece_with_a_rank_is_one_token_also_where_no_merges_lead_to_it():
    ranks = {**{bytes([byte]): byte for byte in range(256)}, b"abc": 256}
    theirs = tiktoken.Encoding("small", pat_str=PIECES, mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_str(json.dumps(tokenizer_spec(ranks, pattern=PIECES, normalizer=None, added=[])))
    for text in ("abc", "abcd", "abc abc"):
        assert ours.encode(text).ids == theirs.encode(text)
    assert ours.encode("abc").ids == [256]


def test_every_byte_has_a_letter_of_its_own():
    from tokenizers.pre_tokenizers import ByteLevel

    assert {letters_of(bytes([byte])) for byte in range(256)} == set(ByteLevel.alphabet())
    assert bytes_of(letters_of(bytes(range(256)))) == bytes(range(256))


def test_special_tokens_follow_the_vocabulary_in_the_order_of_the_original(tokenizer):
    theirs, vocabulary = original(), tokenizer.get_vocab()
    expected = {token: theirs.encode_single_token(token) for token in theirs.special_tokens_set}
    assert {token: vocabulary[token] for token in expected} == expected
    assert len(tokenizer) == len(vocabulary) == theirs.n_vocab
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)
    assert tokenizer.model_max_length == 8192


def test_texts_become_tags_of_references_but_never_images_or_roles(tokenizer):
    encoder = text_encoder(tokenizer)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*TAGS, *ROLES)}
    assert all(encoder.encode(token) == (ids[token],) for token in SAID)
    assert all(ids[token] not in encoder.encode(token) for token in (*IMAGES, *ROLES))


def test_a_qwen_without_images_has_no_tags(folder, tmp_path):
    write_tokenizer_files(tmp_path)
    with pytest.raises(LmmError, match="holds qwen.tiktoken and no config.json, which says whether <img> and <box> are tokens"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    plain = load_tokenizer(tmp_path)
    assert len(plain) == original(tags=()).n_vocab and "<img>" not in plain.get_vocab()


def test_written_and_read_again_it_is_the_same(tokenizer, folder, tmp_path):
    write_vocabulary(tokenizer, tmp_path)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == (folder / "qwen.tiktoken").read_bytes()
    write_tokenizer(tokenizer, tmp_path / "ours")
    again = load_tokenizer(tmp_path / "ours")
    assert again.get_vocab() == tokenizer.get_vocab() and not (tmp_path / "ours" / "qwen.tiktoken").exists()
    assert all(text_encoder(again).encode(text) == text_encoder(tokenizer).encode(text) for text in (CORPUS, "".join(TAGS), "e\u0301"))
    write_vocabulary(again, tmp_path)
    assert (tmp_path / "qwen.tiktoken").read_bytes() == (folder / "qwen.tiktoken").read_bytes()


def test_a_tokenizer_of_another_kind_or_with_more_tokens_is_not_written(folder, tiny_tokenizer, tmp_path):
    grown = load_tokenizer(folder)
    grown.add_tokens(["[SEG]"])
    for other in (tiny_tokenizer, grown):
        with pytest.raises(LmmError, match="is not that of Qwen-VL, which qwen.tiktoken can say"):
            write_vocabulary(other, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, says",
    [
        (b"IQ== 0\nIg== x\n", "line 2: expected a token in base64 and its rank, found b'Ig== x'"),
        (b"I!== 0\n", "line 1: expected a token in base64"),
        (b"IQ== 0 1\n", "line 1: expected a token in base64"),
        (b"IQ== 0\nIg== 2\n", "has 2 tokens, expected their ranks to be 0 to 1, each once"),
        (b"IQ== 0\nIg== 1\n", "has no token for 254 of the 256 bytes: 0x00, "),
    ],
)
def test_a_damaged_vocabulary_is_refused(content, says, tmp_path):
    (tmp_path / "qwen.tiktoken").write_bytes(content)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(LmmError, match=says):
        load_tokenizer(tmp_path)
