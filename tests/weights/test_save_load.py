"""A saved model is whole, self-describing, and the same when it comes back."""

import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.lmm import LMM
from lmmblocks.spec import LmmError
from lmmblocks.weights import save
from lmmblocks.weights.files.maps import FILES_5, HUB, RUNTIME_4_52, RUNTIME_5


class Doubling(torch.nn.Module):
    """A projector with a buffer that no file holds."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = torch.nn.Linear(in_dim, out_dim)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def out_grid(self, grid):
        return grid

    def forward(self, features):
        return self.linear(features.patches) * self.scale


class WithoutFields:
    name, stop = "mine", ()

    def render(self, messages, *, add_generation_prompt=False):
        return []


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("format", ["hf", "native"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_bitwise_with_all_its_settings(make_model, tmp_path, format, tied):
    model = make_model(tied=tied, template="llava_v1")
    model.encoder.preprocess = replace(model.encoder.preprocess, fit="crop", mean=(0.5, 0.4, 0.3))
    model.tokenize_mode, model.max_length = "llava15", 50
    model.save(tmp_path / "out", format=format)
    again = lb.load(tmp_path / "out")
    assert same(model, again)
    assert (again.decoder.lm_head.weight is again.decoder.model.embed_tokens.weight) == tied
    assert again.config.encoder == model.config.encoder
    assert again.config.decoder == model.config.decoder
    assert again.encoder.preprocess == model.encoder.preprocess
    assert (again.template, again.tokenize_mode, again.max_length) == (model.template, "llava15", 50)
    assert again.tokenizer.get_vocab() == make_model().tokenizer.get_vocab() | image_entry(again, format)
    assert all(p.requires_grad == q.requires_grad for p, q in zip(model.parameters(), again.parameters()))
    assert not again.training


def test_an_attention_that_was_set_after_building_is_saved(make_model, tmp_path):
    model = make_model()
    model.attention = "images"
    assert lb.load(model.save(tmp_path / "out", format="native")).attention == "images"
    with pytest.raises(LmmError, match="can't say that attention is 'images'"):
        model.save(tmp_path / "hf")


def image_entry(model, format):
    """A spare row of the table (20 rows, fewer words) becomes the image token of the hf format."""
    words = len(model.tokenizer) - (format == "hf")
    return {"<image>": words} if format == "hf" else {}


def test_saving_twice_writes_the_same_files(make_model, tmp_path):
    make_model(vocab=len(make_model().tokenizer)).save(tmp_path / "one")
    lb.load(tmp_path / "one").save(tmp_path / "two")
    names = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*") if path.is_file())
    for name in names:
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        if name.name == "special_tokens_map.json":  # transformers 4 writes a token as its text, and as its fields once it was read
            assert special_texts(one) == special_texts(two)
        elif name.name != "tokenizer_config.json":
            assert one.read_bytes() == two.read_bytes(), name


def special_texts(file):
    said = json.loads(file.read_text())
    return {key: token["content"] if isinstance(token, dict) else token for key, token in said.items()}


def test_the_image_token_is_the_tokenizers_own_else_a_spare_row_else_a_new_row(make_model, tmp_path):
    words = len(make_model().tokenizer)
    cases = {"own": (make_model(image=True), words, 20), "spare": (make_model(), words, 20)}
    cases["new"] = (make_model(vocab=words), words, words + 1)
    cases["no tokenizer"] = (make_model(tokenizer=False), 20, 21)
    for name, (model, image_token, rows) in cases.items():
        before = dict(model.tokenizer.get_vocab()) if model.tokenizer else None
        model.save(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["image_token_index"], config["text_config"]["vocab_size"]) == (image_token, rows), name
        table = load_file(tmp_path / name / "model.safetensors")["language_model.lm_head.weight"]
        own = model.decoder.lm_head.weight
        assert torch.equal(table[: len(own)], own)
        torch.testing.assert_close(table[len(own) :], own.mean(0, keepdim=True).expand(rows - len(own), -1))
        assert (dict(model.tokenizer.get_vocab()) if model.tokenizer else None) == before
        again = lb.load(tmp_path / name)
        assert same(model, again)
        assert (again.tokenizer is None) == (model.tokenizer is None)


@pytest.mark.parametrize("layout", [HUB, FILES_5, RUNTIME_4_52, RUNTIME_5], ids=lambda layout: layout.name)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_every_generation_of_names_is_read_without_our_config(make_model, tmp_path, layout, tied, kind):
    model = make_model(tied=tied, image=True)
    model.save(tmp_path)
    (tmp_path / "lmmblocks.json").unlink()
    tensors = load_file(tmp_path / "model.safetensors")
    assert ("language_model.lm_head.weight" in tensors) != tied
    renamed = {layout.to_file(name): value for name, value in tensors.items()}
    renamed["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(5)
    (tmp_path / "model.safetensors").unlink()
    if kind == "bin":
        torch.save(renamed, tmp_path / "pytorch_model.bin")
    else:
        save_file(renamed, tmp_path / "model.safetensors")
    again = lb.load(tmp_path)
    assert same(model, again)
    assert (again.template.name, again.tokenize_mode) == (model.template.name, model.tokenize_mode), "the chat template's file says so"
    assert again.encoder.preprocess == model.encoder.preprocess


def test_sharded_models_come_back(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "out", shard_bytes=8000)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert same(model, lb.load(tmp_path / "out"))


def test_dtype_of_saving_and_loading(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "half", dtype=torch.float16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["torch_dtype"] == "float16"
    half, wide = lb.load(tmp_path / "half"), lb.load(tmp_path / "half", dtype=torch.float32)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for (name, a), b in zip(model.named_parameters(), wide.parameters()):
        assert torch.equal(a.half().float(), b), name


def test_a_projector_of_the_users_own_is_saved_natively_with_its_computed_buffers(make_model, tmp_path, monkeypatch):
    from lmmblocks import registry

    monkeypatch.setitem(registry._REGISTERED["projector"], "doubling", Doubling)
    model = make_model(projector="doubling")
    model.save(tmp_path / "out", format="native")
    again = lb.load(tmp_path / "out")
    assert same(model, again)
    assert torch.equal(again.projector.scale, torch.tensor([2.0]))
    with pytest.raises(LmmError, match="no place for projector 'Doubling' .expected 'MLP'.: save with format='native'"):
        model.save(tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_the_hf_format_takes_two_layers_only(make_model, tmp_path):
    from lmmblocks.config import Block

    model = make_model(projector=Block("mlp", {"depth": 3}))
    with pytest.raises(LmmError, match="'MLP' with 3 layers .expected 2"):
        model.save(tmp_path / "out")
    model.save(tmp_path / "out", format="native")
    assert same(model, lb.load(tmp_path / "out"))


def test_an_unknown_format_gets_the_closest_one(make_model, tmp_path):
    with pytest.raises(LmmError, match="unknown format 'natve'; did you mean 'native'.; known: hf, llava, qwen_vl, native"):
        make_model().save(tmp_path / "out", format="natve")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dtype", ["float16", torch.int8])
def test_a_dtype_that_is_none_is_refused(saved, tmp_path, dtype):
    model, folder = saved
    with pytest.raises(LmmError, match="expected a floating-point torch dtype"):
        model.save(tmp_path / "out", dtype=dtype)
    with pytest.raises(LmmError, match="expected a floating-point torch dtype"):
        lb.load(folder, dtype=dtype)


def test_a_folder_with_other_things_in_it_is_never_replaced(saved):
    model, folder = saved
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(LmmError, match="holds more than a model, which saving would delete: thesis.tex"):
        model.save(folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    with pytest.raises(LmmError, match="is a file, expected a folder"):
        model.save(folder / "thesis.tex")


def test_an_older_model_is_replaced_whole(make_model, tmp_path):
    make_model().save(tmp_path / "out", shard_bytes=8000)
    newer = make_model(seed=1)
    newer.save(tmp_path / "out", format="native")
    assert same(newer, lb.load(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("model-*")) and not (tmp_path / "out" / "config.json").exists()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("format", ["hf", "native", "llava"])
def test_save_returns_the_folder_that_it_wrote(make_model, tmp_path, monkeypatch, format):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert make_model().save("~/out", format=format) == tmp_path / "out"
    assert make_model().save(os.fspath(tmp_path / "again"), format=format) == tmp_path / "again"
    assert same(lb.load(tmp_path / "out"), lb.load(tmp_path / "again"))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), RuntimeError("any")])
def test_an_interrupted_save_leaves_the_older_model_and_nothing_else(saved, make_model, monkeypatch, error):
    import safetensors.torch

    model, folder = saved

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    expected = (LmmError, "can't write the model to .*No space left") if isinstance(error, OSError) else (type(error), None)
    with pytest.raises(expected[0], match=expected[1]):
        make_model(seed=1).save(folder)
    assert os.listdir(folder.parent) == [folder.name]
    assert same(model, lb.load(folder))


def test_a_model_without_a_config_or_with_a_template_that_cannot_be_written_down_is_refused(make_model, tmp_path):
    model = make_model()
    bare = LMM(model.encoder, model.projector, model.decoder)
    with pytest.raises(LmmError, match="composed without a config.*config=LMMConfig"):
        save(bare, tmp_path / "out")
    model.template = WithoutFields()
    with pytest.raises(LmmError, match="template 'mine' is not one of the library's .* is no dataclass"):
        save(model, tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_folders_that_are_no_model_are_refused_with_what_was_expected(saved, tmp_path):
    _, folder = saved
    (tmp_path / "empty").mkdir()
    with pytest.raises(LmmError, match="is no model folder: it holds neither lmmblocks.json nor config.json"):
        lb.load(tmp_path / "empty")
    (folder / "lmmblocks.json").write_text('{"encoder": {"type": "clip"}, "decodr": {}}')
    with pytest.raises(LmmError, match="lmmblocks.json: .*unknown keys 'decodr'; did you mean 'decoder'"):
        lb.load(folder)
    (folder / "lmmblocks.json").write_text("{")
    with pytest.raises(LmmError, match="lmmblocks.json: .*not JSON: line 1"):
        lb.load(folder)


def test_weights_of_another_model_are_refused_with_a_list(saved, make_model, tmp_path):
    _, folder = saved
    config = json.loads((folder / "lmmblocks.json").read_text())
    config["decoder"]["ffn_dim"] = 40
    config["decoder"]["layers"] = 3
    (folder / "lmmblocks.json").write_text(json.dumps(config))
    with pytest.raises(LmmError) as caught:
        lb.load(folder)
    assert "9 missing: language_model.model.layers.2." in str(caught.value)
    assert "6 of another shape: language_model.model.layers.0.mlp" in str(caught.value)
    assert "is (32, 24), expected (40, 24)" in str(caught.value)


def test_a_decoder_alone_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(LmmError, match="model_type 'llama', expected one of 'llava', 'llava_next', .*a language model alone is taken with build"):
        lb.load(tmp_path)


def test_built_from_saved_parts_equals_the_parts(saved):
    """``build`` takes encoder and decoder out of a saved model's folder."""
    model, folder = saved
    built = build(model.config, encoder=str(folder), decoder=str(folder))
    assert same(built.encoder, model.encoder)
    assert torch.equal(built.decoder.head_weight[:20], model.decoder.head_weight)
