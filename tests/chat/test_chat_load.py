import json

import pytest

from lmmblocks.chat import load_tokenizer
from lmmblocks.spec import LmmError

TEXTS = ["a  is", "   b    c", "x" + " " * 40 + "y", "\n\n  def f():\n        return  1", "猫  猫", " "]


def test_runs_of_spaces_are_cut_as_sentencepiece_cuts_them(llama_vocabulary, llama):
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(llama_vocabulary))
    for text in TEXTS:
        text = f"a{text}"  # both put a space before a letter, only the original before a space
        assert llama[True](text, add_special_tokens=False).input_ids == original.encode(text)


def test_the_order_survives_saving(llama, tmp_path):
    llama[False].save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert [again(text).input_ids for text in TEXTS] == [llama[False](text).input_ids for text in TEXTS]


def test_a_tokenizer_json_is_taken_as_it_is(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert json.loads(again.backend_tokenizer.to_str())["model"] == json.loads(tiny.backend_tokenizer.to_str())["model"]
    assert [again(text).input_ids for text in TEXTS] == [tiny(text).input_ids for text in TEXTS]


def test_a_folder_without_a_tokenizer_is_explained(tmp_path):
    with pytest.raises(LmmError, match="holds no tokenizer: expected tokenizer.json or"):
        load_tokenizer(tmp_path)


def test_a_broken_file_is_explained(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(LmmError, match=f"{tmp_path}/tokenizer.json is not JSON: line 1, column 20"):
        load_tokenizer(tmp_path)
