"""Whatever ends an answer here ends it for who reads the files: every token and every string, in every layout that has a place for them."""

import json
import warnings
from dataclasses import replace

import pytest

from lmmblocks.chat import TEMPLATES, Template, answer_ends, missing_tokens, stop_texts

TOKENS = sorted({token for template in TEMPLATES.values() for token in getattr(template, "tokens", ())})


@pytest.fixture(scope="module")
def model(make_model, make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS})
    made = make_model(vocab=len(tokenizer) + 3)
    made.tokenizer = tokenizer
    return made


def written(model, folder, format):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.save(folder, format=format)
    texts = [str(warning.message) for warning in told if "stop_strings" in str(warning.message)]
    return *(json.loads((folder / f"{name}.json").read_text()) for name in ("config", "generation_config")), texts


def listed(value):
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("format", ["hf", "llava"])
@pytest.mark.parametrize("name", list(TEMPLATES))
def test_every_end_of_every_template_is_in_the_files(model, tmp_path, name, format):
    model.template = TEMPLATES[name]
    config, generation, told = written(model, tmp_path / "llava", format)
    tokenizer = model.tokenizer
    ends = {tokenizer.eos_token_id} | {tokenizer.convert_tokens_to_ids(text) for text in model.template.stop if text in TOKENS}
    strings = [text for text in model.template.stop if text not in TOKENS]
    assert set(listed(generation["eos_token_id"])) == ends == answer_ends(model.template, tokenizer)
    assert listed(generation["eos_token_id"])[0] == tokenizer.eos_token_id
    where = config if format == "llava" else config["text_config"]
    assert where["eos_token_id"] == generation["eos_token_id"]
    assert generation.get("stop_strings", []) == strings == list(stop_texts(model.template, tokenizer))
    assert len(told) == bool(strings) and all("stop=" in text for text in told)
    assert generation["do_sample"] is False


def test_a_stop_string_that_is_a_special_token_is_its_id(model, tmp_path):
    """Whether or not the template says that it writes it."""
    model.template = Template("mine", stop=("<|eot_id|>", "###"))
    generation = written(model, tmp_path / "m", "hf")[1]
    assert generation["eos_token_id"] == sorted([2, model.tokenizer.convert_tokens_to_ids("<|eot_id|>")])
    assert generation["stop_strings"] == ["###"]


def test_an_ordinary_token_is_an_end_only_where_the_template_writes_it(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"])
    chatml, other = TEMPLATES["chatml"], Template("other", stop=("<|im_end|>",))
    assert not missing_tokens(chatml, tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert answer_ends(chatml, tokenizer) == {2, end} and stop_texts(chatml, tokenizer) == ()
    assert answer_ends(other, tokenizer) == {2} and stop_texts(other, tokenizer) == ("<|im_end|>",)
    assert answer_ends(replace(other, stop=()), tokenizer, ["</s>", "x"]) == {2} and stop_texts(other, tokenizer, ["x"]) == ("<|im_end|>", "x")
