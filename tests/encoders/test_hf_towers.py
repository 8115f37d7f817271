"""SigLIP and DINOv2 against transformers' own models with the same random weights, read from folders that transformers wrote."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lmmblocks.spec import Encoder, Grid, LmmError
from lmmblocks.weights import load_encoder
from lmmblocks.weights.parts.hf_encoders import encoder_from_hf, encoder_to_hf

LAYERS, WIDTH, HEADS = 3, 32, 4
SHAPE = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
TOLERANCE = 1e-5
SELECTIONS = [(-2,), (-1,), (0,), (2, -1), (-4, 1, -2)]


def siglip(**changes):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    return SiglipVisionModel(SiglipVisionConfig(**{**SHAPE, "intermediate_size": 48, "image_size": 30, "patch_size": 7, **changes}))


def dinov2(**changes):
    from transformers import Dinov2Config, Dinov2Model

    return Dinov2Model(Dinov2Config(**{**SHAPE, "image_size": 28, "patch_size": 7, **changes}))


def with_registers(**changes):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    options = {**SHAPE, "image_size": 42, "patch_size": 7, "num_register_tokens": 3, **changes}
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**options))


# name -> (transformers' model, tokens before the patches, side of the pixels)
TOWERS = {
    "siglip": (siglip, 0, 30),
    "siglip-without-head": (lambda: siglip(vision_use_head=False), 0, 30),
    "dinov2": (dinov2, 1, 28),
    "dinov2-interpolated": (lambda: dinov2(image_size=56), 1, 28),
    "dinov2-swiglu": (lambda: dinov2(use_swiglu_ffn=True, qkv_bias=False, use_mask_token=False), 1, 28),
    "dinov2-registers": (lambda: with_registers(image_size=28), 4, 28),
    "dinov2-registers-interpolated": (with_registers, 4, 28),
}


def randomised(model, seed):
    """Give every parameter its own values (norms and layer scales near 1), so that no part of a comparison is trivially equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            near_one = ("norm" in name and name.endswith("weight")) or "lambda1" in name
            value.copy_(1 + 0.1 * noise if near_one else noise * (0.2 if value.dim() > 1 else 0.1))
    return model.eval()


def processor(side):
    """What transformers makes pixels with: SigLIP squashes, DINOv2 scales to a little more and crops."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    if side == 30:
        return SiglipImageProcessorPil(size={"height": side, "width": side})
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return BitImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": side, "width": side}, **statistics)


@pytest.fixture(scope="module", params=TOWERS)
def tower(request, tmp_path_factory):
    """transformers' model, its folder, prefix and side."""
    make, prefix, side = TOWERS[request.param]
    model = randomised(make(), 1)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    processor(side).save_pretrained(folder)
    return model, folder, prefix, side


@pytest.fixture()
def record(tower, record_parity):
    model = tower[0]
    return lambda quantity, value: record_parity(f"encoders.{model.config.model_type}", type(model).__name__, quantity, value)


def native(folder, **changes):
    config, state, preprocess = load_encoder(folder)
    encoder = replace(config, **changes).build()
    encoder.load_state_dict(state)
    encoder.preprocess = preprocess
    return encoder


def pixels(side, images=3, seed=2):
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))


def patches_of(state, prefix):
    return state[:, prefix:].flatten(0, 1)


def difference(got, expected):
    assert got.shape == expected.shape and expected.isfinite().all()
    return (got - expected).abs().max().item()


@pytest.mark.parametrize("select", SELECTIONS, ids=str)
def test_features_equal_the_hidden_states_of_transformers(tower, select, record):
    model, folder, prefix, side = tower
    images, encoder = pixels(side), native(folder, select=select)
    with torch.no_grad():
        states = model(images, output_hidden_states=True).hidden_states
    got = encoder(images, need=encoder.spec.offers - {"keys", "cls_attn"})
    error = difference(got.patches, torch.cat([patches_of(states[s], prefix) for s in select], -1))
    record(f"hidden states {select}", error)
    assert error <= TOLERANCE, error
    assert got.grids == (Grid(4, 4),) * 3 and got.patches.shape[1] == encoder.spec.dim == WIDTH * len(select)
    for layer in select:
        assert difference(got.layers[layer], patches_of(states[layer], prefix)) <= TOLERANCE
    if prefix:
        assert difference(got.prefix, torch.cat([states[s][:, :prefix] for s in select], -1)) <= TOLERANCE
    assert encoder.spec.prefix == prefix and isinstance(encoder, Encoder)


def test_the_last_state_through_the_final_norm_is_last_hidden_state(tower, record):
    model, folder, prefix, side = tower
    images = pixels(side)
    with torch.no_grad():
        output = model(images, output_hidden_states=True)
    got = native(folder, select=(-1, -2), final_norm=True)(images).patches
    expected = torch.cat([patches_of(state, prefix) for state in (output.last_hidden_state, output.hidden_states[-2])], -1)
    error = difference(got, expected)
    record("last_hidden_state", error)
    assert error <= TOLERANCE, error


def test_gradients_equal_those_of_transformers(tower, record):
    model, folder, prefix, side = tower
    images, encoder = pixels(side), native(folder)
    encoder.frozen = False
    weights = torch.randn(3 * 16, WIDTH, generator=torch.Generator().manual_seed(3))
    model.zero_grad()
    state = model(images, output_hidden_states=True).hidden_states[-2]
    (patches_of(state, prefix) * weights).sum().backward()
    (encoder(images).patches * weights).sum().backward()
    theirs, errors = gradients_by_our_names(model), {}
    for name, value in encoder.named_parameters():
        expected = theirs[name]
        assert (value.grad is None) == (expected is None), name
        if expected is not None:
            assert expected.isfinite().all() and expected.abs().max() > 0, name
            errors[name] = difference(value.grad, expected) / expected.abs().max().item()
    record("gradients, relative", max(errors.values()))
    assert all(error <= 1e-4 for error in errors.values()), errors
    assert 25 <= len(errors) < len(list(encoder.parameters()))


def gradients_by_our_names(model):
    """transformers 5 renames a DINOv2 in memory and splits the gated MLP; its files keep the hub's names, and so do we."""
    names = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}
    found, gates = {}, {}
    for name, value in model.named_parameters():
        if model.config.model_type.startswith("siglip"):
            found[f"vision_model.{name.removeprefix('vision_model.')}"] = value.grad
            continue
        for theirs, ours in names.items():
            name = name.replace(f"attention.{theirs}.", f"attention.{ours}.")
        name = name.replace("mlp.down_proj.", "mlp.weights_out.")
        if "mlp.gate_proj." in name or "mlp.up_proj." in name:
            gates.setdefault(name.replace("gate_proj", "weights_in").replace("up_proj", "weights_in"), []).append(value.grad)
        else:
            found[name] = value.grad
    return found | {name: None if pair[0] is None else torch.cat(pair) for name, pair in gates.items()}


@pytest.mark.parametrize("select, layer", [((-2,), 1), ((-1,), 2), ((0,), 0), ((-4, 1), 0)], ids=str)
def test_keys_and_attention_of_cls_are_those_of_the_last_layer_that_runs(tower, select, layer, record):
    model, folder, prefix, side = tower
    model.set_attn_implementation("eager")
    images, encoder, seen = pixels(side), native(folder, select=select), []
    projections = [module for name, module in model.named_modules() if name.endswith("k_proj")]
    hook = projections[layer].register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        attentions = model(images, output_attentions=True).attentions
    hook.remove()
    got = encoder(images, need=encoder.spec.offers)
    keys = seen[0][:, prefix:].unflatten(-1, (HEADS, -1)).flatten(0, 1)
    error = difference(got.keys, keys)
    record(f"keys of layer {layer}", error)
    assert error <= TOLERANCE, error
    if prefix:
        error = difference(got.cls_attn, attentions[layer][:, :, 0, prefix:].mean(1).flatten())
        record(f"attention of CLS, layer {layer}", error)
        assert error <= TOLERANCE, error


def test_what_has_no_cls_offers_none_of_it(tower):
    _, folder, prefix, side = tower
    encoder = native(folder)
    assert ({"prefix", "cls_attn"} <= encoder.spec.offers) == bool(prefix)
    if not prefix:
        with pytest.raises(LmmError, match=r"'siglip' can't give \['cls_attn'\]; it offers \['keys', 'layers', 'patches'\]"):
            encoder(pixels(side), need=frozenset({"patches", "cls_attn"}))


def test_images_are_independent_and_none_give_no_rows(tower):
    _, folder, _, side = tower
    encoder, images = native(folder), pixels(side)
    alone = torch.cat([encoder(image[None]).patches for image in images])
    assert difference(encoder(images).patches, alone) <= TOLERANCE
    empty = encoder(images[:0], need=encoder.spec.offers)
    assert empty.patches.shape == (0, WIDTH) and empty.grids == () and empty.keys.shape == (0, HEADS, WIDTH // HEADS)


def test_no_layer_behind_the_selected_one_runs_and_frozen_keeps_nothing(tower):
    _, folder, _, side = tower
    encoder, calls, kept = native(folder), [], []
    layers = next(module for module in encoder.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS)
    for index, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        features = encoder(pixels(side), need=encoder.spec.offers)
    assert calls == [0, 1] and not kept and not features.patches.requires_grad


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (28, 28), (5, 40)])
def test_pixels_equal_those_of_the_image_processor_beside_the_weights(tower, size):
    _, folder, _, side = tower
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    theirs = processor(side)(image, return_tensors="pt")["pixel_values"][0]
    assert torch.equal(load_encoder(folder)[2](image), theirs)


def test_the_image_processor_says_the_size_of_a_dinov2(tower):
    model, folder, prefix, side = tower
    config = load_encoder(folder)[0]
    assert config.image_size == side
    if prefix:
        assert config.trained_size == model.config.image_size
        assert replace(config, image_size=21).build().spec.image_size == 21


def test_a_fit_of_ones_own_goes_before_the_files(tower):
    _, folder, _, _ = tower
    assert load_encoder(folder, fit="pad")[2].fit == "pad"
    assert load_encoder(folder)[2].fit in ("squash", "crop")


def test_config_survives_both_directions(tower):
    model, _, _, _ = tower
    ours = encoder_from_hf(model.config.to_dict())
    written = encoder_to_hf(ours)
    assert encoder_from_hf(written) == ours
    there = type(model.config)(**written).to_dict()
    assert {key: there[key] for key in written} == {key: model.config.to_dict()[key] for key in written}


@pytest.mark.parametrize("config", ["SiglipVisionConfig", "Siglip2VisionConfig", "Dinov2Config", "Dinov2WithRegistersConfig"])
def test_keys_left_out_have_the_defaults_of_transformers(config):
    import transformers

    defaults = getattr(transformers, config)()
    assert encoder_from_hf({"model_type": defaults.model_type}) == encoder_from_hf(defaults.to_dict())


def test_a_siglip_is_read_out_of_the_whole_model_and_out_of_a_llava(tmp_path):
    from transformers import (
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        SiglipConfig,
        SiglipModel,
    )

    tower = siglip()
    text = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    both = SiglipConfig(vision_config=tower.config.to_dict(), text_config={**text, "projection_size": WIDTH})
    language = LlamaConfig(**text)
    llava = LlavaConfig(vision_config=tower.config, text_config=language, vision_feature_select_strategy="full", image_token_index=19)
    for index, model in enumerate((tower, SiglipModel(both), LlavaForConditionalGeneration(llava))):
        randomised(model, index).save_pretrained(tmp_path / str(index))
        config, state, _ = load_encoder(tmp_path / str(index))
        table = next(v for name, v in model.state_dict().items() if v.shape == (16, WIDTH) and "position" in name)
        assert torch.equal(state["vision_model.embeddings.position_embedding.weight"], table)
        assert sorted(state) == sorted(config.build().state_dict())


@pytest.mark.parametrize(
    "values, message",
    [
        ({"model_type": "vit"}, "model_type 'vit', expected 'clip_vision_model' or"),
        ({"model_type": "siglip", "vision_config": {"model_type": "resnet"}}, "vision_config, has model_type 'resnet'"),
        ({"model_type": "siglip_vision_model", "hidden_act": "relu"}, "hidden_act='relu'"),
        ({"model_type": "dinov2", "num_channels": 1, "hidden_act": "silu"}, "hidden_act='silu'.*num_channels=1"),
        ({"model_type": "dinov2", "hidden_size": -3}, "positive numbers.*hidden_size=-3"),
        ({"model_type": "dinov2", "num_attention_heads": 5}, "dim 768 is not a multiple of heads 5"),
    ],
)
def test_what_the_native_towers_can_not_compute_is_refused(values, message):
    with pytest.raises(LmmError, match=message):
        encoder_from_hf(values)


@pytest.mark.parametrize("make, strategy", [(siglip, "full"), (dinov2, "default")])
def test_a_llava_of_transformers_with_another_tower_is_loaded_with_equal_logits(make, strategy, tmp_path, record_parity):
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    import lmmblocks as lb
    from lmmblocks.plans.host import plan_splice
    from lmmblocks.spec import IMAGE_TOKEN, Batch

    tower = make()
    text = LlamaConfig(hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    options = dict(vision_feature_select_strategy=strategy, vision_feature_layer=-2, image_token_index=49)
    theirs = randomised(LlavaForConditionalGeneration(LlavaConfig(vision_config=tower.config, text_config=text, **options)), 7)
    theirs.save_pretrained(tmp_path)
    ours = lb.load(tmp_path)
    assert type(ours.encoder).__name__ == {"full": "SigLIP", "default": "DINOv2"}[strategy]
    images = pixels(tower.config.image_size, 1)
    plan = plan_splice([[1, 5, IMAGE_TOKEN, 7, 9, 3]], [[16]])
    with torch.no_grad():
        got = ours.logits(Batch(images, (Grid(4, 4),), plan))
        expected = theirs(input_ids=torch.tensor([[1, 5, *[49] * 16, 7, 9, 3]]), pixel_values=images).logits[0]
    error = difference(got, expected)
    assert expected.std() > 0.1
    record_parity(f"llava with {tower.config.model_type}", "LlavaForConditionalGeneration", "logits", error)
    assert error <= TOLERANCE, error


def test_the_first_patch_of_a_tower_without_cls_is_never_dropped():
    from transformers import LlavaConfig

    from lmmblocks.weights.systems.llava_hf import llava_from_hf, llava_to_hf

    values = LlavaConfig(vision_config=siglip().config, vision_feature_select_strategy="full").to_dict()
    config = llava_from_hf(values)
    assert llava_to_hf(config, image_token=32000)["vision_feature_select_strategy"] == "full"
    with pytest.raises(LmmError, match="vision_feature_select_strategy='default' .expected 'full'"):
        llava_from_hf({**values, "vision_feature_select_strategy": "default"})
    with pytest.raises(LmmError, match="no place for DINOv2 with registers"):
        llava_from_hf({**values, "vision_config": with_registers().config.to_dict()})
