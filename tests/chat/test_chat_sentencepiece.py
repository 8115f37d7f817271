"""A tokenizer.model is cut as SentencePiece cuts it: whatever kind it is, whichever way it comes in, and after saving."""

import json
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lmmblocks as lb
from lmmblocks.chat import encode_chat, load_tokenizer
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.data.sample_reader import sample_reader
from lmmblocks.projectors.instruction_tokens import InstructionTokens
from lmmblocks.spec import LmmError, Sample

CORPUS = [
    "the red cat sat on the mat. It isn't a blue dog, is it? 123 http://a.b/c",
    "Hello world! A chat between a curious user and an artificial intelligence assistant.",
    "USER: ASSISTANT: The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "猫在垫子上。 café ﬁne Ａ",
] * 20

_PLAIN = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
_BPE = {"model_type": "bpe", "byte_fallback": True, **_PLAIN}
KINDS = {
    "bpe": {**_BPE, "vocab_size": 500},
    "like_llama": {**_BPE, "vocab_size": 500},
    "bpe_nfkc": {"model_type": "bpe", "vocab_size": 120},
    "bpe_user_defined": {**_BPE, "vocab_size": 500, "user_defined_symbols": ["<sep>", "▁▁▁"]},
    "bpe_without_prefix": {**_BPE, "vocab_size": 400, "add_dummy_prefix": False},
    "unigram": {"model_type": "unigram", "vocab_size": 80},
    "unigram_bytes": {"model_type": "unigram", "vocab_size": 330, "byte_fallback": True, "remove_extra_whitespaces": False},
    "unigram_user_defined": {"model_type": "unigram", "vocab_size": 80, "user_defined_symbols": ["<sep>"]},
    "unigram_nfkc": {"model_type": "unigram", "vocab_size": 80, "normalization_rule_name": "nfkc"},
    "unigram_casefolded": {"model_type": "unigram", "vocab_size": 70, "normalization_rule_name": "nmt_nfkc_cf"},
}
NASTY = [
    "  ",
    "     ",
    " ",
    "\n",
    "\t",
    "\n    ",
    "\r\n",
    "</s>",
    "<s>",
    "<unk>",
    "<0x0A>",
    "<sep>",
    "猫",
    "\N{CAT FACE}",
    "ﬁ",
    "Ａ",
    "①",
    "e\u0301",
    "▁",
]
TEXTS = st.lists(st.sampled_from([*NASTY, "the", "red cat", "x", ".", "a"]) | st.characters(codec="utf-8"), max_size=12).map("".join)
CODE = "if x:\n    return  1\n\n  猫  \t</s> \N{CAT FACE}"


@pytest.fixture(scope="module", params=list(KINDS))
def model_file(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("spm"), request.param)


@pytest.fixture(scope="module")
def like_llama(tmp_path_factory):
    return train(tmp_path_factory.mktemp("spm"), "like_llama")


def train(folder, kind):
    """Train a model; the runs of spaces of "like_llama" have early ids and the lowest scores."""
    from sentencepiece import SentencePieceTrainer

    text, path = folder / "corpus.txt", folder / f"{kind}.model"
    text.write_text("\n".join(CORPUS), encoding="utf-8")
    SentencePieceTrainer.train(input=str(text), model_prefix=str(path.with_suffix("")), minloglevel=3, **KINDS[kind])
    if kind == "like_llama":
        add_runs_of_spaces(path)
    return path


def add_runs_of_spaces(path):
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    for length in (2, 4, 8, 5, 3):
        model.pieces.insert(259, model.SentencePiece(piece="▁" * length, score=-1e9))
    path.write_bytes(model.SerializeToString())


def folder_of(model_file, folder, tokenizer_class="LlamaTokenizer", **config):
    """Make a folder as LLaVA's own: the model and a config, nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model_file, folder / "tokenizer.model")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    values = {"tokenizer_class": tokenizer_class, **names, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def sentencepiece(model_file):
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_file=str(model_file))


def by_id(model_file, folder, legacy=False):
    """Return a tokenizer that another program made: its merges in the order of the ids."""
    tokenizer = load_tokenizer(folder_of(model_file, folder, legacy=legacy))
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    merges = sorted(map(tuple, model["merges"]), key=lambda merge: model["vocab"]["".join(merge)])
    backend.model = type(backend.model)(model["vocab"], merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    return tokenizer


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=TEXTS)
def test_any_text_has_the_ids_of_sentencepiece(model_file, tmp_path_factory, text):
    encoder, original = loaded(model_file, tmp_path_factory)
    text = f"{text}."  # a piece of a conversation keeps the space at its end, a document may lose it
    first = f" {text}" if encoder.prefix != "never" else text
    assert list(encoder.encode(first)) == original.encode(text)


_LOADED = {}


def loaded(model_file, tmp_path_factory):
    if model_file not in _LOADED:
        tokenizer = load_tokenizer(folder_of(model_file, tmp_path_factory.mktemp("folder")))
        _LOADED[model_file] = tokenizer, text_encoder(tokenizer), sentencepiece(model_file)
    return _LOADED[model_file][1:]


CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "T5Tokenizer", "GemmaTokenizer", "PreTrainedTokenizerFast", "NoSuchTokenizer"]


@pytest.mark.parametrize("named", CLASSES)
def test_the_file_is_believed_and_not_the_class_that_is_named(model_file, tmp_path, named):
    encoder = text_encoder(load_tokenizer(folder_of(model_file, tmp_path, named)))
    first = f" {CODE}" if encoder.prefix != "never" else CODE
    assert list(encoder.encode(first)) == sentencepiece(model_file).encode(CODE)


@pytest.mark.parametrize(("legacy", "prefix"), [(False, "first"), (True, "every"), (None, "every")])
def test_the_flag_legacy_is_followed_and_saved_and_files_without_it_are_older_than_it(like_llama, tmp_path, legacy, prefix):
    flag = {} if legacy is None else {"legacy": legacy}
    tokenizer = load_tokenizer(folder_of(like_llama, tmp_path / "a", **flag))
    tokenizer.save_pretrained(tmp_path / "b")
    assert [text_encoder(one).prefix for one in (tokenizer, load_tokenizer(tmp_path / "b"))] == [prefix, prefix]
    assert json.loads((tmp_path / "b" / "tokenizer_config.json").read_text())["legacy"] is (prefix == "every")


@pytest.mark.parametrize(("flags", "before", "after"), [({}, [1], []), ({"add_bos_token": False}, [], []), ({"add_eos_token": True}, [1], [2])])
def test_what_stands_around_a_document_follows_the_flags(like_llama, tmp_path, flags, before, after):
    tokenizer = load_tokenizer(folder_of(like_llama, tmp_path, legacy=False, **flags))
    assert tokenizer("the cat").input_ids == [*before, *sentencepiece(like_llama).encode("the cat"), *after]


def test_a_folder_without_a_config_has_the_tokens_of_its_model(like_llama, tmp_path):
    shutil.copyfile(like_llama, tmp_path / "tokenizer.model")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer("the cat").input_ids == [1, *sentencepiece(like_llama).encode("the cat")]


def test_merges_in_the_order_of_ids_are_mended_by_the_file_beside_them_and_told(like_llama, tmp_path):
    wrong = by_id(like_llama, tmp_path / "made")
    del wrong.vocab_file
    assert list(text_encoder(wrong).encode(f" {CODE}")) != sentencepiece(like_llama).encode(CODE)
    wrong.save_pretrained(tmp_path / "both")
    shutil.copyfile(like_llama, tmp_path / "both" / "tokenizer.model")
    with pytest.warns(UserWarning, match="merges in the order of the token ids, expected that of the scores of tokenizer.model"):
        mended = load_tokenizer(tmp_path / "both")
    assert list(text_encoder(mended).encode(f" {CODE}")) == sentencepiece(like_llama).encode(CODE)


def test_llamas_vocabulary_is_known_without_its_file(llama_vocabulary, tmp_path, recwarn):
    path = llama_vocabulary
    wrong = by_id(path, tmp_path / "made")
    wrong.save_pretrained(tmp_path / "alone")
    (tmp_path / "alone" / "tokenizer.model").unlink(missing_ok=True)
    with pytest.warns(UserWarning, match="expected that of the scores of LLaMA"):
        mended = load_tokenizer(tmp_path / "alone")
    assert list(text_encoder(mended).encode(f" {CODE}")) == sentencepiece(path).encode(CODE)


def test_a_tokenizer_object_with_its_merges_in_the_order_of_ids_is_refused(like_llama, tmp_path, make_tiny_model, tiny_config):
    wrong = by_id(like_llama, tmp_path)
    with pytest.raises(LmmError, match=r"merges in the order of the token ids.*give the folder or hub id \(tokenizer='...'\)"):
        text_encoder(wrong)
    with pytest.raises(LmmError, match="merges in the order of the token ids"):
        make_tiny_model(config=with_vocab(tiny_config, len(wrong)), tokenizer=wrong)


def with_vocab(config, vocab):
    from dataclasses import replace

    return replace(config, decoder=replace(config.decoder, vocab=vocab))


MESSAGES = [{"role": "user", "content": f"<image>\n{CODE}"}, {"role": "assistant", "content": CODE}]


def answer_of(tokenizer):
    tokens = encode_chat(MESSAGES, "vicuna_v1", tokenizer)
    return [label for label in tokens.labels if label >= 0]


@pytest.mark.parametrize("format", ["native", "hf", "llava"])
def test_every_way_into_a_model_and_out_again_keeps_the_ids(like_llama, tmp_path, tiny_config, colour_picture, format):
    original = sentencepiece(like_llama)
    expected = [*original.encode(CODE), 2]
    folder = folder_of(like_llama, tmp_path / "language", legacy=False)
    torch.manual_seed(0)
    model = lb.build(with_vocab(tiny_config, len(original) + 1), tokenizer=str(folder), template="vicuna_v1", weights="random")
    assert answer_of(model.tokenizer) == expected
    batch = lb.collate([Sample(MESSAGES, [colour_picture(0)])], model)
    assert [int(target) for target in batch.plan.targets if target >= 0] == expected
    model.save(tmp_path / format, format=format)
    again = lb.load(tmp_path / format)
    assert answer_of(again.tokenizer) == expected
    assert again.tokenizer.bos_token_id == 1 and again.tokenizer.eos_token_id == 2
    by_transformers = read_by_transformers(tmp_path / format)
    words = CODE.replace("</s>", "")  # in which it would see the token
    assert list(by_transformers(words, add_special_tokens=False).input_ids) == original.encode(words)


def read_by_transformers(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_counting_and_instructions_cut_as_training_does(like_llama, tmp_path):
    folder = folder_of(like_llama, tmp_path, legacy=False)
    original = sentencepiece(like_llama)
    tokens = encode_chat(MESSAGES, "vicuna_v1", load_tokenizer(folder))
    assert sample_reader(folder, template="vicuna_v1", image_rows=7)(Sample(MESSAGES, ["a.png"])).rows == len(tokens.ids) + 6
    words = CODE.replace("</s>", "")
    assert InstructionTokens(str(folder), len(original), 100)(words) == [1, *original.encode(words)]


def test_neither_sentencepiece_nor_protobuf_is_needed(like_llama, tmp_path, monkeypatch):
    import sys

    expected = sentencepiece(like_llama).encode(CODE)
    for name in ("sentencepiece", "google.protobuf"):
        monkeypatch.setitem(sys.modules, name, None)
    tokenizer = load_tokenizer(folder_of(like_llama, tmp_path, legacy=False))
    assert list(text_encoder(tokenizer).encode(f" {CODE}")) == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the tokenizer in {} can't be read"),
        (b"<html>", "{}/tokenizer.model is a web page"),
        (b"\x0a\x05abc", "the tokenizer in {} can't be read"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, words):
    (tmp_path / "tokenizer.model").write_bytes(content)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(LmmError, match=words.format(tmp_path)):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(("kind", "found"), [("word", "whole words"), ("char", "characters")])
def test_models_that_cannot_be_expressed_are_refused(tmp_path, kind, found):
    from sentencepiece import SentencePieceTrainer

    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS), encoding="utf-8")
    options = {"input": str(tmp_path / "corpus.txt"), "vocab_size": 45, "model_type": kind, "minloglevel": 3}
    SentencePieceTrainer.train(model_prefix=str(tmp_path / "m"), **options)
    with pytest.raises(LmmError, match=f"is one of {found}, expected Unigram or BPE"):
        load_tokenizer(folder_of(tmp_path / "m.model", tmp_path / "folder"))
