"""A tokenizer is written so that every supported transformers reads the same one."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lmmblocks.chat import load_tokenizer, write_tokenizer

# Facts about transformers 4.57, read off its sources (tokenization_utils_base.py, models/auto/tokenization_auto.py):
# AutoTokenizer refuses a `tokenizer_class` it has no class for; `extra_special_tokens` must have .keys(); a list of further special tokens is
# `additional_special_tokens`; a PreTrainedTokenizerFast without `model_input_names` returns token_type_ids, which LLaMA's forward refuses.
CLASSES_OF_4_57 = {"PreTrainedTokenizerFast", "LlamaTokenizerFast", "LlamaTokenizer", "GPT2TokenizerFast", "Qwen2TokenizerFast", "BertTokenizerFast"}
TEXTS = ("A cat.", " two  blanks   three", "<turn> yes</s>", "naïve\n\nlines 北京 🙂")


@pytest.fixture
def with_specials(tiny_tokenizer, tmp_path):
    """The same tokenizer with special tokens beyond the named ones."""
    tiny_tokenizer.save_pretrained(tmp_path / "plain")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "plain")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "<end>"]})
    return tokenizer


def test_config_holds_only_what_transformers_4_57_knows(with_specials, tmp_path):
    write_tokenizer(with_specials, tmp_path / "written")
    values = json.loads((tmp_path / "written" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert values["tokenizer_class"] in CLASSES_OF_4_57
    assert isinstance(values.get("extra_special_tokens", {}), dict)
    assert values["additional_special_tokens"] == ["<turn>", "<end>"]
    assert values["model_input_names"] == list(with_specials.model_input_names)
    assert isinstance(values["clean_up_tokenization_spaces"], bool)


def test_nothing_tells_where_or_how_the_tokenizer_was_read(with_specials, tmp_path):
    write_tokenizer(with_specials, tmp_path / "once")
    write_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "once"), tmp_path / "twice")
    once, twice = (json.loads((tmp_path / name / "tokenizer_config.json").read_text(encoding="utf-8")) for name in ("once", "twice"))
    by_version = ("added_tokens_decoder", "extra_special_tokens")  # which 4 writes, the latter empty
    assert {key: once[key] for key in once if key not in by_version} == {key: twice[key] for key in twice if key not in by_version}
    assert str(tmp_path) not in json.dumps(twice)


@pytest.mark.parametrize("text", TEXTS)
def test_read_again_it_gives_the_same_ids_and_special_tokens(with_specials, tmp_path, text):
    write_tokenizer(with_specials, tmp_path / "written")
    again = AutoTokenizer.from_pretrained(tmp_path / "written")
    assert again(text).input_ids == with_specials(text).input_ids
    assert set(again.all_special_tokens) == set(with_specials.all_special_tokens) >= {"<turn>", "<end>"}
    assert sorted(again("a")) == sorted(with_specials("a"))


def test_class_that_cuts_text_anew_when_read_is_not_named(tmp_path):
    """transformers 5 builds a LlamaTokenizer from vocabulary and merges; ours has a pre-tokenizer that it would lose."""
    shipped = Path(__file__).parents[2] / "examples" / "llava15" / "weights" / "language"
    tokenizer = AutoTokenizer.from_pretrained(shipped)
    write_tokenizer(tokenizer, tmp_path / "written")
    (tmp_path / "written" / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    again = AutoTokenizer.from_pretrained(tmp_path / "written")
    assert again("[0.12, 0.5] red,blue").input_ids == tokenizer("[0.12, 0.5] red,blue").input_ids


@pytest.mark.parametrize("named", ["TokenizersBackend", "PreTrainedTokenizerFast", "LlamaTokenizerFast", "NoSuchTokenizer"])
def test_special_tokens_without_a_name_are_read_as_either_transformers_writes_them(with_specials, tmp_path, named):
    """5 writes them as a list under a key that must be a dict to 4, beside classes that 4 doesn't have or that 5 makes anew."""
    for key in ("additional_special_tokens", "extra_special_tokens"):
        folder = tmp_path / key
        with_specials.save_pretrained(folder)
        path = folder / "tokenizer_config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        for written in ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"):
            values.pop(written, None)
        path.write_text(json.dumps({**values, key: ["<turn>", "<end>"], "tokenizer_class": named}), encoding="utf-8")
        (folder / "special_tokens_map.json").unlink(missing_ok=True)  # which 4 writes besides
        again = load_tokenizer(folder)
        assert set(again.all_special_tokens) == set(with_specials.all_special_tokens) >= {"<turn>", "<end>"}, key
        found, expected = ([one(text, add_special_tokens=False).input_ids for text in TEXTS] for one in (again, with_specials))
        assert found == expected, key
        write_tokenizer(again, folder / "again")
        kept = json.loads((folder / "again" / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert kept["additional_special_tokens"] == ["<turn>", "<end>"], key
