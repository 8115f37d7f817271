"""BLIP-2's vision tower against transformers' own with the same random weights, read from folders that transformers wrote."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lmmblocks.encoders.blip2_vit import Blip2ViTConfig
from lmmblocks.spec import Encoder, Grid, LmmError
from lmmblocks.weights import load_encoder
from lmmblocks.weights.parts.hf_encoders import encoder_from_hf, encoder_to_hf
from lmmblocks.weights.systems.llava_hf import llava_from_hf

LAYERS, WIDTH, HEADS, SIDE = 3, 32, 4, 28
SHAPE = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=48, image_size=SIDE, patch_size=7)
TOLERANCE = 1e-5


def blip2(**changes):
    from transformers import Blip2VisionConfig, Blip2VisionModel

    return Blip2VisionModel(Blip2VisionConfig(**{**SHAPE, **changes}))


def instructblip(**changes):
    from transformers import InstructBlipVisionConfig, InstructBlipVisionModel

    return InstructBlipVisionModel(InstructBlipVisionConfig(**{**SHAPE, **changes}))


TOWERS = {"blip2": blip2, "instructblip": instructblip, "without-bias": lambda: blip2(qkv_bias=False, hidden_act="gelu_pytorch_tanh")}


def randomised(model, seed):
    """Give every parameter its own values (norms near 1), so that no part of a comparison is trivially equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            near_one = "norm" in name and name.endswith("weight")
            value.copy_(1 + 0.1 * noise if near_one else noise * (0.2 if value.dim() > 1 else 0.1))
    return model.eval()


def processor():
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    return BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    """transformers' model and its folder."""
    model = randomised(TOWERS[request.param](), 1)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    return model, folder


@pytest.fixture()
def record(tower, record_parity):
    model = tower[0]
    return lambda quantity, value: record_parity("encoders.blip2_vit", type(model).__name__, quantity, value)


def native(folder, **changes):
    config, state, preprocess = load_encoder(folder)
    encoder = replace(config, **{"select": (-1,), **changes}).build()
    encoder.load_state_dict(state)
    encoder.preprocess = preprocess
    return encoder


def pixels(images=3, seed=2):
    return torch.randn(images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def difference(got, expected):
    assert got.shape == expected.shape and expected.isfinite().all()
    return (got - expected).abs().max().item()


def test_features_and_cls_equal_last_hidden_state(tower, record):
    model, folder = tower
    encoder, images = native(folder), pixels()
    with torch.no_grad():
        expected = model(images).last_hidden_state
    got = encoder(images, need=frozenset({"patches", "prefix"}))
    error = max(difference(got.patches, expected[:, 1:].flatten(0, 1)), difference(got.prefix, expected[:, :1]))
    record("last_hidden_state", error)
    assert error <= TOLERANCE, error
    assert got.grids == (Grid(4, 4),) * 3 and encoder.spec.prefix == 1 and isinstance(encoder, Encoder)


@pytest.mark.parametrize("select", [(-2,), (-1,), (0,), (2, -1)], ids=str)
def test_hidden_states_equal_those_of_transformers(tower, select, record):
    model, folder = tower
    images, seen = pixels(), []
    hooks = [layer.register_forward_hook(lambda module, given, result: seen.append((given[0], result))) for layer in model.encoder.layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    states = [seen[0][0], *(result for _, result in seen)]
    got = native(folder, select=select, final_norm=False)(images, need=frozenset({"patches", "layers"}))
    error = difference(got.patches, torch.cat([states[s][:, 1:].flatten(0, 1) for s in select], -1))
    record(f"hidden states {select}", error)
    assert error <= TOLERANCE, error
    assert all(difference(got.layers[s], states[s][:, 1:].flatten(0, 1)) <= TOLERANCE for s in select)


def test_gradients_equal_those_of_transformers(tower, record):
    model, folder = tower
    images, encoder = pixels(), native(folder)
    encoder.frozen = False
    weights = torch.randn(3, 17, WIDTH, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    (model(images).last_hidden_state * weights).sum().backward()
    got = encoder(images, need=frozenset({"patches", "prefix"}))
    ((got.patches.unflatten(0, (3, 16)) * weights[:, 1:]).sum() + (got.prefix * weights[:, :1]).sum()).backward()
    theirs, errors = {f"vision_model.{name}": value.grad for name, value in model.named_parameters()}, {}
    assert theirs.keys() == dict(encoder.named_parameters()).keys()
    for name, value in encoder.named_parameters():
        assert theirs[name].abs().max() > 0, name
        errors[name] = difference(value.grad, theirs[name]) / theirs[name].abs().max().item()
    record("gradients, relative", max(errors.values()))
    assert all(error <= 1e-4 for error in errors.values()), errors


def test_keys_and_attention_of_cls_are_those_of_the_last_layer_that_runs(tower, record):
    model, folder = tower
    model.set_attn_implementation("eager")
    images, seen = pixels(), []
    for select, layer in (((-1,), 2), ((-2,), 1), ((0,), 0)):
        attention = model.encoder.layers[layer].self_attn
        hooks = [
            attention.qkv.register_forward_hook(lambda module, given, result: seen.append(result)),
            attention.register_forward_hook(lambda module, given, result: seen.append(result[1])),
        ]
        with torch.no_grad():
            model(images)
        for hook in hooks:
            hook.remove()
        weights, qkv = seen.pop(), seen.pop()
        encoder = native(folder, select=select)
        got = encoder(images, need=encoder.spec.offers)
        keys = qkv.chunk(3, -1)[1][:, 1:].unflatten(-1, (HEADS, -1)).flatten(0, 1)
        error = max(difference(got.keys, keys), difference(got.cls_attn, weights[:, :, 0, 1:].mean(1).flatten()))
        record(f"keys and attention of CLS, layer {layer}", error)
        assert error <= TOLERANCE, error


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (28, 28), (5, 40)])
def test_pixels_equal_those_of_the_image_processor_beside_the_weights(tower, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    expected = processor()(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(load_encoder(tower[1])[2](image), expected)
    assert torch.equal(Blip2ViTConfig(image_size=SIDE, patch=7).default_preprocess()(image), expected)


def test_config_survives_both_directions(tower):
    model, _ = tower
    ours = encoder_from_hf(model.config.to_dict())
    written = encoder_to_hf(ours)
    assert encoder_from_hf(written) == ours
    there = type(model.config)(**{**written, "model_type": model.config.model_type}).to_dict()
    assert {key: there[key] for key in SHAPE} == {key: model.config.to_dict()[key] for key in SHAPE}


@pytest.mark.parametrize("config", ["Blip2VisionConfig", "InstructBlipVisionConfig"])
def test_keys_left_out_have_the_defaults_of_transformers_which_are_ours(config):
    import transformers

    defaults = getattr(transformers, config)()
    assert encoder_from_hf({"model_type": defaults.model_type}) == encoder_from_hf(defaults.to_dict())
    assert encoder_from_hf(defaults.to_dict(), select=(-1,)) == Blip2ViTConfig()


@pytest.mark.parametrize("kind", ["Blip2ForConditionalGeneration", "Blip2ForImageTextRetrieval", "InstructBlipForConditionalGeneration"])
def test_it_is_read_out_of_the_whole_model(kind, tmp_path):
    import transformers

    whole = getattr(transformers, kind)
    bert = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, vocab_size=30)
    text = dict(model_type="llama", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    bert |= {} if kind.startswith("Instruct") else {"use_qformer_text_input": kind.endswith("Retrieval")}
    config = whole.config_class(vision_config=SHAPE, qformer_config=bert, text_config=text, num_query_tokens=3)
    model = randomised(whole(config), 4)
    model.save_pretrained(tmp_path)
    encoder, images = native(tmp_path), pixels()
    with torch.no_grad():
        expected = model.vision_model(images).last_hidden_state[:, 1:].flatten(0, 1)
    assert difference(encoder(images).patches, expected) <= TOLERANCE


def test_a_llava_has_no_place_for_it():
    with pytest.raises(LmmError, match="vision_config, has model_type 'blip_2_vision_model', expected 'clip_vision_model' or"):
        llava_from_hf({"model_type": "llava", "vision_config": blip2().config.to_dict(), "text_config": {"model_type": "llama"}})


def test_all_mismatches_of_a_shape_are_named_at_once():
    with pytest.raises(LmmError, match=r"Blip2ViTConfig: image_size 225 px.*dim 1408 is not a multiple of heads 15.*select \(50,\)"):
        Blip2ViTConfig(image_size=225, heads=15, select=(50,))
