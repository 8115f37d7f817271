"""Text that comes token by token is the text of all tokens at once, for every kind of tokenizer."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmmblocks.chat.text_encoder import special_ids, structure_ids, text_encoder
from lmmblocks.generate.text import AnswerText, TokenText

CORPUS = [
    "the red cat sat on the mat. It isn't a blue dog, is it? 'Yes', I 've said. 123 http://a.b/c",
    "Hello world! A chat between a curious user and an artificial intelligence assistant. 猫在垫子上",
] * 40


def trained(tokenizer, trainer, **names):
    from transformers import PreTrainedTokenizerFast

    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def wordpiece(cleanup=True, **options):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    specials = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]", "pad_token": "[PAD]"}
    return trained(tokenizer, trainer, **names, **options)


def bpe_of_words():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=220, special_tokens=specials, end_of_word_suffix="</w>", show_progress=False)
    return trained(tokenizer, trainer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def byte_level(**options):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False)
    return trained(tokenizer, trainer, eos_token="<|endoftext|>", **options)


def metaspace(model, **options):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    specials = ["<unk>", "<s>", "</s>"]
    if model == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=specials, unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=specials, show_progress=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return trained(tokenizer, trainer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options)


def byte_fallback():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials[:3], show_progress=False)
    tokenizer.add_tokens(specials[3:])
    return trained(tokenizer, trainer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {
    "wordpiece": wordpiece,
    "wordpiece_tidied": lambda: wordpiece(cleanup=False, clean_up_tokenization_spaces=True),
    "bpe_of_words": bpe_of_words,
    "byte_level": byte_level,
    "byte_level_tidied": lambda: byte_level(clean_up_tokenization_spaces=True),
    "unigram": lambda: metaspace("unigram"),
    "unigram_tidied": lambda: metaspace("unigram", clean_up_tokenization_spaces=True),
    "metaspace_bpe": lambda: metaspace("bpe"),
    "byte_fallback": byte_fallback,
}


BYTES = byte_level()


def bytes_alone():
    """As LLaMA's: what has no piece is spelled in bytes."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", " "]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


OF_BYTES = {"byte_level": BYTES, "byte_fallback": bytes_alone()}


def byte_letters():
    """How byte-level tokenizers write each byte: GPT-2's ``bytes_to_unicode``."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + place) for place, byte in enumerate(hidden)}


@pytest.fixture(scope="module", params=list(KINDS))
def tokenizer(request):
    return KINDS[request.param]()


def own_text(tokenizer, ids):
    """What the tokenizer decodes; transformers 4 tidies one of BPE up too, which loses spaces by it."""
    is_bpe = type(tokenizer.backend_tokenizer.model).__name__ == "BPE"
    return tokenizer.decode(ids, **({"clean_up_tokenization_spaces": False} if is_bpe else {}))


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_comes_token_by_token_is_the_tokenizers_own_text_of_all_of_them(tokenizer, data):
    any_ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=40)
    sentences = st.text("the cat.,'!? n'tmsv\n\u732b\u5728", max_size=40).map(lambda text: tokenizer.encode(text, add_special_tokens=False))
    ids = [*data.draw(sentences), *data.draw(st.just([]) | any_ids)]
    said = [index for index in ids if index not in special_ids(tokenizer)]
    own = own_text(tokenizer, said)
    text = TokenText(tokenizer, special_ids(tokenizer))
    pieces = [text.push(index) for index in ids]
    shown = "".join(pieces) + text.finish()
    if "\ufffd" not in own:  # a byte may spoil a character that was complete without it, which was shown by then
        assert shown == text_encoder(tokenizer).decode(said)
        if own.lstrip(" ")[:1] not in set("'.?!,"):  # tidied up or not with the space in front, which is ours to keep
            assert shown.lstrip(" ") == own.lstrip(" ")


@pytest.mark.parametrize("kind", OF_BYTES)
@settings(max_examples=80, deadline=None)
@given(said=st.text("a \ufffd\u732b\N{CAT FACE}e\u0301\u200d\ufeff", max_size=60))
def test_the_replacement_character_is_a_character_like_others_where_a_text_has_it(kind, said):
    """It isn't waited with as with half of another, however many there are."""
    tokenizer = OF_BYTES[kind]
    text, ids = TokenText(tokenizer), text_encoder(tokenizer).encode(said)
    pieces = [text.push(index) for index in ids]
    assert "".join(pieces) == said and text.finish() == ""


@settings(max_examples=300, deadline=None)
@given(said=st.lists(st.sampled_from(b"a\xc3\xa9\xe7\x8c\xab\xf0\x9f\xef\xbf\xbd\xff"), max_size=60))
def test_bytes_that_are_no_text_are_shown_as_all_of_them_together(said):
    tokenizer = BYTES
    letters = byte_letters()
    ids = [tokenizer.convert_tokens_to_ids(letters[byte]) for byte in said]
    text = TokenText(tokenizer)
    assert "".join(map(text.push, ids)) + text.finish() == bytes(said).decode("utf-8", errors="replace") == tokenizer.decode(ids)


@pytest.mark.parametrize("sentence", ["the red cat sat on the mat", "It isn't a blue dog, is it? 'Yes', I 've said.", "it? n't", "a ' ' ' s  ' t"])
def test_an_answer_is_shown_as_the_tokenizer_writes_it(tokenizer, sentence):
    ids = tokenizer.encode(sentence, add_special_tokens=False)
    answer = AnswerText(tokenizer, ())
    shown = "".join(map(answer.push, ids)) + answer.finish()
    assert shown == own_text(tokenizer, ids).removeprefix(" ")


def test_the_cost_of_a_token_does_not_grow_with_the_text(tokenizer, monkeypatch):
    text, longest = TokenText(tokenizer), 0
    decode = text._decode

    def watched(ids):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids)

    monkeypatch.setattr(text, "_decode", watched)
    for index in [*range(len(tokenizer)), *[200] * 100]:
        text.push(index)
    assert longest <= 40


@pytest.mark.parametrize("special", [False, True])
def test_a_token_that_was_added_is_shown_and_those_of_the_tokenizer_are_not(special):
    tokenizer = byte_level()
    tokenizer.add_tokens(["[SEG]"], special_tokens=special)
    ids = [*tokenizer.encode("the cat"), tokenizer.convert_tokens_to_ids("[SEG]"), tokenizer.eos_token_id]
    answer = AnswerText(tokenizer, ())
    assert "".join(map(answer.push, ids)) + answer.finish() == "the cat[SEG]"
    assert structure_ids(tokenizer) == {tokenizer.eos_token_id}
