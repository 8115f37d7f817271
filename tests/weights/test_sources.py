"""Folders and hub ids, and the parts that are read from them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmblocks
from lmmblocks.spec import LmmError
from lmmblocks.weights import load_decoder, load_encoder, load_tokenizer, locate
from lmmblocks.weights.files.folder import write_weights
from lmmblocks.weights.systems.llava_hf import clip_to_hf, llama_to_hf


@pytest.fixture()
def encoder_folder(make_model, tmp_path):
    """A CLIP tower as ``CLIPModel`` files hold it, and the tower."""
    tower = make_model().encoder
    write_weights(tmp_path, tower.state_dict(), dtype=None)
    (tmp_path / "config.json").write_text(json.dumps(clip_to_hf(tower.config)))
    return tower, tmp_path


def decoder_folder(decoder, folder):
    owned = dict(decoder.named_parameters())
    write_weights(folder, owned, dtype=None)
    (folder / "config.json").write_text(json.dumps(llama_to_hf(decoder.config)))
    return folder


def test_a_folder_is_found_before_the_hub_is_asked(tmp_path, monkeypatch):
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate("owner/name").samefile(tmp_path / "owner" / "name")
    assert locate(tmp_path) == tmp_path


def test_a_file_is_refused_with_its_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(LmmError, match=f"is a file, expected the folder that holds it: give {tmp_path}"):
        locate(tmp_path / "model.safetensors")


def test_a_mistyped_folder_gets_the_closest_name(tmp_path):
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision/config.json").touch()
    with pytest.raises(LmmError, match="no folder .*visoin; did you mean 'vision'.*hub id 'owner/name'"):
        locate(tmp_path / "visoin")
    with pytest.raises(LmmError, match="expected a model folder or a hub id"):
        locate("neither/here/nor/there")


def test_folders_without_a_model_are_not_proposed(tmp_path):
    (tmp_path / "opt").mkdir()
    for path in (tmp_path / "nope", "/nope", "./nope"):
        with pytest.raises(LmmError, match="no folder [^;]*nope; expected a model folder"):
            locate(path)


@pytest.mark.parametrize("found", [5, None, b"model"])
def test_what_is_no_path_is_refused(found):
    with pytest.raises(LmmError, match=f"expected a model folder or a hub id 'owner/name', found {type(found).__name__}"):
        lmmblocks.load(found)


@pytest.mark.parametrize(
    "error, message",
    [
        (
            "LocalEntryNotFoundError",
            "no folder 'owner/name' here, and the hub can't be reached .*give its folder",
        ),
        (
            "OfflineModeIsEnabled",
            "no folder 'owner/name' here, and the hub can't be reached .*give its folder",
        ),
        ("RepositoryNotFoundError", "no such public repository on the hub: correct the name"),
        ("GatedRepoError", "accept its terms"),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_to_do(monkeypatch, tmp_path, error, message):
    import huggingface_hub

    def refuse(*args, **kwargs):
        kind = getattr(huggingface_hub.errors, error)
        raise kind.__new__(kind, "no connection")  # constructors differ between versions

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(LmmError, match=message):
        locate("owner/name")


def test_bin_files_are_fetched_only_when_there_are_no_safetensors(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def snapshot(hub_id, allow_patterns):
        asked.append([pattern for pattern in allow_patterns if pattern in ("*.safetensors", "*.bin")])
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert locate("owner/name", weights=False) == tmp_path
    assert locate("owner/name") == tmp_path
    (tmp_path / "model.safetensors").touch()
    assert locate("owner/name") == tmp_path
    assert asked == [[], ["*.safetensors"], ["*.bin"], ["*.safetensors"]]


def test_an_encoder_is_read_bitwise_with_its_preprocessing(encoder_folder):
    tower, folder = encoder_folder
    config, state, preprocess = load_encoder(folder)
    assert config == tower.config
    assert all(torch.equal(state[name], value) for name, value in tower.state_dict().items())
    assert preprocess == tower.preprocess


def test_the_processor_of_the_encoder_gives_mean_and_std_and_the_caller_the_fit(encoder_folder):
    tower, folder = encoder_folder
    values = {**tower.preprocess.to_hf_processor_config(), "image_mean": [0.5, 0.5, 0.5], "do_pad": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    assert load_encoder(folder)[2].mean == (0.5, 0.5, 0.5)
    assert [load_encoder(folder, fit=fit)[2].fit for fit in ("pad", "crop")] == ["pad", "crop"]
    assert load_encoder(folder)[2].fit == "pad"


def test_a_processor_of_another_size_than_the_encoder_is_refused(encoder_folder):
    tower, folder = encoder_folder
    values = {**tower.preprocess.to_hf_processor_config(), "crop_size": 56, "size": {"shortest_edge": 56}}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(LmmError, match="makes images of 56 px, the encoder in config.json takes 28 px"):
        load_encoder(folder)


@pytest.mark.parametrize("tied", [False, True])
def test_a_decoder_is_read_bitwise(make_model, tmp_path, tied):
    decoder = make_model(tied=tied).decoder
    config, state = load_decoder(decoder_folder(decoder, tmp_path))
    assert config == decoder.config
    assert all(torch.equal(state[name], value) for name, value in decoder.state_dict().items())
    assert (state["lm_head.weight"] is state["model.embed_tokens.weight"]) == tied


def test_parts_are_read_out_of_a_whole_model(saved):
    model, folder = saved
    _, encoder, _ = load_encoder(folder)
    config, decoder = load_decoder(folder)
    assert all(torch.equal(encoder[name], value) for name, value in model.encoder.state_dict().items())
    assert decoder.keys() == model.decoder.state_dict().keys()
    assert config.dim == model.decoder.dim


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(make_model, tmp_path):
    folder = decoder_folder(make_model().decoder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(3)
    tensors["lm_head.weight"] = torch.zeros(7, 24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LmmError) as caught:
        load_decoder(folder)
    message = str(caught.value)
    assert "1 missing: model.norm.weight" in message
    assert "1 unexpected: model.layers.0.self_attn.q_proj.bias" in message
    assert "1 of another shape: lm_head.weight is (7, 24), expected (20, 24)" in message
    assert str(folder) in message


def test_a_tied_config_with_two_different_tables_is_refused(make_model, tmp_path):
    decoder = make_model().decoder
    folder = decoder_folder(decoder, tmp_path)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
    with pytest.raises(LmmError, match="the config ties 'lm_head.weight' .* set tie_word_embeddings to false"):
        load_decoder(folder)


def test_a_tied_file_that_holds_the_head_too_is_read(make_model, tmp_path):
    decoder = make_model(tied=True).decoder
    folder = decoder_folder(decoder, tmp_path)
    tensors = {name: value.clone() for name, value in decoder.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    _, state = load_decoder(folder)
    assert state["lm_head.weight"] is state["model.embed_tokens.weight"]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "holds no config.json: expected a model folder; found model.safetensors"),
        ('{"model_type": ', "config.json is not JSON: line 1"),
        ("[]", "must hold a JSON object, found list"),
        ('{"model_type": "clip"}', "model_type 'clip', expected 'llama'"),
    ],
)
def test_a_wrong_config_says_what_was_found(make_model, tmp_path, text, message):
    folder = decoder_folder(make_model().decoder, tmp_path)
    (folder / "config.json").unlink() if text is None else (folder / "config.json").write_text(text)
    with pytest.raises(LmmError, match=message):
        load_decoder(folder)


def test_a_tokenizer_is_read_back_with_the_same_ids(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = "USER : what is in the picture ? unheard"
    assert load_tokenizer(tmp_path)(text).input_ids == tokenizer(text).input_ids


def test_a_missing_or_damaged_tokenizer_is_named(make_tokenizer, tmp_path):
    with pytest.raises(LmmError, match="holds no tokenizer: expected tokenizer.json or"):
        load_tokenizer(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(LmmError, match=f"{tmp_path}/tokenizer.json is not JSON: line 1, column 2"):
        load_tokenizer(tmp_path)
