"""Tokenizers for the chat tests: small ones made here, and LLaMA's own where the recorded cases lie."""

import copy
import json
import os
import shutil
from pathlib import Path

import pytest

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: What color is the cat? ASSISTANT: Black USER: Is it asleep? ASSISTANT: No, it is awake.",
    "Answer the question using a single word or phrase. Human: Assistant: <image> </s> <s> <unk>",
    '一只猫 在 垫子上。 123 456.78% \n\t {"x": 1} [0.10, 0.20]',
] * 4
LLAMA_SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _llama_like(prepend_scheme, **wrap):
    """BPE over metaspace with byte fallback; `prepend_scheme` as in tokenizers' Metaspace, or "normalizer"."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=600, special_tokens=[*LLAMA_SPECIALS, *BYTES], show_progress=False),
    )
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in LLAMA_SPECIALS])
    if prepend_scheme == "normalizer":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>", **wrap)


def _gpt_like(bos):
    """Byte-level BPE, with specials that strip the whitespace after them, as some published ones do."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    specials = ["<|begin|>", "<|end|>", "</s>", "<unk>"]
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True) for token in specials])
    return _wrap(tokenizer, eos_token="<|end|>", pad_token="<|end|>", **({"bos_token": "<|begin|>"} if bos else {}))


def _unigram():
    """Unigram, whose vocabulary spells the special tokens out."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    characters = sorted(set("".join(CORPUS).replace(" ", "▁")))
    words = ["▁USER", "▁ASSISTANT", "▁the", "▁cat", "▁Black", "▁No"]
    vocabulary = [(token, 0.0) for token in [*LLAMA_SPECIALS, *BYTES]]
    vocabulary += [(token, -9.0) for token in characters] + [(token, -8.0) for token in words]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _wrap(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _wrap(tokenizer, **names):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


TINY = {
    "llama": lambda: _llama_like("first"),
    "llama_legacy": lambda: _llama_like("always"),
    "llama_prepend": lambda: _llama_like("normalizer"),
    "gpt": lambda: _gpt_like(bos=True),
    "gpt_without_bos": lambda: _gpt_like(bos=False),
    "unigram": _unigram,
}


def _with_markup(tokenizer, *, special=True, rstrip=False, without=()):
    """Add the special tokens of every template of the library, but for some."""
    from tokenizers import AddedToken

    from lmmblocks.chat import TEMPLATES

    tokens = dict.fromkeys(token for template in TEMPLATES.values() for token in getattr(template, "tokens", ()))
    added = [AddedToken(token, normalized=False, special=special, rstrip=rstrip) for token in tokens if token not in without]
    tokenizer.add_tokens(added, special_tokens=special)
    return tokenizer


FAMILIES = {
    "llama": lambda **options: _with_markup(_llama_like("first"), **options),
    "llama_legacy": lambda **options: _with_markup(_llama_like("always"), **options),
    "phi": lambda **options: _with_markup(_llama_like("normalizer"), rstrip=True, **options),
    "gpt": lambda **options: _with_markup(_gpt_like(bos=True), **options),
    "qwen": lambda **options: _with_markup(_gpt_like(bos=False), **options),
    "ordinary": lambda **options: _with_markup(_gpt_like(bos=False), special=False, **options),
    "unigram": lambda **options: _with_markup(_unigram(), **options),
}
"""Tokenizers with the tokens of all templates; "ordinary" doesn't call them special."""


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request):
    """Each of the tokenizers that know all markup."""
    return FAMILIES[request.param]()


@pytest.fixture(scope="session")
def gpt():
    """Where `[INST]` is text, as to most tokenizers."""
    return FAMILIES["gpt"](without=("[INST]", "[/INST]"))


@pytest.fixture(scope="session")
def make_family():
    """A fresh tokenizer of a kind."""
    return lambda name, **options: FAMILIES[name](**options)


@pytest.fixture(scope="session")
def phi():
    return FAMILIES["phi"]()


@pytest.fixture(scope="session")
def qwen():
    return FAMILIES["qwen"]()


@pytest.fixture(scope="session", params=list(TINY))
def tiny(request):
    """Each of the small tokenizers."""
    return TINY[request.param]()


@pytest.fixture(scope="session")
def tiny_llama():
    return TINY["llama"]()


@pytest.fixture(scope="session")
def llama_vocabulary():
    """The path of LLaMA's SentencePiece vocabulary, which isn't ours to hand on."""
    default = Path(__file__).resolve().parents[3] / "shared" / "golden"
    path = Path(os.environ.get("LMMBLOCKS_GOLDEN", default)) / "llama_tokenizer.model"
    if not path.is_file():
        pytest.skip(f"LLaMA's tokenizer is not redistributable and not at {path}: set LMMBLOCKS_GOLDEN to its folder")
    return path


@pytest.fixture(scope="session")
def llama_with_markup(llama):
    """LLaMA's tokenizer with the tokens of all templates."""
    return _with_markup(copy.deepcopy(llama[False]))


@pytest.fixture(scope="session")
def llama(llama_vocabulary, tmp_path_factory):
    """LLaMA's tokenizer by its `legacy` flag."""
    from lmmblocks.chat import load_tokenizer

    loaded = {}
    for legacy in (False, True):
        folder = tmp_path_factory.mktemp("llama")
        shutil.copy(llama_vocabulary, folder / "tokenizer.model")
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        config = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, **names}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        loaded[legacy] = load_tokenizer(folder)
    return loaded
