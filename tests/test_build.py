"""Assembling: exact sizes of the published models, and every part swapped every way a user may."""

import dataclasses
import json
import subprocess
import sys
import types

import pytest
import torch
import torch.nn as nn

import lmmblocks as lb
from lmmblocks import presets
from lmmblocks.builder import build
from lmmblocks.chat import get_template
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.images.preprocess import clip_preprocess
from lmmblocks.projectors import MLP, Identity, Linear
from lmmblocks.spec import PATCHES, LmmError


class Doubling(nn.Module):
    """A user's projector: two rows per patch, one option."""

    requires = PATCHES

    def __init__(self, in_dim, out_dim, scale=1.0):
        super().__init__()
        self.layer, self.scale = nn.Linear(in_dim, out_dim), scale

    def out_grid(self, grid):
        return 2 * grid.rows

    def forward(self, features):
        return self.layer(features.patches).repeat_interleave(2, 0) * self.scale


class Scaled(Doubling):
    """The same, which says what it was made with."""

    def __init__(self, in_dim, out_dim, scale=1.0):
        super().__init__(in_dim, out_dim, scale)
        self.options = {"scale": scale}


class Widthless(nn.Module):
    def __init__(self):
        super().__init__()


@pytest.fixture(autouse=True)
def own_module(monkeypatch):
    """The classes above in a module that can be imported by name."""
    module = types.ModuleType("their_projectors")
    for block in (Doubling, Scaled, Widthless):
        monkeypatch.setattr(block, "__module__", "their_projectors")
        setattr(module, block.__name__, block)
    monkeypatch.setitem(sys.modules, "their_projectors", module)


@pytest.fixture
def make(tiny_config):
    """Assemble the tiny model with random weights and the given swaps."""

    def make(config=tiny_config, **swaps):
        return build(config, **{"weights": "random", **swaps})

    return make


# Sizes: llava-v1.5 as published; CLIP ViT-L/14-336 counts all 24 layers and the position table.
@pytest.mark.parametrize(
    "name, decoder, projector",
    [("llava15-7b", 6_738_415_616, 20_979_712), ("llava15-13b", 13_015_864_320, 31_467_520)],
)
def test_published_models_have_their_exact_sizes_and_take_no_memory_on_meta(name, decoder, projector):
    model = build(name, device="meta")
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in model.parts.items()}
    assert sizes == {"encoder": 303_507_456, "projector": projector, "decoder": decoder}
    assert all(value.is_meta for value in model.state_dict().values())
    assert model.projector.out_grid(lb.Grid(24, 24)).rows == 576
    assert (model.max_length, model.tokenize_mode, model.template.name) == (2048, "llava15", "vicuna_v1")
    assert model.encoder.spec.layers == (-2,) and not model.training


def test_tiny_preset_is_the_same_model_smaller():
    model = build("llava15-tiny", device="meta")
    big = build("llava15-7b", device="meta")
    assert model.projector.out_grid(lb.Grid(8, 8)).rows == 64 and model.decoder.vocab == 1200

    def kinds(names):
        return {".".join(part for part in name.split(".") if not part.isdigit()) for name in names}

    assert kinds(model.state_dict()) == kinds(big.state_dict())


def test_random_weights_are_new_each_time_and_seeded(make):
    torch.manual_seed(0)
    first, second = make(), make()
    torch.manual_seed(0)
    again = make()
    assert not torch.equal(first.decoder.table, second.decoder.table)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_all_parts_get_the_dtype(make, dtype):
    assert {p.dtype for p in make(dtype=dtype).parameters()} == {dtype or torch.float32}


@pytest.mark.parametrize(
    "swap, made, block",
    [
        ("linear", Linear, Block("linear")),
        (Block("mlp", {"depth": 3, "bias": False}), MLP, Block("mlp", {"depth": 3, "bias": False})),
        (MLP, MLP, Block("mlp")),
        (Doubling, Doubling, Block("their_projectors:Doubling")),
        ("their_projectors:Doubling", Doubling, Block("their_projectors:Doubling")),
        (Block("their_projectors:Doubling", {"scale": 2.0}), Doubling, Block("their_projectors:Doubling", {"scale": 2.0})),
        (MLP(16, 24, depth=3), MLP, Block("mlp", {"depth": 3, "bias": True})),
        (Scaled(16, 24, 3.0), Scaled, Block("their_projectors:Scaled", {"scale": 3.0})),
    ],
    ids=["name", "block", "class", "own class", "module:Class", "own block", "module", "own module"],
)
def test_projector_swaps_are_made_and_remembered(make, swap, made, block):
    model = make(projector=swap)
    assert type(model.projector) is made and model.config.projector == block
    if isinstance(swap, nn.Module):
        assert model.projector is swap
    again = make(LMMConfig.from_json(model.config.to_json()))
    again.load_state_dict(model.state_dict())
    assert str(again.projector) == str(model.projector)
    assert getattr(again.projector, "scale", None) == getattr(model.projector, "scale", None)


def test_identity_fits_equal_widths_only(make, tiny_config):
    wide = CLIPConfig(dim=24, layers=2, heads=2, mlp_dim=8, image_size=28)
    assert type(make(encoder=wide, projector="identity").projector) is Identity
    with pytest.raises(LmmError, match="'identity' needs equal widths, encoder gives 16, decoder takes 24"):
        make(projector="identity")


def test_encoder_and_decoder_are_swapped_by_config_and_by_module(make):
    shape = CLIPConfig(dim=32, layers=2, heads=4, mlp_dim=8, image_size=56, select=(-1, 0))
    language = TransformerConfig(dim=8, layers=1, heads=2, kv_heads=1, ffn_dim=8, vocab=20, max_positions=33)
    by_config = make(encoder=shape, decoder=language)
    encoder, decoder = shape.build(), language.build()
    by_module = make(encoder=encoder, decoder=decoder)
    assert by_module.encoder is encoder and by_module.decoder is decoder
    for model in (by_config, by_module):
        assert (model.config.encoder, model.config.decoder) == (shape, language)
        assert model.projector.linear_1.in_features == 64 and model.projector.linear_2.out_features == 8
        assert model.encoder.preprocess.size_px == 56 and model.max_length == 33
        assert model.config.encoder_source is model.config.decoder_source is None


def test_encoder_words_bring_their_shape_and_source():
    model = build("llava15-7b", encoder="clip-vit-b32-224", device="meta")
    assert model.encoder.spec.dim == 768 and model.encoder.spec.patch == 32
    assert model.config.encoder_source == "openai/clip-vit-base-patch32"
    assert model.projector.linear_1.in_features == 768 and model.encoder.preprocess.size_px == 224


def test_template_is_swapped_by_name_and_by_object(make):
    assert make(template="plain").config.template == "plain"
    own = dataclasses.replace(get_template("vicuna_v1"), name="mine", system="Be brief.")
    model = make(template=own)
    assert model.template is own and get_template(model.config.template) == own


def test_preprocessing_of_the_config_goes_before_the_encoders_own(make, tiny_config):
    crop = clip_preprocess(28, 14, "crop")
    config = dataclasses.replace(tiny_config, preprocess=crop)
    assert make(config).encoder.preprocess == crop
    assert make(config, encoder=config.encoder).encoder.preprocess == make().encoder.preprocess != crop


def test_tokenizer_of_ones_own_is_taken_as_it_is(make, tiny_tokenizer):
    assert make(tokenizer=tiny_tokenizer).tokenizer is tiny_tokenizer
    assert make().tokenizer is None


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_tokenizer):
    """A CLIP and a tied Llama as transformers saves them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    vision, language = (tmp_path_factory.mktemp(name) for name in ("vision", "language"))
    torch.manual_seed(3)
    shape = dict(hidden_size=32, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4)
    CLIPVisionModel(CLIPVisionConfig(**shape, image_size=28, patch_size=14)).save_pretrained(vision)
    text = dict(vocab_size=400, num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=64)
    LlamaForCausalLM(LlamaConfig(**shape, **text)).save_pretrained(language)
    tiny_tokenizer.save_pretrained(language)
    return vision, language


def test_pretrained_parts_come_from_their_folders_and_a_tied_head_stays_tied(make, folders):
    from safetensors.torch import load_file

    vision, language = folders
    model = make(encoder=vision, decoder=str(language), weights="pretrained")
    stored = load_file(language / "model.safetensors")
    assert torch.equal(model.decoder.table, stored["model.embed_tokens.weight"])
    assert model.decoder.head_weight is model.decoder.table and model.config.decoder.tied
    assert model.encoder.spec.dim == 32 and model.encoder.spec.layers == (-2,)
    assert len(model.tokenizer) == 380 and not model.training
    assert all(p.requires_grad for part in (model.projector, model.decoder) for p in part.parameters()) and model.encoder.frozen
    assert json.loads(model.config.to_json())["encoder_source"] == str(vision)


@pytest.mark.parametrize("options", [{"weights": "random"}, {"device": "meta", "weights": "pretrained"}], ids=str)
def test_folders_give_the_shape_alone_where_no_weights_are_wanted(make, folders, options):
    vision, language = folders
    model = make(encoder=str(vision), decoder=str(language), **options)
    pretrained = make(encoder=str(vision), decoder=str(language), weights="pretrained")
    assert (model.config.encoder, model.config.decoder) == (pretrained.config.encoder, pretrained.config.decoder)
    if options.get("device") == "meta":
        assert all(value.is_meta for value in model.state_dict().values())
    else:
        for part in ("encoder", "decoder"):
            pairs = zip(model.parts[part].parameters(), pretrained.parts[part].parameters())
            assert not all(torch.equal(a, b) for a, b in pairs if a.dim() > 1), part


def test_a_select_of_ones_own_is_kept_when_the_encoder_is_read(make, folders, tiny_config):
    config = dataclasses.replace(tiny_config, encoder=dataclasses.replace(tiny_config.encoder, select=(-1, 1)))
    model = make(config, encoder=str(folders[0]), weights="pretrained")
    assert model.encoder.spec.layers == (-1, 1) and model.encoder.spec.dim == 64


@pytest.mark.parametrize(
    "swaps, message",
    [
        ({"projector": "mpl"}, "unknown projector 'mpl'; did you mean 'mlp'"),
        ({"projector": "no_such_module:Class"}, "no module 'no_such_module'"),
        ({"projector": Block("mlp", {"dept": 3})}, "projector MLP: unknown options 'dept'; did you mean 'depth'.; known: depth, bias"),
        ({"projector": Block("mlp", {"a": 1, "b": 2})}, "unknown options 'a', 'b'"),
        ({"projector": Block("their_projectors:Doubling", {"sale": 1})}, "'sale'; did you mean 'scale'"),
        ({"projector": Widthless}, r"Widthless is made as \(in_dim, out_dim, \*\*options\).*takes \(\)"),
        ({"projector": Doubling(16, 24, 3.0)}, "'Doubling' takes .'in_dim', 'out_dim', 'scale'. but doesn't say what it was made with"),
        ({"projector": 3}, "projector=3: expected a name, a Block, a class or a module"),
        ({"encoder": "clip-vit-l-366"}, "unknown encoder 'clip-vit-l-366'; did you mean 'clip-vit-l-336'"),
        ({"encoder": 3}, "encoder=3: expected a name, a folder"),
        ({"encoder": ["clip-vit-l-336"]}, "encoder=.'clip-vit-l-336'.: expected"),
        ({"encoder": CLIPConfig}, "expected a name, a folder, a hub id, a config or a module"),
        ({"encoder": nn.Linear(2, 2)}, "encoder 'Linear' has no config dataclass"),
        ({"decoder": "vicuna"}, "unknown decoder 'vicuna'; did you mean 'vicuna-7b'"),
        ({"decoder": "/no/such/folder"}, "no folder /no/such/folder"),
        ({"decoder": nn.Linear(2, 2)}, "decoder 'Linear' has no config dataclass"),
        ({"template": "vicuna"}, "unknown template 'vicuna'; did you mean 'vicuna_v1'"),
        ({"template": 3}, "template is a int, expected one of plain"),
        ({"tokenizer": "/no/such/folder"}, "no folder /no/such/folder"),
        ({"weights": "randm"}, "weights='randm' is none of .*did you mean 'random'"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(next(iter(value))),
)
def test_wrong_swaps_are_refused(make, swaps, message):
    with pytest.raises(LmmError, match=message):
        make(**swaps)


@pytest.mark.parametrize(
    "model, message",
    [
        ("llava15-7B", "unknown preset 'llava15-7B'; did you mean 'llava15-7b'"),
        ("liuhaotian/llava-v1.5-7b", r"unknown preset .* read with lmmblocks.load\('liuhaotian/llava-v1.5-7b'\)"),
        (None, "takes the name of a preset or an LMMConfig, found None"),
        ({"encoder": {}}, "takes the name of a preset or an LMMConfig"),
    ],
)
def test_what_is_no_model_is_refused(model, message):
    with pytest.raises(LmmError, match=message):
        build(model)


def test_wrong_names_are_refused_before_any_weights_are_read(folders, make, monkeypatch):
    import lmmblocks.weights.sources as sources

    def read(*args, **kwargs):
        raise AssertionError("read weights first")

    monkeypatch.setattr(sources, "load_encoder", read)
    for swaps in ({"projector": "mpl"}, {"template": "vicuna"}):
        with pytest.raises(LmmError, match="unknown"):
            make(encoder=str(folders[0]), weights="pretrained", **swaps)


def test_own_configs_may_be_registered_and_named(tiny_config, monkeypatch):
    from lmmblocks import registry

    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry._BUILT_IN})
    lb.register("projector", "doubling")(Doubling)
    model = build(tiny_config, projector="doubling", weights="random")
    assert type(model.projector) is Doubling and model.config.projector == Block("doubling")


def test_build_is_a_function_whatever_was_imported_before():
    code = (
        "import importlib, pkgutil, lmmblocks as lb\n"
        "names = [m.name for m in pkgutil.iter_modules(lb.__path__[:1]) if m.name != '__main__']\n"
        "[importlib.import_module(f'lmmblocks.{name}') for name in names]\n"
        "print(sorted(name for name in lb.__all__ if type(getattr(lb, name)).__name__ == 'module'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "['ops', 'presets']", done.stdout + done.stderr


def test_presets_are_functions_that_return_configs():
    assert {name: make().decoder.dim for name, make in presets.PRESETS.items()} == {
        "llava15-7b": 4096,
        "llava15-13b": 5120,
        "llava15-tiny": 192,
        "llava-next-7b": 4096,
        "llava-onevision-7b": 3584,
        "instructblip-vicuna-7b": 4096,
        "instructblip-vicuna-13b": 5120,
        "blip2-opt-2.7b": 2560,
        "idefics-9b": 4096,
        "qwen-vl-7b": 4096,
        "qwen-vl-chat-7b": 4096,
    }
