"""Every encoder that has a name: full size on the meta device, against transformers' models and the tables of open_clip and timm."""

from dataclasses import asdict, replace

import pytest
import torch

from lmmblocks.builder import build
from lmmblocks.presets import ENCODERS
from lmmblocks.spec import LmmError
from lmmblocks.weights.parts.hf_encoders import encoder_from_hf, encoder_to_hf

MODELS = {
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "siglip2_vision_model": ("Siglip2VisionConfig", "Siglip2VisionModel"),
    "blip_2_vision_model": ("Blip2VisionConfig", "Blip2VisionModel"),
    "dinov2": ("Dinov2Config", "Dinov2Model"),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"),
}
ONE_EACH = {repr(replace(shape, select=(-2,))): name for name, (shape, _) in ENCODERS.items()}


def in_transformers(shape):
    """Names and shapes of transformers' model, under the names its files have."""
    import transformers

    values = encoder_to_hf(shape)
    config, model = (getattr(transformers, name) for name in MODELS[values["model_type"]])
    with torch.device("meta"):
        state = model(config(**values)).state_dict()
    found = {}
    for name, value in state.items():
        if name.endswith(".position_ids"):
            continue
        if not values["model_type"].startswith("dinov2"):
            found[f"vision_model.{name.removeprefix('vision_model.')}"] = tuple(value.shape)
            continue
        for theirs, ours in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value"), ("o_proj", "output.dense")):
            name = name.replace(f"attention.{theirs}.", f"attention.{ours}.")
        if "mlp.up_proj." in name:
            continue
        rows = 2 if "mlp.gate_proj." in name else 1
        name = name.replace("mlp.gate_proj.", "mlp.weights_in.").replace("mlp.down_proj.", "mlp.weights_out.")
        found[name] = (rows * value.shape[0], *value.shape[1:])
    return found


@pytest.mark.parametrize("name", sorted(ONE_EACH.values()))
def test_names_and_shapes_equal_those_of_transformers(name):
    shape, _ = ENCODERS[name]
    with torch.device("meta"):
        ours = {key: tuple(value.shape) for key, value in shape.build().state_dict().items()}
    theirs = in_transformers(shape)
    assert ours == theirs, {key: (ours.get(key), theirs.get(key)) for key in ours.keys() ^ theirs.keys()}


@pytest.mark.parametrize(
    "name, config, changes",
    [
        ("clip-vit-b32-224", "CLIPVisionConfig", {}),
        ("siglip-base-224", "SiglipVisionConfig", {}),
        ("siglip2-base-naflex", "Siglip2VisionConfig", {}),
        ("blip2-vit-g-224", "InstructBlipVisionConfig", {}),
        ("dinov2-base", "Dinov2Config", {"image_size": 518}),
        ("dinov2-base-reg", "Dinov2WithRegistersConfig", {"image_size": 518, "patch_size": 14}),
    ],
)
def test_the_base_models_are_the_defaults_of_transformers(name, config, changes):
    import transformers

    theirs = encoder_from_hf(getattr(transformers, config)(**changes).to_dict())
    kept = {key: getattr(ENCODERS[name][0], key) for key in theirs.choices}
    assert replace(theirs, **kept) == ENCODERS[name][0]


@pytest.mark.parametrize(
    "name, model",
    [
        ("clip-vit-b32-224", "ViT-B-32-quickgelu"),
        ("clip-vit-b16-224", "ViT-B-16-quickgelu"),
        ("clip-vit-l-224", "ViT-L-14-quickgelu"),
        ("clip-vit-l-336", "ViT-L-14-336-quickgelu"),
        ("clip-laion-b32-224", "ViT-B-32"),
        ("clip-laion-b16-224", "ViT-B-16"),
        ("clip-laion-l-224", "ViT-L-14"),
        ("clip-laion-h-224", "ViT-H-14"),
        ("clip-laion-g-224", "ViT-g-14"),
        ("clip-laion-bigg-224", "ViT-bigG-14"),
    ],
)
def test_clip_shapes_are_those_of_open_clip(name, model):
    open_clip = pytest.importorskip("open_clip", reason="optional extra")
    theirs, shape = open_clip.get_model_config(model), ENCODERS[name][0]
    vision = theirs["vision_cfg"]
    assert (shape.dim, shape.layers, shape.patch) == (vision["width"], vision["layers"], vision["patch_size"])
    assert shape.heads == vision["width"] // vision.get("head_width", 64)
    assert shape.mlp_dim == int(vision["width"] * vision.get("mlp_ratio", 4.0))
    assert shape.image_size == vision["image_size"]
    assert shape.activation == ("quick_gelu" if theirs.get("quick_gelu") else "gelu")


@pytest.mark.parametrize(
    "name, model",
    [
        ("siglip-so400m-384", "vit_so400m_patch14_siglip_384"),
        ("siglip-large-384", "vit_large_patch16_siglip_384"),
        ("siglip-base-512", "vit_base_patch16_siglip_512"),
        ("siglip2-base32-256", "vit_base_patch32_siglip_256"),
        ("siglip2-so400m16-512", "vit_so400m_patch16_siglip_512"),
        ("siglip2-giant-384", "vit_giantopt_patch16_siglip_384"),
        ("dinov2-small", "vit_small_patch14_dinov2"),
        ("dinov2-base-reg", "vit_base_patch14_reg4_dinov2"),
        ("dinov2-large", "vit_large_patch14_dinov2"),
        ("dinov2-giant", "vit_giant_patch14_dinov2"),
        ("dinov2-giant-reg", "vit_giant_patch14_reg4_dinov2"),
    ],
)
def test_siglip_and_dinov2_shapes_are_those_of_timm(name, model):
    timm = pytest.importorskip("timm", reason="optional extra")
    shape = ENCODERS[name][0]
    with torch.device("meta"):
        theirs = timm.create_model(model, num_classes=0)
    side = getattr(shape, "trained_size", shape.image_size)
    assert theirs.patch_embed.img_size == (side, side) and theirs.patch_embed.patch_size == (shape.patch,) * 2
    assert (theirs.embed_dim, len(theirs.blocks)) == (shape.dim, shape.layers)
    assert theirs.blocks[0].attn.num_heads == shape.heads
    last = theirs.blocks[0].mlp.fc2
    assert last.in_features == shape.mlp_dim


def test_a_word_swaps_the_encoder_of_a_preset():
    model = build("llava15-tiny", encoder="siglip-so400m-384", weights="random", device="meta")
    assert (model.encoder.spec.dim, model.encoder.spec.patch, model.encoder.spec.prefix) == (1152, 14, 0)
    assert model.config.encoder == ENCODERS["siglip-so400m-384"][0]
    assert model.config.encoder_source == "google/siglip-so400m-patch14-384"
    assert model.projector.linear_1.in_features == 1152
    preprocess = model.encoder.preprocess
    assert (preprocess.fit, preprocess.size_px, preprocess.mean) == ("squash", 384, (0.5, 0.5, 0.5))
    assert preprocess.grid(640, 480).rows == 27 * 27
    assert type(model.config).from_json(model.config.to_json()) == model.config


@pytest.mark.parametrize("name", ["clip-laion-h-224", "siglip2-giant-384", "siglip2-base-naflex", "dinov2-giant-reg"])
def test_other_words_compose_too(name):
    model = build("llava15-7b", encoder=name, weights="random", device="meta")
    assert model.encoder.spec.dim == ENCODERS[name][0].dim
    assert type(model.config).from_json(model.config.to_json()) == model.config


def test_no_source_has_two_names_and_a_mistyped_word_gets_the_closest():
    sources = [source for _, source in ENCODERS.values()]
    assert len(sources) == len({*sources})
    with pytest.raises(LmmError, match="did you mean 'siglip-so400m-384'"):
        build("llava15-tiny", encoder="siglip-so400-384", weights="random", device="meta")


def test_every_shape_survives_transformers_config():
    for shape, _ in ENCODERS.values():
        back = encoder_from_hf(encoder_to_hf(shape))
        kept = {key: getattr(shape, key) for key in shape.choices}
        assert asdict(replace(back, **kept)) == asdict(shape)
