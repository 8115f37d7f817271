"""Files of one folder that say the same thing twice: what counts does so by a rule, and a disagreement is refused or told with both values."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmblocks as lb
from lmmblocks.encoders.siglip import SigLIPConfig
from lmmblocks.spec import LmmError
from lmmblocks.weights.inspect import inspect

CONFIG, PROCESSOR, IMAGES = "config.json", "processor_config.json", "preprocessor_config.json"
NORM = {"image_mean": [0.1, 0.2, 0.3]}


@pytest.fixture()
def theirs(make_model, tmp_path):
    """A folder of transformers' LLaVA, without our own config."""

    def make(name="m", **swaps):
        folder = make_model(**swaps).save(tmp_path / name)
        (folder / "lmmblocks.json").unlink()
        return folder

    return make


def change(path, *drop, **values):
    read = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in {**read, **values}.items() if key not in drop}))


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(map(torch.equal, a.values(), b.values())) and one.config == other.config


def test_files_that_agree_are_read_without_a_word(theirs):
    folder = theirs()
    change(folder / PROCESSOR, image_processor=json.loads((folder / IMAGES).read_text()), image_token="<image>")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        lb.load(folder)
    assert "files that disagree" not in inspect(folder).settings


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"patch_size": 7}, "says patch_size=7, config.json says 14, which counts"),
        ({"vision_feature_select_strategy": "full"}, "says vision_feature_select_strategy='full', config.json says 'default', which counts"),
        ({"num_additional_image_tokens": 0}, "says num_additional_image_tokens=0, config.json says 1, which counts"),
        ({"image_token": "cat"}, r"says image_token='cat', which has the id 10, config.json says 17 \\(token '<image>'\\), which counts"),
    ],
)
def test_config_json_counts_where_the_processor_says_otherwise_and_both_are_told(theirs, changed, message):
    folder = theirs()
    plain = lb.load(folder)
    index = plain.tokenizer.get_vocab()
    message = message.replace("id 10", f"id {index['cat']}").replace("says 17", f"says {index['<image>']}").replace("\\\\", "\\")
    change(folder / PROCESSOR, **changed)
    with pytest.warns(UserWarning, match=message):
        again = lb.load(folder)
    assert same(plain, again)
    assert f"{PROCESSOR} {message[:20]}" in inspect(folder).settings["files that disagree"]


@pytest.mark.parametrize(
    "changed",
    [NORM, {"resample": 2}, {"do_pad": False}, {"size": {"shortest_edge": 30}}, {"crop_size": {"height": 14, "width": 14}}, {"rescale_factor": 1.0}],
    ids=lambda values: next(iter(values)),
)
def test_two_image_processors_that_differ_are_refused_with_both_values(theirs, changed):
    folder = theirs()
    images = json.loads((folder / IMAGES).read_text())
    change(folder / PROCESSOR, image_processor={**images, **changed})
    key, value = next(iter(changed.items()))
    with pytest.raises(LmmError) as error:
        lb.load(folder)
    assert f"{key}={value!r} and {images[key]!r}: transformers 5 reads the first, 4 the second" in str(error.value)
    (folder / IMAGES).unlink()
    if changed is NORM:
        assert lb.load(folder).encoder.preprocess.mean == (0.1, 0.2, 0.3)


def test_image_processors_of_two_generations_that_say_the_same_agree(theirs):
    folder = theirs()
    change(folder / IMAGES, do_pad=False)
    images = json.loads((folder / IMAGES).read_text())
    change(folder / IMAGES, size=28, crop_size=28)
    rounded = {**images, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 28, "height": None}, "do_pad": None}
    change(folder / PROCESSOR, image_processor=rounded)
    assert lb.load(folder).encoder.preprocess.size_px == 28


def test_another_image_size_than_the_towers_is_refused_with_both(theirs):
    folder = theirs()
    change(folder / IMAGES, size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42})
    with pytest.raises(LmmError, match="makes images of 42 px, the encoder in config.json takes 28 px"):
        lb.load(folder)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_a_select_strategy_that_the_tower_does_not_have_is_refused_with_both(theirs, encoder):
    siglip = SigLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
    folder = theirs(**({"encoder": siglip} if encoder == "siglip" else {}))
    right, wrong = ("default", "full") if encoder == "clip" else ("full", "default")
    assert json.loads((folder / CONFIG).read_text())["vision_feature_select_strategy"] == right
    change(folder / CONFIG, vision_feature_select_strategy=wrong)
    with pytest.raises(LmmError, match=f"vision_feature_select_strategy='{wrong}' .expected '{right}'"):
        lb.load(folder)


@pytest.mark.parametrize("layers", [-1, [-1], [-2, -1], [0]])
def test_the_layers_of_the_tower_are_those_that_config_json_says(theirs, make_model, layers):
    folder = theirs()
    change(folder / CONFIG, vision_feature_layer=layers)
    chosen = tuple(layers) if isinstance(layers, list) else (layers,)
    if len(chosen) > 1:  # the projector in the file is for one layer
        with pytest.raises(LmmError, match="linear_1.weight is .24, 16., expected .24, 32."):
            lb.load(folder)
        return
    model, plain = lb.load(folder), make_model()
    assert [layer % 3 for layer in model.encoder.select] == [layer % 3 for layer in chosen]
    pixels = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not torch.equal(model.encoder(pixels).patches, plain.encoder(pixels).patches)


def with_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: value.clone() for name, value in tensors.items()}, path, metadata={"format": "pt"})


def head_of(tensors):
    return next(name for name in tensors if name.endswith("lm_head.weight"))


def test_tie_flags_and_tensors_that_contradict_each_other_are_refused(theirs):
    folder = theirs()
    for place in (lambda: change(folder / CONFIG, tie_word_embeddings=True),):
        place()
        with pytest.raises(LmmError, match="the config ties .* but the file holds two different tensors: set tie_word_embeddings to false"):
            lb.load(folder)
    tied = theirs("tied", tied=True)
    assert lb.load(tied).config.decoder.tied
    text = json.loads((tied / CONFIG).read_text())["text_config"]
    change(tied / CONFIG, tie_word_embeddings=False, text_config={**text, "tie_word_embeddings": False})
    with pytest.raises(LmmError, match="1 missing: language_model.lm_head.weight"):
        lb.load(tied)
    with_tensors(folder, lambda tensors: tensors.pop(head_of(tensors)))
    change(folder / CONFIG, tie_word_embeddings=False)
    with pytest.raises(LmmError, match="1 missing: language_model.lm_head.weight"):
        lb.load(folder)


@pytest.mark.parametrize("rows", [19, 21])
def test_a_vocabulary_of_another_size_than_the_tables_is_refused_with_both(theirs, rows):
    folder = theirs()
    text = json.loads((folder / CONFIG).read_text())["text_config"]
    change(folder / CONFIG, vocab_size=rows, text_config={**text, "vocab_size": rows})
    with pytest.raises(LmmError, match=rf"embed_tokens.weight is \(20, 24\), expected \({rows}, 24\)"):
        lb.load(folder)


@pytest.mark.parametrize(
    ("role", "key", "value", "name"),
    [("text_config", "rms_norm_eps", 0.1, "eps"), ("vision_config", "layer_norm_eps", 0.1, "eps"), ("text_config", "rope_theta", 5e5, "rope_theta")],
)
def test_our_config_counts_where_config_json_was_changed_and_both_are_told(make_model, tmp_path, role, key, value, name):
    folder = make_model().save(tmp_path / "m")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = lb.load(folder)
    config = json.loads((folder / CONFIG).read_text())
    config[role] |= {key: value}
    if "rope_parameters" in config[role] and key == "rope_theta":
        config[role]["rope_parameters"][key] = value
    (folder / CONFIG).write_text(json.dumps(config))
    told = rf"config.json says {name}={value!r} of the (decoder|encoder), lmmblocks.json says .*, which counts: change both"
    with pytest.warns(UserWarning, match=told):
        assert same(model, lb.load(folder))
    assert f"={value!r}" in inspect(folder).settings["files that disagree"]


def test_a_key_with_two_values_is_refused(theirs):
    folder = theirs()
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace("{", '{"projector_hidden_act": "relu",', 1))
    with pytest.raises(LmmError, match="config.json has the key 'projector_hidden_act' twice, with 'relu' and 'gelu': keep one"):
        lb.load(folder)
