"""SigLIP 2 for images of any shape: packed here, padded in transformers, the same features."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.encoders.siglip2_naflex import NaFlexConfig
from lmmblocks.images.kinds import preprocess_from_dict, preprocess_to_dict
from lmmblocks.images.native import NativePreprocess
from lmmblocks.images.pixels import PatchPixels, join_pixels
from lmmblocks.spec import Encoder, Grid, LmmError
from lmmblocks.weights import load_encoder

LAYERS, WIDTH, HEADS, PATCH, MOST = 3, 32, 4, 7, 20
TOLERANCE = 1e-5
SIZES = [(50, 31), (20, 90), (64, 64), (300, 12), (1, 1)]


def picture(size, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


PICTURES = [picture(size, index) for index, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def processor():
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    return Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=MOST)


@pytest.fixture(scope="module")
def tower(processor, tmp_path_factory):
    """transformers' model with weights large enough that every row depends on what it sees, and its folder."""
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    shape = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    model = Siglip2VisionModel(Siglip2VisionConfig(**shape, patch_size=PATCH, num_patches=16))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.1 * noise if "norm" in name and name.endswith("weight") else 0.2 * noise)
    folder = tmp_path_factory.mktemp("naflex")
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, folder


def native(folder, **changes):
    config, state, preprocess = load_encoder(folder)
    encoder = replace(config, **changes).build()
    encoder.load_state_dict(state)
    encoder.preprocess = preprocess
    return encoder


def packed(padded_IPC, grids):
    return torch.cat([rows[: grid.rows] for rows, grid in zip(padded_IPC, grids)])


@pytest.mark.parametrize("select", [(-2,), (-1,), (0,), (1, -2)], ids=str)
def test_packed_features_equal_the_padded_ones_of_transformers(tower, processor, select, record_parity):
    model, folder = tower
    encoder = native(folder, select=select)
    pixels, grids = encoder.preprocess.batch(PICTURES)
    with torch.no_grad():
        states = model(**processor(PICTURES, return_tensors="pt"), output_hidden_states=True).hidden_states
    got = encoder(pixels, need=encoder.spec.offers)
    expected = torch.cat([packed(states[s], grids) for s in select], -1)
    error = (got.patches - expected).abs().max().item()
    record_parity("encoders.siglip2_naflex", "Siglip2VisionModel", f"hidden states {select}", error)
    assert got.patches.shape == expected.shape and error <= TOLERANCE, error
    assert got.grids == grids and len({*grids}) > 3 and isinstance(encoder, Encoder)
    for layer in select:
        assert (got.layers[layer] - packed(states[layer], grids)).abs().max() <= TOLERANCE


def test_gradients_equal_those_of_transformers(tower, processor, record_parity):
    model, folder = tower
    encoder = native(folder)
    encoder.frozen = False
    pixels, grids = encoder.preprocess.batch(PICTURES)
    weights = torch.randn(sum(grid.rows for grid in grids), WIDTH, generator=torch.Generator().manual_seed(3))
    states = model(**processor(PICTURES, return_tensors="pt"), output_hidden_states=True).hidden_states
    (packed(states[-2], grids) * weights).sum().backward()
    (encoder(pixels).patches * weights).sum().backward()
    expected = {f"vision_model.{name}": value.grad for name, value in model.named_parameters()}
    worst = 0.0
    for name, value in encoder.named_parameters():
        assert (value.grad is None) == (expected[name] is None), name
        if value.grad is not None:
            scale = max(1.0, expected[name].abs().max().item())
            worst = max(worst, (value.grad - expected[name]).abs().max().item() / scale)
    record_parity("encoders.siglip2_naflex", "Siglip2VisionModel", "gradients, relative", worst)
    assert worst <= 1e-4, worst


def test_keys_are_those_of_the_last_layer_that_runs(tower, processor):
    model, folder = tower
    encoder, seen = native(folder), []
    pixels, grids = encoder.preprocess.batch(PICTURES)
    hook = model.encoder.layers[1].self_attn.k_proj.register_forward_hook(lambda module, given, result: seen.append(result))
    with torch.no_grad():
        model(**processor(PICTURES, return_tensors="pt"))
    hook.remove()
    keys = encoder(pixels, need=frozenset({"patches", "keys"})).keys
    expected = packed(seen[0], grids).unflatten(-1, (HEADS, -1))
    assert keys.shape == expected.shape and (keys - expected).abs().max() <= TOLERANCE


def test_pixels_and_grids_equal_those_of_transformers(processor):
    preprocess = NativePreprocess(PATCH, MOST)
    theirs = processor(PICTURES, return_tensors="pt")
    pixels, grids = preprocess.batch(PICTURES)
    assert [[grid.h, grid.w] for grid in grids] == theirs["spatial_shapes"].tolist()
    assert torch.equal(pixels.rows, packed(theirs["pixel_values"], grids))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([1, 20, 256, 1024]))
def test_grids_equal_those_of_transformers_and_stay_within_the_limit(width, height, most):
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    grid = NativePreprocess(16, most).grid(width, height)
    assert (grid.h * 16, grid.w * 16) == get_image_size_for_max_num_patches(height, width, 16, most)
    assert 1 <= grid.rows <= most


def test_images_are_independent_and_none_give_no_rows(tower):
    encoder = native(tower[1])
    pixels, _ = encoder.preprocess.batch(PICTURES)
    alone = torch.cat([encoder(encoder.preprocess.batch([image])[0]).patches for image in PICTURES])
    assert (encoder(pixels).patches - alone).abs().max() <= TOLERANCE
    empty = encoder(encoder.preprocess.batch([])[0], need=encoder.spec.offers)
    assert empty.patches.shape == (0, WIDTH) and empty.grids == ()


def test_pixels_are_cut_joined_and_moved_like_a_tensor():
    preprocess = NativePreprocess(PATCH, MOST)
    pixels, grids = preprocess.batch(PICTURES)
    for chosen in (slice(1, 3), [4, 0], torch.tensor([2])):
        indices = list(range(5))[chosen] if isinstance(chosen, slice) else [int(i) for i in chosen]
        direct, _ = preprocess.batch([PICTURES[i] for i in indices])
        assert same(pixels[chosen], direct)
    assert same(join_pixels([pixels[:2], pixels[2:]]), pixels) and len(pixels[:0]) == 0
    assert pixels.to("meta").boundaries.is_meta and len(pixels) == 5
    with pytest.raises(LmmError, match="found 3 patches, but the images have .4."):
        PatchPixels.of(torch.zeros(3, 2), [Grid(2, 2)])


def same(one, other):
    return one.grids == other.grids and torch.equal(one.rows, other.rows) and torch.equal(one.boundaries, other.boundaries)


def test_preprocessing_survives_json_pickle_and_transformers(tower):
    preprocess = NativePreprocess(PATCH, MOST, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bicubic")
    assert preprocess_from_dict(json.loads(json.dumps(preprocess_to_dict(preprocess)))) == preprocess
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    assert NativePreprocess.from_hf_processor_config(preprocess.to_hf_processor_config()) == preprocess
    assert load_encoder(tower[1])[2] == NativePreprocess(PATCH, MOST)
    with pytest.raises(LmmError, match="do_resize=false.*resample=0"):
        NativePreprocess.from_hf_processor_config({"do_resize": False, "resample": 0})


def test_a_model_trains_generates_and_is_saved_with_images_of_unequal_shapes(tiny_config, tiny_tokenizer, conversations, tmp_path):
    shape = NaFlexConfig(dim=16, layers=2, heads=2, mlp_dim=24, patch=14, positions=16, max_patches=6)
    config = LMMConfig(encoder=shape, decoder=tiny_config.decoder)
    model = build(config, tokenizer=tiny_tokenizer, weights="random")
    batch = lb.collate(conversations, model)
    assert len({*batch.grids}) >= 1 and all(grid.rows <= 6 for grid in batch.grids)
    model.encoder.frozen = False
    model.train().loss(batch).backward()
    assert model.encoder.vision_model.embeddings.position_embedding.weight.grad.abs().sum() > 0
    together = model.eval().loss(batch, reduction="none")
    alone = torch.cat([model.loss(lb.collate([sample], model), reduction="none") for sample in conversations])
    torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
    answer = model.generate("What is it? <image>", images=[PICTURES[3]], max_new_tokens=4, temperature=0)
    model.save(tmp_path / "out", format="native")
    again = lb.load(tmp_path / "out")
    assert again.config.encoder == shape and again.encoder.preprocess == model.encoder.preprocess
    assert again.generate("What is it? <image>", images=[PICTURES[3]], max_new_tokens=4, temperature=0) == answer
    torch.testing.assert_close(again.loss(batch), model.loss(batch), atol=0, rtol=0)


def test_pixels_of_another_preprocessing_are_refused():
    encoder = NaFlexConfig(dim=8, layers=1, heads=2, mlp_dim=8, patch=PATCH, positions=16).build()
    with pytest.raises(LmmError, match="needs PatchPixels of width 147, found Tensor: use its own preprocess"):
        encoder(torch.zeros(1, 3, 28, 28))
    with pytest.raises(LmmError, match="found patches of width 588"):
        encoder(NativePreprocess(14, MOST).batch(PICTURES)[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"positions": 15}, "positions 15 is not a square number"),
        ({"heads": 5, "activation": "relu"}, "dim 768 is not a multiple of heads 5; activation 'relu' is none of"),
        ({"select": (13,)}, r"select \(13,\) must name hidden states 0..12"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(LmmError, match=message):
        NaFlexConfig(**changes)
