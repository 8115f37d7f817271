"""Tiny models of transformers with random weights, fp32, two layers each; nothing is downloaded."""

import pytest
import torch

IMAGE_PX, PATCH_PX = 28, 7
PATCHES = (IMAGE_PX // PATCH_PX) ** 2


def _randomised(model, seed):
    """Give every parameter its own random values (norms near 1), so that no part of a comparison is trivially equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            near_one = "norm" in name and name.endswith("weight")
            value.copy_(1 + 0.1 * noise if near_one else noise * (0.2 if value.dim() > 1 else 0.1))
    return model.eval()


@pytest.fixture(scope="session")
def randomised():
    return _randomised


@pytest.fixture(scope="session")
def tokenizer(tiny_tokenizer):
    """Without an image token of its own."""
    assert "<image>" not in tiny_tokenizer.get_vocab() and len(tiny_tokenizer) < 399
    return tiny_tokenizer


@pytest.fixture(scope="session")
def clip_config():
    from transformers import CLIPVisionConfig

    def make(**changes):
        shape = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
        return CLIPVisionConfig(**{**shape, "image_size": IMAGE_PX, "patch_size": PATCH_PX, **changes})

    return make


@pytest.fixture(scope="session")
def llama_config():
    from transformers import LlamaConfig

    def make(**changes):
        shape = dict(hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4)
        shape |= dict(num_key_value_heads=2, vocab_size=400, max_position_embeddings=512, rms_norm_eps=1e-5)
        return LlamaConfig(**{**shape, **changes})

    return make


@pytest.fixture(scope="session")
def hf_llava(clip_config, llama_config):
    """Make a ``LlavaForConditionalGeneration``; the last id of the table is its image token."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    def make(*, seed=0, text=None, vision=None, **changes):
        config = LlavaConfig(
            vision_config=clip_config(**(vision or {})),
            text_config=llama_config(**(text or {})),
            **{"image_token_index": 399, "image_seq_length": PATCHES, **changes},
        )
        return _randomised(LlavaForConditionalGeneration(config), seed)

    return make


@pytest.fixture(scope="session")
def hf_idefics():
    """Make an ``IdeficsForVisionText2Text`` whose gates are open; its two added tokens are a fake one and the image's."""
    from transformers import IdeficsConfig, IdeficsForVisionText2Text

    perceiver = dict(resampler_n_latents=5, resampler_depth=2, resampler_n_heads=2, resampler_head_dim=6, qk_layer_norms_perceiver=True)
    vision = dict(embed_dim=24, image_size=IMAGE_PX, patch_size=14, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3)

    def make(**changes):
        shape = dict(vocab_size=400, additional_vocab_size=2, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
        shape |= dict(num_attention_heads=4, max_position_embeddings=256)
        config = IdeficsConfig(**{**shape, **changes}, vision_config=vision, perceiver_config=perceiver)
        model = _randomised(IdeficsForVisionText2Text(config), 3)
        model.lm_head.weight.data.mul_(0.5)  # logits near 2: tolerances are absolute
        for name, value in model.named_parameters():
            if "alpha" in name:
                value.data.normal_(0.5, 0.3, generator=torch.Generator().manual_seed(value.numel()))
        return model

    return make
