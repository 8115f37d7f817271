"""Tiny models of ours with random weights and a tokenizer of a few words; nothing of transformers' models, nothing downloaded."""

import pytest
import torch

from lmmblocks.assemble import build
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig

WORDS = ["<unk>", "<s>", "</s>", *"what is in the picture a cat ? USER : ASSISTANT".split()]


@pytest.fixture(scope="session")
def make_tokenizer():
    """Whole words; ``image`` gives it an image token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def make(*, image=False):
        vocabulary = {word: index for index, word in enumerate(dict.fromkeys(WORDS))}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
        if image:
            tokenizer.add_tokens("<image>", special_tokens=True)
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_model(make_tokenizer):
    def make(*, seed=0, vocab=20, tied=False, image=False, tokenizer=True, **swaps):
        config = LMMConfig(
            encoder=CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14),
            decoder=TransformerConfig(
                dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=vocab, tied=tied, max_positions=64
            ),
        )
        torch.manual_seed(seed)
        own = make_tokenizer(image=image) if tokenizer else None
        return build(config, weights="random", tokenizer=own, **swaps)

    return make


@pytest.fixture()
def saved(make_model, tmp_path):
    """A model and the folder it was saved to."""
    model = make_model()
    model.save(tmp_path / "model")
    return model, tmp_path / "model"
