"""Tokens that are added have rows in table and head, in the config and in every file that is written; the others stay what they are."""

import copy
import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import lmmblocks as lb
from lmmblocks.compose.vocabulary import ids_needed
from lmmblocks.decoders.hf_config import HFDecoderConfig
from lmmblocks.spec import LmmError

NEW = ["<loc0>", "<loc1>", "<seg>"]
HF = {
    "tied gpt2": {"model_type": "gpt2", "n_embd": 24, "n_head": 2, "n_layer": 1, "n_positions": 64, "vocab_size": 20},
    "biased phi": {
        "model_type": "phi", "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 64, "vocab_size": 20,
    },
}  # fmt: skip


def decoder_rows(model):
    found = {"table": model.decoder.table, "head": model.decoder.head_weight, "bias": getattr(model.decoder, "head_bias", None)}
    return {name: value.detach().clone() for name, value in found.items() if value is not None}


def answer(model):
    return model.generate("what is <loc0> in <seg> ?", images=[Image.new("RGB", (9, 9), "red")], max_new_tokens=4)


def agree(model, rows):
    config = model.config.decoder
    assert config == model.decoder.config
    assert model.decoder.vocab == config.vocab == rows == len(model.decoder.table) == len(model.decoder.head_weight)
    assert ids_needed(model.tokenizer) <= rows


def of(make_model, kind):
    swaps = {"decoder": HFDecoderConfig(HF[kind])} if kind in HF else {"tied": kind == "tied"}
    words = make_model().tokenizer
    return make_model(vocab=len(words), **swaps) if kind not in HF else make_model(**swaps)


KINDS = ["tied", "untied", *HF]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("multiple_of", [1, 16])
def test_new_rows_are_the_mean_and_all_others_stay(make_model, kind, multiple_of):
    model = of(make_model, kind)
    before, words, vocab = decoder_rows(model), len(model.tokenizer), model.decoder.vocab
    new = model.grow_vocab(NEW, multiple_of=multiple_of)
    rows = -(-max(vocab, words + len(NEW)) // multiple_of) * multiple_of
    agree(model, rows)
    assert set(new) == {*range(words, words + len(NEW)), *range(vocab, rows)}
    assert [model.tokenizer.convert_tokens_to_ids(token) for token in NEW] == list(range(words, words + len(NEW)))
    for name, after in decoder_rows(model).items():
        kept = [row for row in range(vocab) if row not in new]
        assert torch.equal(after[kept], before[name][kept])
        torch.testing.assert_close(after[list(new)], before[name][:words].mean(0).expand_as(after[list(new)]))
    tied = model.decoder.table is model.decoder.head_weight
    assert tied == (kind in ("tied", "tied gpt2"))
    assert isinstance(answer(model), str)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_of_what_has_no_new_token_changes_by_the_new_logits_alone(make_model, kind):
    model = of(make_model, kind)
    hidden = torch.randn(5, 24)
    before = model.decoder.head(hidden)
    new = model.grow_vocab(NEW)
    after = model.decoder.head(hidden)
    kept = [row for row in range(before.shape[1]) if row not in new]
    torch.testing.assert_close(after[:, kept], before[:, kept])
    model.decoder.requires_grad_(True)
    after_loss = model.decoder.head(hidden).logsumexp(-1).sum()
    after_loss.backward()
    assert model.decoder.table.shape == (model.decoder.vocab, 24) and model.decoder.head_weight.grad is not None


@pytest.mark.parametrize("format", ["hf", "native", "llava"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_grown_model_comes_back_bitwise(make_model, tmp_path, kind, format):
    model = of(make_model, kind)
    model.grow_vocab(NEW, init="random")
    if kind in HF and format != "native":
        pytest.raises(LmmError, model.save, tmp_path / "m", format=format).match("no place for .*decoder '")
        return
    model.save(tmp_path / "m", format=format)
    again = lb.load(tmp_path / "m")
    agree(again, model.decoder.vocab)
    for name, value in decoder_rows(model).items():
        assert torch.equal(value, decoder_rows(again)[name])
    assert model.tokenizer.get_vocab().items() <= again.tokenizer.get_vocab().items()
    assert answer(again) == answer(model)


def test_transformers_reads_as_many_rows_as_the_config_says(make_model, tmp_path):
    from transformers import AutoTokenizer, LlavaForConditionalGeneration

    model = of(make_model, "untied")
    model.grow_vocab(NEW)
    model.save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    theirs = LlavaForConditionalGeneration.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    rows = theirs.get_input_embeddings().weight
    assert config["text_config"]["vocab_size"] == len(rows) >= len(tokenizer)
    assert torch.equal(rows[: model.decoder.vocab], model.decoder.table)
    assert [tokenizer.convert_tokens_to_ids(token) for token in NEW] == [model.tokenizer.convert_tokens_to_ids(token) for token in NEW]
    stored = load_file(tmp_path / "m" / "model.safetensors")["language_model.model.embed_tokens.weight"]
    assert len(stored) == len(rows)


@pytest.mark.parametrize("format", ["hf", "native", "llava"])
def test_tokens_added_behind_the_models_back_are_refused_with_the_call_that_helps(make_model, tmp_path, format):
    model = of(make_model, "untied")
    model.tokenizer.add_tokens(NEW)
    said = r"the tokenizer has \d+ ids, the decoder's table \d+ rows: .*model.grow_vocab\(model.tokenizer\)"
    with pytest.raises(LmmError, match=said):
        model.save(tmp_path / "m", format=format)
    assert not (tmp_path / "m").exists()
    with pytest.raises(LmmError, match=said):
        answer(model)
    model.grow_vocab(model.tokenizer)
    agree(model, len(model.tokenizer))
    model.save(tmp_path / "m", format=format)
    assert answer(lb.load(tmp_path / "m")) == answer(model)


@pytest.mark.parametrize("kind", KINDS)
def test_build_grows_for_a_tokenizer_with_more_ids(make_model, kind):
    model = of(make_model, kind)
    larger = copy.deepcopy(model.tokenizer)
    larger.add_tokens([f"<loc{number}>" for number in range(30)])
    with pytest.raises(LmmError, match=r"has a table of \d+ rows: use the decoder's own tokenizer, or .*build\(..., grow_vocab='mean'\)"):
        lb.build(model.config, tokenizer=larger, weights="random")
    grown = lb.build(model.config, tokenizer=larger, weights="random", grow_vocab="mean")
    agree(grown, len(larger))
    with pytest.raises(LmmError, match="grow_vocab='mean' needs a tokenizer"):
        lb.build(model.config, weights="random", grow_vocab="mean")


def test_mistakes_are_refused_and_change_nothing(make_model):
    model = of(make_model, "untied")
    before, words = decoder_rows(model), dict(model.tokenizer.get_vocab())
    other = make_model(image=True).tokenizer
    other.add_tokens(NEW)
    swapped = type(model.tokenizer)(tokenizer_object=copy.deepcopy(other.backend_tokenizer))
    swapped.backend_tokenizer.model = type(swapped.backend_tokenizer.model)({"b": 0, "<unk>": 1}, unk_token="<unk>")
    for call, match in (
        (lambda: model.grow_vocab(swapped), "isn't the decoder's own with more tokens: .* have other ids, such as"),
        (lambda: model.grow_vocab(NEW, init="meen"), "init='meen' is none of .*did you mean 'mean'"),
        (lambda: model.grow_vocab(NEW, multiple_of=0), "multiple_of=0: expected a whole number"),
        (lambda: model.grow_vocab([]), r"takes new tokens .*found \[\]"),
        (lambda: model.grow_vocab([3]), "takes new tokens .*found 3"),
        (lambda: model.grow_vocab(None), "takes new tokens .*found None"),
    ):
        with pytest.raises(LmmError, match=match):
            call()
        assert model.tokenizer.get_vocab() == words and all(torch.equal(value, before[name]) for name, value in decoder_rows(model).items())
    assert model.grow_vocab("<one>") == (len(words),)
