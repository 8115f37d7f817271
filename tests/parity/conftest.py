"""Tiny models of transformers with random weights, fp32, two layers each, and a tokenizer trained here; nothing is downloaded."""

import json

import pytest
import torch

IMAGE_PX, PATCH_PX = 28, 7
PATCHES = (IMAGE_PX // PATCH_PX) ** 2
SPECIALS = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed answers.",
    "USER: What color is the cat? ASSISTANT: Black. USER: Is it asleep? ASSISTANT: No, it is awake.",
] * 4


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
def tokenizer():
    """Llama-like: BPE over metaspace with byte fallback, 380 ids, no image token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    reserved = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=reserved, show_progress=False)
    )
    words = json.loads(trained.to_str())["model"]
    merges = [tuple(merge) for merge in words["merges"]]
    backend = Tokenizer(
        models.BPE(words["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


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
