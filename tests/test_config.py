"""A model's config survives JSON, and whatever is wrong in one is named."""

import dataclasses
import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.images.preprocess import clip_preprocess
from lmmblocks.presets import ENCODERS, PRESETS, preset
from lmmblocks.spec import LmmError
from lmmblocks.spec.fields import field_problems

whole = st.integers(1, 64)
encoders = st.builds(
    lambda heads, width, layers, patch, side, gelu, select: CLIPConfig(
        dim=heads * width,
        heads=heads,
        layers=layers,
        patch=patch,
        image_size=patch * side,
        activation=gelu,
        select=tuple(s % (layers + 1) for s in select),
    ),
    *(whole, whole, whole, whole, whole),
    st.sampled_from(["quick_gelu", "gelu"]),
    st.lists(whole, min_size=1, max_size=3),
)
decoders = st.builds(
    lambda kv, group, half, theta, eps, tied, recompute, own_head: TransformerConfig(
        dim=kv * group * 2 * half,
        heads=kv * group,
        kv_heads=kv,
        head_dim=2 * half if own_head else None,
        rope_theta=theta,
        eps=eps,
        tied=tied,
        recompute=recompute,
    ),
    *(whole, whole, whole),
    st.floats(1, 1e7),
    st.floats(1e-8, 1e-2),
    *(st.booleans(), st.booleans(), st.booleans()),
)
options = st.dictionaries(st.sampled_from(["depth", "bias", "note"]), st.one_of(whole, st.booleans(), st.text()))
configs = st.builds(
    LMMConfig,
    encoder=encoders,
    decoder=decoders,
    projector=st.builds(Block, st.sampled_from(["mlp", "their.module:Class"]), options),
    template=st.sampled_from(["plain", "vicuna_v1"]),
    tokenize_mode=st.sampled_from(["pieces", "llava15"]),
    max_length=st.one_of(st.none(), whole),
    preprocess=st.one_of(st.none(), st.builds(clip_preprocess, whole.map(lambda n: 14 * n), fit=st.sampled_from(["pad", "crop"]))),
    encoder_source=st.one_of(st.none(), st.text()),
    tokenizer_source=st.one_of(st.none(), st.text()),
)


@settings(max_examples=60, deadline=None)
@given(config=configs)
def test_any_config_survives_json(config):
    assert LMMConfig.from_json(config.to_json()) == config
    assert json.loads(config.to_json())["format_version"] == 1


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name):
    assert LMMConfig.from_json(preset(name).to_json()) == preset(name)


def tiny():
    return LMMConfig(encoder=CLIPConfig(), decoder=TransformerConfig())


def changed(**changes):
    return {**tiny().to_dict(), **changes}


def test_optional_keys_may_be_missing():
    values = tiny().to_dict()
    assert LMMConfig.from_dict({key: values[key] for key in ("encoder", "decoder")}) == tiny()


def test_values_are_not_changed_by_reading_them():
    values = tiny().to_dict()
    before = json.dumps(values)
    LMMConfig.from_dict(values)
    assert json.dumps(values) == before


@pytest.mark.parametrize(
    "values, message",
    [
        (changed(projecter={}), "unknown keys 'projecter'; did you mean 'projector'.; known: encoder, decoder, projector"),
        (changed(format_version=2), "format_version 2, this library reads 1"),
        ({"decoder": {"type": "transformer"}}, r"lacks \['encoder'\]"),
        ({}, r"lacks \['encoder', 'decoder'\]"),
        (changed(encoder={"type": "clip", "widht": 3, "dim": 64}), "encoder config: unknown keys 'widht'; known: dim, layers"),
        (changed(encoder={"type": "clap"}), "unknown encoder 'clap'; did you mean 'clip'"),
        (changed(encoder={"dim": 64}), r"encoder config needs a 'type', one of \['blip2_vit', 'clip', "),
        (changed(encoder="clip"), "encoder config must be a JSON object, found 'clip'"),
        (changed(decoder={"type": "transformer", "layers": "32"}), "layers must be a whole number above 0, found '32'"),
        (changed(decoder={"type": "transformer", "kv_heads": 0}), "kv_heads must be a whole number above 0, found 0"),
        (changed(decoder={"type": "lmmblocks.lmm:LMM"}), "decoder 'lmmblocks.lmm:LMM' is no config dataclass"),
        (changed(projector="mlp"), "projector config must be a JSON object, found 'mlp'"),
        (changed(projector={"depth": 2}), "projector config needs a 'type'"),
        (changed(projector={"type": "mlp", "in_dim": 3}), r"block 'mlp': \['in_dim'\] follow from the encoder and the decoder"),
        (changed(preprocess=[1]), r"preprocess must be a JSON object, found \[1\]"),
        (changed(preprocess={"size": 3}), "image preprocessing of kind 'square': unknown keys 'size'"),
        (changed(tokenize_mode="llava"), "tokenize_mode must be one of pieces, llava15, found 'llava'; did you mean 'llava15'"),
        (changed(max_length=0), "max_length must be a whole number above 0 or None, found 0"),
        (changed(max_length="2048"), "max_length must be a whole number above 0 or None, found '2048'"),
        (changed(template=None), "template must be a string, or the fields of a template, found None"),
        (changed(encoder_source=3, max_length=-1), "max_length must.*; encoder_source must be a string or None, found 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_in_a_config_is_named(values, message):
    with pytest.raises(LmmError, match=message):
        LMMConfig.from_dict(values)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"encoder": {},\n "decoder": }', "not JSON: line 2, column 13: Expecting value"),
        ("", "not JSON: line 1, column 1"),
        ("[]", "must be a JSON object, found list"),
    ],
)
def test_broken_json_is_named_with_its_place(text, message):
    with pytest.raises(LmmError, match=message):
        LMMConfig.from_json(text)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"encoder": CLIPConfig}, "encoder needs a config dataclass such as CLIPConfig"),
        ({"encoder": "clip", "decoder": None}, "encoder needs .* found 'clip'; decoder needs .* found None"),
        ({"projector": "mlp"}, r"projector must be a Block, such as Block\('mlp'\), found 'mlp'"),
    ],
)
def test_parts_of_another_kind_are_refused(changes, message):
    with pytest.raises(LmmError, match=message):
        dataclasses.replace(tiny(), **changes)


def test_a_block_leaves_its_widths_and_its_type_to_the_model():
    with pytest.raises(LmmError, match=r"\['in_dim', 'out_dim'\] follow from"):
        Block("mlp", {"out_dim": 2, "in_dim": 1})
    with pytest.raises(LmmError, match="an option can't be called 'type'"):
        Block("theirs", {"type": "gelu"})


@dataclass(frozen=True)
class TheirConfig:
    """An encoder's config in somebody's own module; `dim` has no default."""

    dim: int
    sizes: tuple[int, ...] = (1,)


def test_own_config_classes_are_named_by_module_and_survive():
    config = dataclasses.replace(tiny(), encoder=TheirConfig(3, (4, 5)))
    values = json.loads(config.to_json())
    assert values["encoder"] == {"type": f"{__name__}:TheirConfig", "dim": 3, "sizes": [4, 5]}
    assert LMMConfig.from_dict(values) == config
    del values["encoder"]["dim"]
    with pytest.raises(LmmError, match=r"TheirConfig' lacks \['dim'\]"):
        LMMConfig.from_dict(values)


def test_unknown_presets_are_refused_with_the_closest():
    with pytest.raises(LmmError, match="unknown preset 'llava-7b'; did you mean 'llava15-7b'.; known: .'blip2-opt-2.7b'"):
        preset("llava-7b")


def test_encoder_words_name_shapes_that_hold():
    for shape, source in ENCODERS.values():
        assert "/" in source and shape.default_preprocess().grid(640, 480).rows > 0


@dataclass
class Fields:
    count: "int" = 1
    share: "float" = 0.5
    flag: "bool" = True
    word: "str" = "x"
    pair: "tuple[int, ...]" = (1, -2)
    maybe: "int | None" = None
    other: "dict[str, int]" = dataclasses.field(default_factory=dict)


@pytest.mark.parametrize(
    "changes, problems",
    [
        ({}, 0),
        ({"maybe": 3, "share": 2, "other": "anything"}, 0),
        ({"count": 0}, 1),
        ({"count": True}, 1),
        ({"count": 1.0}, 1),
        ({"share": float("nan")}, 1),
        ({"share": 0}, 1),
        ({"flag": 1}, 1),
        ({"word": None}, 1),
        ({"pair": [1]}, 1),
        ({"pair": (1.0,)}, 1),
        ({"maybe": "1"}, 1),
        ({"count": None, "share": None}, 2),
    ],
    ids=str,
)
def test_fields_hold_what_they_are_annotated_with(changes, problems):
    found = field_problems(Fields(**changes))
    assert len(found) == problems, found
    assert all(any(entry.startswith(name) for name in changes) for entry in found)
