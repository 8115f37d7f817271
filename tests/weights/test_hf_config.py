"""Configs of transformers are translated key by key, and what the native blocks can't compute is refused."""

import pytest

from lmmblocks.config import Block
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.vit import ACTIVATIONS
from lmmblocks.spec import LmmError
from lmmblocks.weights.parts.hf_encoders import HF_ENCODERS
from lmmblocks.weights.systems.llava_hf import (
    clip_from_hf,
    llama_from_hf,
    llama_to_hf,
    llava_from_hf,
    llava_to_hf,
)

# llava-hf/llava-1.5-7b-hf as it lies on the hub: only what differs from the defaults of the classes.
LLAVA_7B = {
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}


def test_llava_7b_of_the_hub_is_the_model_of_the_paper():
    config = llava_from_hf(LLAVA_7B)
    assert config.encoder == CLIPConfig()
    assert config.decoder == TransformerConfig(vocab=32064)
    assert config.projector == Block("mlp", {"depth": 2})
    assert (config.template, config.tokenize_mode, config.max_length) == ("vicuna_v1", "llava15", 2048)


def test_llava_config_survives_both_directions():
    values = {**LLAVA_7B, "vision_feature_layer": [-2, 5], "multimodal_projector_bias": False}
    config = llava_from_hf(values)
    written = llava_to_hf(config, image_token=32000)
    assert llava_from_hf(written) == config
    for key in (
        "image_token_index",
        "vision_feature_layer",
        "multimodal_projector_bias",
        "projector_hidden_act",
    ):
        assert written[key] == values[key]


def test_keys_left_out_have_the_defaults_of_transformers():
    """The classes of transformers are asked, not a list in this file."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    assert clip_from_hf({"model_type": "clip_vision_model"}) == clip_from_hf(CLIPVisionConfig().to_dict())
    assert llama_from_hf({"model_type": "llama"}) == llama_from_hf(LlamaConfig().to_dict())
    assert llava_from_hf({"model_type": "llava"}) == llava_from_hf(LlavaConfig().to_dict())


@pytest.mark.parametrize("kind", HF_ENCODERS)
def test_every_key_of_a_tower_is_read(kind):
    """Nothing falls back to a default: each key that a tower has, given another value than its default, is in the config."""
    entry = HF_ENCODERS[kind]
    for key, field in entry.keys.items():
        default = entry.defaults[key]
        others = {"hidden_act": next(name for name in ACTIVATIONS if name != default), "patch_size": 7, "num_patches": 64}
        other = others.get(key, not default if isinstance(default, bool) else default * 2)
        read = entry.read(kind, {key: other}, (-1,))
        assert (getattr(read, field), entry.write(kind, read)[key]) == (other, other), key


@pytest.mark.parametrize(
    "rope",
    [
        {},
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_rope_theta_is_read_where_each_generation_writes_it(rope):
    assert llama_from_hf({"model_type": "llama", **rope}).rope_theta == (5e5 if rope else 1e4)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_scaled_rope_is_refused_with_what_was_found(rope):
    with pytest.raises(LmmError, match="can't compute rope_scaling="):
        llama_from_hf({"model_type": "llama", **rope})


def test_kv_heads_and_head_dim_follow_the_rules_of_llama():
    base = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    assert llama_from_hf(base).kv_heads == 4
    assert llama_from_hf({**base, "head_dim": 16}).head_dim is None
    assert llama_from_hf({**base, "head_dim": 32}).head_dim == 32
    assert llama_to_hf(llama_from_hf({**base, "head_dim": 32}))["head_dim"] == 32


@pytest.mark.parametrize("place", ["top", "text"])
def test_tied_is_read_from_either_place(place):
    values = {"model_type": "llava", "text_config": {}}
    (values if place == "top" else values["text_config"])["tie_word_embeddings"] = True
    assert llava_from_hf(values).decoder.tied


@pytest.mark.parametrize(
    "read, values, message",
    [
        (
            clip_from_hf,
            {"model_type": "siglip_vision_model"},
            "describes SigLIPConfig, expected a CLIP vision tower",
        ),
        (
            clip_from_hf,
            {"model_type": "clip_vision_model", "hidden_act": "silu"},
            "hidden_act='silu' .expected 'quick_gelu' or 'gelu'",
        ),
        (clip_from_hf, {"model_type": "clip_vision_model", "num_channels": 1}, "num_channels=1"),
        (
            clip_from_hf,
            {"model_type": "clip_vision_model", "image_size": [224, 336]},
            "image_size must be the side of a square",
        ),
        (clip_from_hf, {"model_type": "clip_vision_model", "image_size": 225}, "not a multiple of patch"),
        (
            clip_from_hf,
            {"model_type": "clip_vision_model", "hidden_size": "wide"},
            "expected positive numbers.*hidden_size='wide'",
        ),
        (clip_from_hf, {"model_type": "clip", "vision_config": 3}, "vision_config must be an object"),
        (llama_from_hf, {"model_type": "mistral"}, "model_type 'mistral', expected 'llama'"),
        (llama_from_hf, {}, "model_type None"),
        (
            llama_from_hf,
            {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
            "attention_bias=True.*mlp_bias=True",
        ),
        (llama_from_hf, {"model_type": "llama", "hidden_act": "gelu"}, "hidden_act='gelu'"),
        (llama_from_hf, {"model_type": "llama", "vocab_size": -1}, "vocab_size=-1"),
        (llava_from_hf, {"model_type": "llama"}, "model_type 'llama', expected 'llava'"),
        (
            llava_from_hf,
            {"model_type": "llava", "vision_feature_select_strategy": "full"},
            "strategy='full' .expected 'default'",
        ),
        (
            llava_from_hf,
            {"model_type": "llava", "projector_hidden_act": "relu"},
            "projector_hidden_act='relu'",
        ),
        (
            llava_from_hf,
            {"model_type": "llava", "vision_feature_layer": "last"},
            "vision_feature_layer must be an integer or a list",
        ),
        (llava_from_hf, {"model_type": "llava", "vision_feature_layer": -40}, "must name hidden states"),
        (
            llava_from_hf,
            {"model_type": "llava", "text_config": {"model_type": "mamba"}},
            "text_config, has model_type 'mamba'",
        ),
        (
            llava_from_hf,
            {"model_type": "llava", "vision_config": {"model_type": "siglip"}},
            "vision_config, has model_type 'siglip'",
        ),
        (llava_from_hf, {"model_type": "llava", "mm_vision_tower": "openai/clip"}, "original LLaVA layout"),
    ],
)
def test_what_the_blocks_cannot_compute_is_refused(read, values, message):
    with pytest.raises(LmmError, match=message):
        read(values)


def test_longrope_is_written_with_the_three_keys_that_phi3_of_transformers_4_takes():
    """Its ``_rope_scaling_validation`` refuses any other number of keys (configuration_phi3.py of 4.57)."""
    from lmmblocks.weights.parts.hf_decoders import decoder_from_hf, decoder_to_hf

    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 48}
    lengths = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    config = decoder_from_hf({"model_type": "phi3", "vocab_size": 100, **shape, **lengths, "rope_scaling": rope})
    written = decoder_to_hf(config)
    assert written["rope_scaling"] == rope and decoder_from_hf(written) == config
