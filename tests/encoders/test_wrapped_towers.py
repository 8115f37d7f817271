"""Towers of timm and open_clip: their own modules, watched by hooks, are the reference; all weights are random and all models tiny."""

import importlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.builder import build
from lmmblocks.config import LMMConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.open_clip import OpenCLIPConfig
from lmmblocks.encoders.timm import TimmConfig
from lmmblocks.spec import Encoder, Grid, LmmError
from lmmblocks.weights import load_encoder

LAYERS, WIDTH, HEADS, SIDE, PATCH = 3, 32, 4, 32, 8
TOLERANCE = 1e-5
TINY = {"embed_dim": WIDTH, "depth": LAYERS, "num_heads": HEADS, "patch_size": PATCH}
VISION = {"image_size": SIDE, "layers": LAYERS, "width": WIDTH, "head_width": WIDTH // HEADS, "patch_size": PATCH}
CLIP = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}}


def package(name):
    """Import an optional package; where it is missing or doesn't fit torch, the test is left out."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"the optional package {name} can't be imported here: {error}")


def vit(**changes):
    return TimmConfig("vit_tiny_patch16_224", image_size=SIDE, options={**TINY, "qkv_bias": True}, **changes)


def registers(**changes):
    return TimmConfig("vit_small_patch14_reg4_dinov2", image_size=SIDE, options=TINY, **changes)


def siglip(**changes):
    return TimmConfig("vit_base_patch16_siglip_224", image_size=SIDE, options=TINY, **changes)


def qk_norm(**changes):
    return TimmConfig("vit_tiny_patch16_224", image_size=SIDE, options={**TINY, "qk_norm": True}, **changes)


def eva(**changes):
    return TimmConfig("eva02_tiny_patch14_224", image_size=SIDE, options=TINY, **changes)


def clip(**changes):
    return OpenCLIPConfig(architecture=CLIP, **changes)


def trunk(**changes):
    vision = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "token", "timm_proj": "linear"}
    return OpenCLIPConfig(architecture={"embed_dim": 16, "vision_cfg": vision}, **changes)


# name -> (config, package, tokens before the patches, has keys, module that holds the blocks)
TOWERS = {
    "timm-vit": (vit, "timm", 1, True, "blocks"),
    "timm-registers": (registers, "timm", 5, True, "blocks"),
    "timm-siglip": (siglip, "timm", 0, True, "blocks"),
    "timm-qk-norm": (qk_norm, "timm", 1, True, "blocks"),
    "timm-eva": (eva, "timm", 1, False, "blocks"),
    "open_clip-vit": (clip, "open_clip", 1, True, "transformer.resblocks"),
}


@pytest.fixture(scope="module", params=TOWERS)
def tower(request):
    """A function from changes to the encoder, the foreign model, prefix, whether it has keys, and its blocks."""
    make, name, prefix, has_keys, path = TOWERS[request.param]
    package(name)

    def built(**changes):
        torch.manual_seed(0)
        encoder = make(**changes).build().eval()
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
        model = encoder.model if hasattr(encoder, "model") else encoder.visual
        return encoder, model, prefix, has_keys, model.get_submodule(path)

    return built


def pixels(images=3, side=SIDE, seed=2):
    return torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))


def watched(model, blocks, images):
    """Every hidden state (I, prefix + P, C) of the foreign model, embeddings first."""
    states, hooks = [], []
    hooks.append(blocks[0].register_forward_pre_hook(lambda block, given: states.append(given[0])))
    hooks += [block.register_forward_hook(lambda block, given, result: states.append(result)) for block in blocks]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return states


def difference(got, expected):
    assert got.shape == expected.shape and expected.isfinite().all()
    return (got - expected).abs().max().item()


@pytest.mark.parametrize("select", [(-2,), (-1,), (0,), (2, -1), (-4, 1, -2)], ids=str)
def test_features_equal_the_hidden_states_of_the_foreign_model(tower, select):
    encoder, model, prefix, has_keys, blocks = tower(select=select)
    states = watched(model, blocks, pixels())
    got = encoder(pixels(), need=encoder.spec.offers - {"keys", "cls_attn"})
    expected = torch.cat([states[s][:, prefix:].flatten(0, 1) for s in select], -1)
    error = difference(got.patches, expected)
    assert error <= TOLERANCE, error
    assert got.grids == (Grid(4, 4),) * 3 and encoder.spec.dim == WIDTH * len(select) and encoder.spec.prefix == prefix
    for layer in select:
        assert difference(got.layers[layer], states[layer][:, prefix:].flatten(0, 1)) <= TOLERANCE
    if prefix:
        assert difference(got.prefix, torch.cat([states[s][:, :prefix] for s in select], -1)) <= TOLERANCE
    assert isinstance(encoder, Encoder) and ("keys" in encoder.spec.offers) == has_keys


def test_gradients_reach_the_layers_that_run_and_frozen_keeps_nothing(tower):
    encoder, model, prefix, _, blocks = tower()
    assert not encoder(pixels()).patches.requires_grad
    encoder.frozen = False
    encoder(pixels()).patches.square().sum().backward()
    assert all(value.grad is not None for block in blocks[:2] for value in block.parameters())
    assert all(value.grad is None for value in blocks[2].parameters())


def test_keys_and_attention_of_cls_equal_the_formula_on_the_foreign_projections(tower):
    encoder, model, prefix, has_keys, blocks = tower()
    if not has_keys:
        with pytest.raises(LmmError, match="can't give .'keys'"):
            encoder(pixels(), need=frozenset({"patches", "keys"}))
        return
    attention, seen = blocks[1].attn, []
    hook = attention.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    watched(model, blocks, pixels())
    hook.remove()
    query, keys = projections(attention, seen[0])
    got = encoder(pixels(), need=encoder.spec.offers)
    assert difference(got.keys, keys[:, prefix:].flatten(0, 1)) <= TOLERANCE
    if "cls_attn" in encoder.spec.offers:
        scores = torch.stack([query[:, :, n] @ keys[:, :, n].transpose(1, 2) for n in range(HEADS)], 1) / (WIDTH // HEADS) ** 0.5
        expected = scores.softmax(-1)[:, :, 0, prefix:].mean(1).flatten()
        assert difference(got.cls_attn, expected) <= TOLERANCE
    assert ("cls_attn" in encoder.spec.offers) == bool(prefix)


def projections(attention, normed):
    """Queries and keys (I, T, N, E), a slice of the joint matrix for each."""
    if isinstance(attention, torch.nn.MultiheadAttention):
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        norms = (lambda x: x, lambda x: x)
    else:
        weight, bias = attention.qkv.weight, attention.qkv.bias
        norms = (attention.q_norm, attention.k_norm)
    found = []
    for part, norm in enumerate(norms):
        rows = slice(part * WIDTH, (part + 1) * WIDTH)
        projected = normed @ weight[rows].T + (0 if bias is None else bias[rows])
        found.append(norm(projected.reshape(*normed.shape[:2], HEADS, -1)).detach())
    return found


def test_images_are_independent_and_none_give_no_rows(tower):
    encoder, *_ = tower()
    alone = torch.cat([encoder(image[None]).patches for image in pixels()])
    assert difference(encoder(pixels()).patches, alone) <= TOLERANCE
    empty = encoder(pixels()[:0], need=encoder.spec.offers)
    assert empty.patches.shape == (0, WIDTH) and empty.grids == ()
    with pytest.raises(LmmError, match=r"needs pixels \(I, 3, 32, 32\), found \(1, 3, 16, 16\)"):
        encoder(pixels(1, 16))


def test_a_tower_of_open_clip_with_clips_weights_equals_clip():
    package("open_clip")
    torch.manual_seed(0)
    ours = CLIPConfig(dim=WIDTH, layers=LAYERS, heads=HEADS, mlp_dim=4 * WIDTH, image_size=SIDE, patch=PATCH).build()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs = clip(quick_gelu=True).build()
    theirs.visual.load_state_dict(in_open_clip_names(ours.state_dict()), strict=False)
    need = ours.spec.offers
    expected, got = ours(pixels(), need=need), theirs(pixels(), need=need)
    for name in ("patches", "prefix", "keys", "cls_attn"):
        assert difference(getattr(got, name), getattr(expected, name)) <= 2 * TOLERANCE, name
    assert difference(clip().build()(pixels()).patches, expected.patches) > 1e-3


def in_open_clip_names(state):
    """Hugging Face's CLIP under open_clip's names (``convert_clip_original_pytorch_to_hf.py``, read backwards)."""
    state = {name.removeprefix("vision_model."): value for name, value in state.items()}
    found = {
        "class_embedding": state["embeddings.class_embedding"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
    }
    for end in ("weight", "bias"):
        found |= {f"ln_pre.{end}": state[f"pre_layrnorm.{end}"], f"ln_post.{end}": state[f"post_layernorm.{end}"]}
        for layer in range(LAYERS):
            theirs, ours = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            found[f"{theirs}.attn.in_proj_{end}"] = torch.cat([state[f"{ours}.self_attn.{part}_proj.{end}"] for part in "qkv"])
            pairs = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            pairs |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            found |= {f"{theirs}.{a}.{end}": state[f"{ours}.{b}.{end}"] for a, b in pairs.items()}
    return found


def test_towers_that_open_clip_takes_from_timm_are_taken_apart_as_timms():
    package("open_clip")
    with torch.device("meta"):
        encoder = trunk().build()
    assert (encoder.spec.dim, encoder.spec.prefix, encoder.spec.patch) == (192, 1, 16)
    assert all(name.startswith("visual.trunk.") or name.startswith("visual.head.") for name in encoder.state_dict())


def test_activation_and_preprocessing_follow_the_tag():
    open_clip = package("open_clip")
    with torch.device("meta"):
        openai, laion = (OpenCLIPConfig("ViT-B-32", tag).build() for tag in ("openai", "laion2b_s34b_b79k"))
        siglip = OpenCLIPConfig("ViT-SO400M-14-SigLIP-384", "webli").build()
    assert [type(tower.visual.transformer.resblocks[0].mlp.gelu).__name__ for tower in (openai, laion)] == ["QuickGELU", "GELU"]
    assert (siglip.preprocess.fit, siglip.preprocess.size_px, siglip.preprocess.std) == ("squash", 384, (0.5, 0.5, 0.5))
    assert siglip.preprocess.grid(9, 9) == Grid(27, 27) and siglip.spec.prefix == 0
    assert openai.preprocess.mean == open_clip.constants.OPENAI_DATASET_MEAN


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (50, 50)])
def test_pixels_equal_the_transforms_of_timm_and_open_clip(size):
    timm, open_clip = package("timm"), package("open_clip")
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    encoder = TimmConfig("vit_tiny_patch16_224", image_size=36, options={**TINY, "patch_size": 9}).build()
    theirs = timm.data.create_transform(**{**timm.data.resolve_model_data_config(encoder.model), "input_size": (3, 36, 36)})
    assert encoder.preprocess.resize_px == 40
    assert difference(encoder.preprocess(image), theirs(image)) <= 1e-6
    for mode, mean in (("shortest", 0.4), ("squash", 0.5)):
        transform = open_clip.image_transform(SIDE, False, (mean,) * 3, (0.3,) * 3, resize_mode=mode, interpolation="bicubic")
        made = importlib.import_module("lmmblocks.encoders.open_clip").preprocess_of(
            {"resize_mode": mode, "mean": (mean,) * 3, "std": (0.3,) * 3, "interpolation": "bicubic"}, clip().build().parts
        )
        assert difference(made(image), transform(image)) <= 1e-6


def saved_timm(folder):
    """A timm model as timm writes it, and its encoder's weights."""
    timm = package("timm")
    torch.manual_seed(3)
    model = timm.create_model("vit_tiny_patch16_224", img_size=SIDE, num_classes=0, **TINY)
    timm.models.save_for_hf(model, folder, model_args={**TINY, "img_size": SIDE})
    return {f"model.{name}": value for name, value in model.state_dict().items()}


def saved_open_clip(folder):
    """A whole CLIP of open_clip as its hub folders hold it, and its tower's weights."""
    open_clip = package("open_clip")
    from safetensors.torch import save_file

    torch.manual_seed(4)
    model = open_clip.CLIP(**CLIP)
    preprocess = {"mean": [0.4] * 3, "std": [0.3] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP, "preprocess_cfg": preprocess}))
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return {f"visual.{name}": value for name, value in model.visual.state_dict().items()}


@pytest.mark.parametrize("save", [saved_timm, saved_open_clip])
def test_folders_of_both_are_read_and_the_model_survives_saving(save, tiny_config, tiny_tokenizer, conversations, tmp_path):
    state = save(tmp_path / "tower")
    config, read, preprocess = load_encoder(tmp_path / "tower")
    assert sorted(read) == sorted(state) and all(torch.equal(read[name], value) for name, value in state.items())
    assert preprocess.size_px == SIDE and load_encoder(tmp_path / "tower", fit="pad")[2].fit == "pad"
    if save is saved_open_clip:
        assert (preprocess.fit, preprocess.resample, preprocess.mean) == ("squash", "bilinear", (0.4,) * 3)
    model = build(tiny_config, encoder=str(tmp_path / "tower"), decoder=tiny_config.decoder, tokenizer=tiny_tokenizer)
    assert torch.equal(model.encoder.state_dict()[max(state)], state[max(state)])
    batch = lb.collate(conversations, model)
    loss = model.loss(batch)
    model.save(tmp_path / "out", format="native")
    for file in (tmp_path / "tower").iterdir():
        file.unlink()
    again = lb.load(tmp_path / "out")
    assert torch.equal(again.loss(batch), loss) and again.encoder.preprocess == model.encoder.preprocess
    assert replace(again.config.encoder, pretrained=None) == replace(config, pretrained=None)


def test_a_checkpoint_file_is_read_by_name_and_a_missing_one_is_named(tiny_config, tmp_path):
    package("timm")
    from safetensors.torch import save_file

    state = saved_timm(tmp_path / "tower")
    save_file({name.removeprefix("model."): value for name, value in state.items()}, tmp_path / "tiny.safetensors")
    shape = TimmConfig("vit_tiny_patch16_224", str(tmp_path / "tiny.safetensors"), SIDE, options=TINY)
    whole = LMMConfig(encoder=shape, decoder=tiny_config.decoder)
    assert all(torch.equal(build(whole).encoder.state_dict()[name], value) for name, value in state.items())
    assert not torch.equal(build(whole, weights="random").encoder.state_dict()["model.pos_embed"], state["model.pos_embed"])
    with pytest.raises(LmmError, match="is neither 'hub' nor a file or folder that is there"):
        build(replace(whole, encoder=replace(shape, pretrained=str(tmp_path / "gone"))))


@pytest.mark.parametrize(
    "name, config, message",
    [
        ("timm", TimmConfig("vit_bse_patch16_224"), "timm has no model 'vit_bse_patch16_224'; did you mean 'vit_base_patch16_224'"),
        ("timm", TimmConfig("resnet18"), r"'resnet18' \(ResNet\) is no vision transformer: it has no blocks, patch_embed"),
        ("timm", TimmConfig("vit_tiny_patch16_224", options={"depht": 2}), "timm can't create .*depht"),
        ("timm", vit(select=(-5,)), r"TimmConfig: select \(-5,\) must name hidden states 0..3 \(or -4..-1\)"),
        ("open_clip", OpenCLIPConfig("ViT-B-33"), "open_clip has no model 'ViT-B-33'; did you mean 'ViT-B-32'"),
        ("open_clip", OpenCLIPConfig("RN50"), r"'RN50' \(ModifiedResNet\) is no vision transformer"),
        ("open_clip", OpenCLIPConfig(architecture={"embed_dim": 3}), r"architecture lacks \['vision_cfg'\]"),
    ],
)
def test_what_is_no_tower_of_theirs_is_refused(name, config, message):
    package(name)
    with pytest.raises(LmmError, match=message), torch.device("meta"):
        config.build()


@pytest.mark.parametrize("changes", [{}, {"model": "ViT-B-32", "architecture": CLIP}])
def test_a_tower_of_open_clip_needs_a_name_or_an_architecture(changes):
    with pytest.raises(LmmError, match="give either model, such as 'ViT-B-32', or architecture"):
        OpenCLIPConfig(**changes)


@pytest.mark.parametrize("name, config", [("timm", vit()), ("open_clip", clip())])
def test_without_the_package_the_message_names_the_extra(name, config, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LmmError, match=rf"encoder '{name}' needs the package '{name}': pip install 'lmmblocks\[{name}\]'"):
        config.build()
