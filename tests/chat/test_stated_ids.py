"""Tokenizer files that contradict each other: other ids are refused with both, other ends told with both."""

import json
import warnings

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from lmmblocks.chat import load_tokenizer
from lmmblocks.spec import LmmError

WORDS = "<unk> <s> </s> <end> a b".split()


@pytest.fixture()
def folder(tmp_path):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>").save_pretrained(tmp_path)
    return tmp_path


def change(path, **values):
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.is_file() else {}), **values}))


def added(number, text):
    flags = dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
    return {str(number): {"content": text, "special": True, **flags}}


@pytest.mark.parametrize("place", ["added_tokens.json", "tokenizer_config.json"])
def test_a_token_added_by_one_file_has_the_id_that_the_file_says(folder, place):
    change(folder / place, **({"<new>": 6} if place == "added_tokens.json" else {"added_tokens_decoder": added(6, "<new>")}))
    if place == "added_tokens.json" and transformers.__version__.startswith("4."):  # which reads no such file beside a tokenizer.json
        with pytest.raises(LmmError, match="added_tokens.json says 6 for '<new>', the tokenizer doesn't have it"):
            load_tokenizer(folder)
        return
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.get_vocab()["<new>"], len(tokenizer)) == (6, 7)


def test_two_files_that_give_one_id_to_two_tokens_are_refused(folder):
    change(folder / "tokenizer_config.json", added_tokens_decoder=added(6, "<one>"))
    change(folder / "added_tokens.json", **{"<other>": 6})
    with pytest.raises(LmmError, match="disagree about the ids of 1 tokens: added_tokens.json says 6 for '<other>', the tokenizer doesn't have it"):
        load_tokenizer(folder)


def test_a_token_that_gets_another_id_than_its_file_says_is_refused(folder):
    made = json.loads((folder / "tokenizer.json").read_text())
    made["added_tokens"].append({"id": 6, **added(6, "<json>")["6"]})
    change(folder / "tokenizer.json", **made)
    change(folder / "tokenizer_config.json", added_tokens_decoder=added(6, "<config>"))
    with pytest.raises(LmmError, match="tokenizer_config.json says 6 for '<config>', the tokenizer says 7: use the files"):
        load_tokenizer(folder)


def test_two_names_for_the_end_of_a_text_are_told_with_the_one_that_counts(folder):
    change(folder / "special_tokens_map.json", eos_token={"content": "<end>"}, pad_token="<unk>")
    named = "two tokens as eos_token: '</s>' .tokenizer_config.json. and '<end>' .special_tokens_map.json.: '.*' counts"
    with pytest.warns(UserWarning, match=named) as said:
        tokenizer = load_tokenizer(folder)
    assert f"{tokenizer.eos_token!r} counts" in str(said[0].message)
    change(folder / "tokenizer_config.json", eos_token="<end>")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_tokenizer(folder).eos_token == "<end>"
