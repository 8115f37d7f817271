"""Checkpoints of the original LLaVA, written here name by name as its code writes them, are read bitwise."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import lmmblocks as lb
from lmmblocks.config import Block
from lmmblocks.spec import LmmError
from lmmblocks.weights import load_decoder, load_encoder, locate


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("vision", [False, True])
@pytest.mark.parametrize("projector", [Block("mlp", {"depth": 2}), Block("mlp", {"depth": 3}), Block("linear")], ids=str)
def test_a_full_checkpoint_is_read_bitwise(make_model, tmp_path, kind, vision, projector, original):
    model = make_model(projector=projector)
    again = lb.load(original.full(model, tmp_path / "llava", kind=kind, vision=vision))
    assert same(model, again)
    assert (again.template.name, again.tokenize_mode, again.max_length) == ("vicuna_v1", "llava15", 48)
    assert again.encoder.preprocess.fit == "pad"
    assert again.config.projector == projector
    assert again.config.encoder_source == "clip"


def test_names_in_the_file_are_those_of_the_dossier(make_model, original):
    """One of each kind, by hand, so that the function above can't be wrong in the same way as the library."""
    names = original.names(make_model().state_dict())
    expected = {
        "vision_tower.vision_model.pre_layrnorm.bias": "model.vision_tower.vision_tower.vision_model.pre_layrnorm.bias",
        "multi_modal_projector.linear_2.bias": "model.mm_projector.2.bias",
        "language_model.model.layers.1.self_attn.o_proj.weight": "model.layers.1.self_attn.o_proj.weight",
        "language_model.model.embed_tokens.weight": "model.embed_tokens.weight",
        "language_model.lm_head.weight": "lm_head.weight",
    }
    assert {ours: names[ours] for ours in expected} == expected


@pytest.mark.parametrize("aspect, fit", [("pad", "pad"), ("square", "crop"), (None, "crop")])
def test_pictures_are_padded_or_cropped_as_the_config_says(make_model, tmp_path, aspect, fit, original):
    assert lb.load(original.full(make_model(), tmp_path / "llava", image_aspect_ratio=aspect)).encoder.preprocess.fit == fit


def test_weights_of_the_tower_inside_win_over_the_tower_that_is_named(make_model, tmp_path, original):
    trained, released = make_model(seed=1), make_model()
    folder = original.full(trained, tmp_path / "llava", vision=True, tower=False)
    original.tower(released, folder / "clip")
    assert same(trained, lb.load(folder))


def test_a_tower_of_another_dtype_gets_the_language_models(make_model, tmp_path, original):
    model = make_model()
    folder = original.full(model.half(), tmp_path / "llava", tower=False)
    original.tower(make_model(), folder / "clip")
    again = lb.load(folder)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float16}
    assert same(model, again)
    assert {parameter.dtype for parameter in lb.load(folder, dtype=torch.float32).parameters()} == {torch.float32}


def test_the_tower_is_found_at_a_path_of_another_machine_or_given(make_model, tmp_path, original):
    model = make_model()
    folder = original.full(model, tmp_path / "llava", mm_vision_tower="/home/somebody/checkpoints/clip")
    assert same(model, lb.load(folder))
    (folder / "clip").rename(tmp_path / "elsewhere")
    with pytest.raises(LmmError, match="(?s)names the vision tower '/home/somebody/checkpoints/clip'.*give its folder with load"):
        lb.load(folder)
    assert same(model, lb.load(folder, vision_tower=tmp_path / "elsewhere"))


@pytest.mark.parametrize("vision", [False, True])
def test_parts_are_taken_out_of_an_original_checkpoint(make_model, tmp_path, vision, original):
    model = make_model()
    folder = original.full(model, tmp_path / "llava", vision=vision)
    config, state, preprocess = load_encoder(folder)
    assert (config, preprocess) == (model.config.encoder, model.encoder.preprocess)
    assert all(torch.equal(state[name], value) for name, value in model.encoder.state_dict().items())
    config, state = load_decoder(folder)
    assert config == model.config.decoder
    assert all(torch.equal(state[name], value) for name, value in model.decoder.state_dict().items())


@pytest.mark.parametrize("vocab", [12, 64])
def test_tables_may_have_more_rows_than_the_tokenizer_has_words(make_model, tmp_path, vocab, original):
    model = make_model(vocab=max(vocab, len(make_model().tokenizer)))
    assert same(model, lb.load(original.full(model, tmp_path / "llava")))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature='cls_patch': expected 'patch'; .* CLS token"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end=True: expected false"),
        ({"mm_projector_type": "mlp2x_relu"}, "mm_projector_type='mlp2x_relu': expected 'linear', 'identity' or"),
        ({"mm_projector_type": "mlp0x_gelu"}, "mm_projector_type='mlp0x_gelu'"),
        ({"mm_vision_select_layer": None}, "mm_vision_select_layer=None: expected the number"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio='anyres': expected 'pad' or 'square'"),
        ({"mm_resampler_type": "qformer", "s2": True}, "mm_resampler_type='qformer': expected null; s2=True"),
        ({"model_type": "llava_mpt"}, "model_type 'llava_mpt': expected one of 'llava'"),
    ],
)
def test_what_the_blocks_cannot_compute_is_refused_with_the_key(make_model, tmp_path, changes, message, original):
    with pytest.raises(LmmError, match=message):
        lb.load(original.full(make_model(), tmp_path / "llava", **changes))


def test_missing_unexpected_and_misshapen_tensors_are_listed_with_the_layouts_name(make_model, tmp_path, original):
    folder = original.full(make_model(), tmp_path / "llava", kind="one")
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    tensors = {original.names([name])[name]: value.detach().clone() for name, value in make_model().named_parameters() if "vision" not in name}
    del tensors["model.norm.weight"]
    tensors["model.mm_projector.4.bias"] = torch.zeros(3)
    tensors["lm_head.weight"] = torch.zeros(7, 24)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(LmmError) as caught:
        lb.load(folder)
    message = str(caught.value)
    print(message)
    assert "original LLaVA" in message
    assert "1 missing: language_model.model.norm.weight" in message
    assert "1 unexpected: model.mm_projector.4.bias" in message
    assert "lm_head.weight is (7, 24), expected (20, 24)" in message


@pytest.mark.parametrize("prefix", ["model.", "", "base_model.model.model."])
@pytest.mark.parametrize("named", [False, True])
def test_a_projector_lies_over_a_language_model(make_model, tmp_path, prefix, named, original):
    model = make_model()
    base = original.base(model, tmp_path / "vicuna")
    folder = original.projector(model, tmp_path / "stage1", prefix, _name_or_path=str(base) if named else "", image_aspect_ratio="square")
    again = lb.load(folder) if named else lb.load(folder, base=base)
    assert same(model, again)
    assert again.encoder.preprocess.fit == "crop"
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_a_projector_lies_over_another_llava(make_model, tmp_path, original):
    model, older = make_model(), make_model()
    with torch.no_grad():
        for parameter in older.projector.parameters():
            parameter.zero_()
    base = original.full(older, tmp_path / "llava")
    assert same(model, lb.load(original.projector(model, tmp_path / "stage1"), base=base))


def test_a_projector_without_its_base_says_how_to_give_one(make_model, tmp_path, original):
    folder = original.projector(make_model(), tmp_path / "stage1", _name_or_path="")
    with pytest.raises(LmmError, match=r"a projector over a base: give the base with load\(..., base=...\)"):
        lb.load(folder)
    with pytest.raises(LmmError, match="(?s)base: no folder .*nowhere.*give the base's folder or hub id"):
        lb.load(folder, base=tmp_path / "nowhere")
    whole = original.full(make_model(), tmp_path / "llava")
    with pytest.raises(LmmError, match="is a whole model .original LLaVA.: leave base='x' out"):
        lb.load(whole, base="x")


def check_equal(model, expected, dtype, tolerance=0.0):
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value.to(dtype), rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("infix", ["", ".default"])
def test_a_lora_folder_is_merged_into_its_base_as_peft_does(make_model, tmp_path, kind, rslora, infix, original):
    model = make_model()
    base = original.base(model, tmp_path / "vicuna")
    expected = original.lora(model, tmp_path / "lora", kind=kind, infix=infix, use_rslora=rslora, base_model_name_or_path=str(base))
    expected |= original.trainables(model, tmp_path / "lora")
    original.tower(model, tmp_path / "lora" / "clip")
    again = lb.load(tmp_path / "lora")
    check_equal(again, expected, torch.float32)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, again.state_dict()[name])]
    assert len(changed) == 2 * len(original.TARGETS) + 4
    assert again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert lb.load(tmp_path / "lora", base=base).config == again.config


def test_half_precision_is_rounded_once_after_the_sum(make_model, tmp_path, original):
    model = make_model().half()
    base = original.full(model, tmp_path / "llava")
    expected = original.lora(model, tmp_path / "lora")
    original.tower(model, tmp_path / "lora" / "clip")
    check_equal(lb.load(tmp_path / "lora", base=base), expected, torch.float16)
    wide = lb.load(tmp_path / "lora", base=base, dtype=torch.float32)
    exact = original.lora(model.float(), tmp_path / "again")
    check_equal(wide, exact, torch.float32)


def test_an_adapter_without_llavas_config_lies_over_a_whole_model(make_model, tmp_path, original):
    model = make_model()
    base = original.full(model, tmp_path / "llava")
    expected = original.lora(model, tmp_path / "lora")
    (tmp_path / "lora" / "config.json").unlink()
    check_equal(lb.load(tmp_path / "lora", base=base), expected, torch.float32)
    with pytest.raises(LmmError, match="a language model alone: nothing says which vision tower"):
        lb.load(tmp_path / "lora", base=original.base(model, tmp_path / "vicuna"))


def test_whole_tensors_in_an_adapter_take_the_place_of_the_bases(make_model, tmp_path, original):
    model = make_model()
    base = original.full(model, tmp_path / "llava")
    expected = original.lora(model, tmp_path / "lora", whole=["language_model.lm_head.weight"], modules_to_save=["lm_head"])
    original.tower(model, tmp_path / "lora" / "clip")
    check_equal(lb.load(tmp_path / "lora", base=base), expected, torch.float32)


def test_patterns_set_rank_and_alpha_of_some_modules(make_model, tmp_path, original):
    model = make_model()
    base = original.full(model, tmp_path / "llava")
    expected = original.lora(model, tmp_path / "lora")
    original.tower(model, tmp_path / "lora" / "clip")
    values = {**original.LORA, "r": 99, "rank_pattern": {".*_proj": 4}, "alpha_pattern": {"layers.1.self_attn.q_proj": 12}}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(values))
    name = "language_model.model.layers.1.self_attn.q_proj.weight"
    expected[name] = 2 * expected[name] - model.state_dict()[name]
    check_equal(lb.load(tmp_path / "lora", base=base), expected, torch.float32, tolerance=1e-6)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"use_dora": True}, "only plain LoRA is merged, found use_dora=True: merge it with PEFT"),
        ({"peft_type": "IA3"}, "found peft_type='IA3'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4', which changes the base"),
        ({"r": 8}, "says r=8 for model.layers.0.self_attn.q_proj, its A has 4 rows"),
        ({"lora_alpha": None}, "lora_alpha must be a number, found None"),
    ],
)
def test_adapters_that_are_more_than_lora_are_refused(make_model, tmp_path, changes, message, original):
    model = make_model()
    base = original.full(model, tmp_path / "llava")
    original.lora(model, tmp_path / "lora")
    original.tower(model, tmp_path / "lora" / "clip")
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({**original.LORA, **changes}))
    with pytest.raises(LmmError, match=message):
        lb.load(tmp_path / "lora", base=base)


def test_an_adapter_of_another_model_is_refused_with_a_list(make_model, tmp_path, original):
    model = make_model()
    base = original.full(model, tmp_path / "llava")
    original.lora(model, tmp_path / "lora", kind="safetensors")
    original.tower(model, tmp_path / "lora" / "clip")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    start = "base_model.model.model.layers."
    tensors[f"{start}7.self_attn.q_proj.lora_A.weight"] = tensors[f"{start}7.self_attn.q_proj.lora_B.weight"] = torch.zeros(4, 4)
    tensors[f"{start}0.self_attn.q_proj.lora_B.weight"] = torch.zeros(5, 4)
    save_file({name: value.clone() for name, value in tensors.items()}, path)
    with pytest.raises(LmmError) as caught:
        lb.load(tmp_path / "lora", base=base)
    assert "no such weight in the model: base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight" in str(caught.value)
    assert "q_proj.weight is (24, 24) in the base, the adapter's change is (5, 24)" in str(caught.value)
    del tensors[f"{start}0.self_attn.q_proj.lora_B.weight"], tensors[f"{start}7.self_attn.q_proj.lora_A.weight"]
    del tensors[f"{start}7.self_attn.q_proj.lora_B.weight"]
    save_file(tensors, path)
    with pytest.raises(LmmError, match="lacks the other factor of base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"):
        lb.load(tmp_path / "lora", base=base)


def test_a_lora_repository_of_the_hub_is_fetched_with_the_bins_beside_its_safetensors(monkeypatch, tmp_path):
    import huggingface_hub

    asked = []

    def snapshot(hub_id, allow_patterns):
        asked.append(allow_patterns[-1])
        return str(tmp_path)

    (tmp_path / "adapter_config.json").write_text(json.dumps({}))
    (tmp_path / "adapter_model.safetensors").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    locate("owner/name")
    assert asked == ["*.safetensors", "*.bin"]
