"""A model and data small enough to train in a test."""

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.chat import TEMPLATES
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.train.stage import Stage

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}
CORPUS = [
    *TEMPLATES["vicuna_v1"].system.split(". "),
    *(f"USER: What colour is it? Really? ASSISTANT: It is {name}. Sure? Yes, yes." for name in COLOURS),
] * 4


def make_tokenizer():
    """BPE over metaspace with byte fallback, as Llama's, trained on a few lines."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=440, special_tokens=[*specials, *fallback], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>")


def random_model(tokenizer, seed=0):
    """A random model: 4 rows per image, width 32."""
    torch.manual_seed(seed)
    config = LMMConfig(
        encoder=CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=32, image_size=28, patch=14),
        projector=Block("mlp", {"depth": 2}),
        decoder=TransformerConfig(dim=32, layers=2, heads=4, kv_heads=2, ffn_dim=48, vocab=448, max_positions=512),
    )
    return lb.build(config, weights="random", tokenizer=tokenizer)


def make_samples(count=12):
    """Conversations of many lengths about coloured pictures; every fourth has no picture, one has two."""
    samples = []
    for index in range(count):
        name = list(COLOURS)[index % 4]
        pictures = 0 if index % 4 == 3 else 2 if index == 1 else 1
        question = "<image>" * pictures + "\nWhat colour is it?" + " Really?" * (index % 5)
        messages = [
            {"role": "user", "content": question.strip()},
            {"role": "assistant", "content": f"It is {name}."},
        ]
        if index % 3 == 0:
            messages += [
                {"role": "user", "content": "Sure?"},
                {"role": "assistant", "content": "Yes, " * (index + 1)},
            ]
        images = [Image.new("RGB", (20 + index, 30), COLOURS[name]) for _ in range(pictures)]
        samples.append(lb.Sample(messages, images, f"s{index}"))
    return samples


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def model(tokenizer):
    return random_model(tokenizer)


@pytest.fixture
def samples():
    return make_samples()


@pytest.fixture
def stage():
    """Every part learns; several micro-batches per step, several steps per epoch."""
    return Stage(
        name="test",
        train={"encoder": 1e-3, "projector": 1e-2, "decoder": 1e-3},
        batch_size=4,
        epochs=2,
        micro_batch_rows=110,
        weight_decay=0.1,
    )


@pytest.fixture(scope="session")
def model_and_samples(tokenizer):
    """For property tests, which only read them."""
    return random_model(tokenizer), make_samples()


@pytest.fixture(scope="session")
def make_model():
    """The function that makes the model of the other fixtures anew."""
    return random_model
