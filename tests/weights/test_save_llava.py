"""The original LLaVA's layout is written as its code reads it, and every layout goes over into every other without a changed bit."""

import json
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.presets import CLIP_L_336
from lmmblocks.spec import LmmError

ROUTES = list(permutations(("hf", "llava", "native")))


def same(one, other):
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


@pytest.mark.parametrize("route", ROUTES, ids="->".join)
@pytest.mark.parametrize("include_vision", [True, False])
def test_a_model_is_bitwise_the_same_after_a_tour_of_the_layouts(make_model, tmp_path, route, include_vision):
    model = make_model(template="llava_v1")
    model.encoder.preprocess = replace(model.encoder.preprocess, fit="crop", mean=(0.5, 0.4, 0.3))
    model.max_length = 50
    words = make_model().tokenizer.get_vocab()
    now = model
    for index, format in enumerate((*route, route[0])):
        now.save(tmp_path / str(index), format=format, **({"include_vision": include_vision} if format == "llava" else {}))
        now = lb.load(tmp_path / str(index))
        assert same(model, now), (index, format)
        assert now.encoder.preprocess == model.encoder.preprocess
        assert (now.template, now.max_length, now.config.encoder, now.config.decoder) == (
            model.template, 50, model.config.encoder, model.config.decoder
        )  # fmt: skip
        assert words.items() <= now.tokenizer.get_vocab().items()


@pytest.mark.parametrize("include_vision", [True, False])
@pytest.mark.parametrize("projector", [Block("mlp", {"depth": 2}), Block("mlp", {"depth": 1}), Block("linear")], ids=str)
def test_the_files_alone_describe_the_model_to_the_originals_code(make_model, tmp_path, include_vision, projector):
    """Without ``lmmblocks.json``, by the rules of the original's loader."""
    model = make_model(projector=projector)
    model.tokenize_mode, model.max_length = "llava15", 48
    folder = tmp_path / "llava"
    model.save(folder, format="llava", include_vision=include_vision)
    (folder / "lmmblocks.json").unlink()
    again = lb.load(folder)
    assert same(model, again)
    assert (again.config.encoder, again.config.decoder, again.config.projector) == (model.config.encoder, model.config.decoder, projector)
    assert again.encoder.preprocess == model.encoder.preprocess
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"], config["architectures"] == ("llava_llama", ["LlavaLlamaForCausalLM"])
    assert config["mm_vision_tower"] == str(folder / "vision_tower")
    assert config["unfreeze_mm_vision_tower"] == include_vision
    assert (config["mm_use_im_patch_token"], config["mm_use_im_start_end"]) == (False, False)
    held = {name.split(".")[1] for name in load_file(folder / "model.safetensors") if name.startswith("model.")}
    assert held == {"embed_tokens", "layers", "norm", "mm_projector"} | ({"vision_tower"} if include_vision else set())


def test_transformers_reads_the_tower_that_is_written_beside(make_model, tmp_path):
    from transformers import CLIPVisionModel

    model = make_model()
    model.save(tmp_path / "llava", format="llava", include_vision=False)
    tower = CLIPVisionModel.from_pretrained(tmp_path / "llava" / "vision_tower")
    pixels = torch.randn(2, 3, 28, 28)
    states = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:].flatten(0, 1)
    torch.testing.assert_close(model.encoder(pixels).patches, states, rtol=0, atol=1e-5)


def test_a_moved_folder_is_still_read(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "llava", format="llava", include_vision=False)
    (tmp_path / "llava").rename(tmp_path / "moved-llava")
    (tmp_path / "moved-llava" / "lmmblocks.json").unlink()
    assert same(model, lb.load(tmp_path / "moved-llava"))


def narrow_clip():
    """CLIP-L/14-336 in every field but on the meta device, so that nothing is allocated."""
    decoder = TransformerConfig(dim=8, layers=1, heads=2, kv_heads=1, ffn_dim=8, vocab=12, max_positions=2048)
    return LMMConfig(encoder=CLIPConfig(), decoder=decoder, encoder_source=CLIP_L_336)


def test_the_tower_keeps_its_name_where_the_name_says_it_all(monkeypatch, tmp_path):
    from lmmblocks.weights.systems import llava_original_save as save_llava

    model = build(narrow_clip(), weights="random", device="meta")
    plain = replace(model.config, preprocess=model.encoder.preprocess)
    names = {
        "read from there": (model, plain, False),
        "trained": (trained(model), plain, False),
        "trained, inside": (trained(model), plain, True),
        "of unknown origin": (unknown(model), plain, False),
        "of unknown origin, inside": (unknown(model), plain, True),
        "other pictures": (model, replace(plain, preprocess=replace(plain.preprocess, mean=(0.5, 0.5, 0.5))), True),
    }
    found = {what: save_llava._known_name(*arguments) for what, arguments in names.items()}
    assert found == {
        "read from there": CLIP_L_336,
        "trained": None,
        "trained, inside": CLIP_L_336,
        "of unknown origin": None,
        "of unknown origin, inside": CLIP_L_336,
        "other pictures": None,
    }


def trained(model):
    other = build(narrow_clip(), weights="random", device="meta")
    other.encoder.frozen = False
    return other


def unknown(model):
    other = build(narrow_clip(), weights="random", device="meta")
    other.config = replace(other.config, encoder_source=None)
    return other


def test_a_name_that_is_given_is_written(make_model, tmp_path):
    model = make_model()
    model.save(tmp_path / "llava", format="llava", vision_tower="openai/some-clip", include_vision=False)
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["mm_vision_tower"] == "openai/some-clip"
    assert not (tmp_path / "llava" / "vision_tower").exists()


@pytest.mark.parametrize(
    "swap, message",
    [
        ({"projector": "identity", "encoder": CLIPConfig(dim=12, layers=2, heads=2, mlp_dim=8, image_size=28, select=(0, -2))}, "several layers"),
        ({"projector": Block("mlp", {"bias": False})}, "a projector without biases"),
        ({"decoder": TransformerConfig(dim=24, layers=1, heads=2, kv_heads=1, ffn_dim=8, vocab=20, qk_norm=True)}, "decoder 'qwen3'"),
    ],
)
def test_blocks_that_the_originals_code_has_not_are_refused(make_model, tmp_path, swap, message):
    with pytest.raises(LmmError, match=f"the original LLaVA has no place for .*{message}.*save with format='native'"):
        make_model(**swap).save(tmp_path / "llava", format="llava")
    assert not (tmp_path / "llava").exists()


def test_an_option_of_another_format_is_refused(make_model, tmp_path):
    with pytest.raises(LmmError, match="format 'hf' has no option 'include_vision'; known: none"):
        make_model().save(tmp_path / "hf", include_vision=True)
    with pytest.raises(LmmError, match="has no option 'include_visoin'; did you mean 'include_vision'"):
        make_model().save(tmp_path / "llava", format="llava", include_visoin=True)
