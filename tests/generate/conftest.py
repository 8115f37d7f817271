"""A tiny random LLaVA with a tokenizer trained here, pictures, and generation written a second time without a cache."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from lmmblocks.builder import build
from lmmblocks.chat import encode_chat
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Batch

CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful answers.",
    "USER: What colour is the cat? ASSISTANT: Black USER: Is it asleep? ASSISTANT: No, it is awake and hungry.",
    "Answer the question using a single word or phrase. There are 3 red squares, and one blue circle.",
    '一只猫在垫子上。 é ü ß [0.10, 0.20] {"x": 1}',
]
SPECIALS = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@pytest.fixture(scope="session")
def make_tokenizer():
    """BPE over metaspace with byte fallback, as Llama's; `eos` names the token that ends an answer."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    words = trainers.BpeTrainer(vocab_size=480, special_tokens=[*SPECIALS, *BYTES], show_progress=False)
    trained.train_from_iterator(CORPUS * 3, words)
    bpe = json.loads(trained.to_str())["model"]

    def make(eos="</s>"):
        merges = [tuple(merge) for merge in bpe["merges"]]
        tokenizer = Tokenizer(models.BPE(bpe["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", eos_token=eos)

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    return make_tokenizer()


@pytest.fixture(scope="session")
def make_model(make_tokenizer):
    """A random model that babbles: weights large enough that every step depends on all that was read."""

    def make(*, tokenize_mode="pieces", template="vicuna_v1", max_positions=512, seed=0, tokenizer=None):
        config = LMMConfig(
            encoder=CLIPConfig(dim=24, layers=2, heads=2, mlp_dim=32, image_size=28, patch=14),
            decoder=TransformerConfig(dim=48, layers=3, heads=4, kv_heads=2, ffn_dim=64, vocab=500, max_positions=max_positions),
            template=template,
            tokenize_mode=tokenize_mode,
        )
        torch.manual_seed(seed)
        model = build(config, weights="random", tokenizer=tokenizer or make_tokenizer())
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.25)
        # Greedy never takes a byte, which would rarely meet the others of its character: the text tests do bytes.
        model.decoder.lm_head.weight.data[len(SPECIALS) : len(SPECIALS) + len(BYTES)] = 0
        return model

    return make


@pytest.fixture(scope="session")
def model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def picture():
    """A random picture for each number."""

    def make(number, size=(40, 30)):
        pixels = np.random.default_rng(number).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)

    return make


@pytest.fixture(scope="session")
def greedy_ids():
    """Greedy decoding by the definition: the whole sequence again for every token, alone, without a cache."""

    @torch.inference_mode()
    def run(model, messages, images=(), count=24):
        spec = model.input_spec
        pixels, grids = spec.preprocess.batch(list(images))
        rows = [spec.image_rows(grid) for grid in grids]
        ids = encode_chat(messages, spec.template, spec.tokenizer, mode=spec.tokenize_mode, add_generation_prompt=True).ids
        new = []
        while len(new) < count and (not new or new[-1] != spec.tokenizer.eos_token_id):
            batch = Batch(pixels, grids, plan_splice([ids + new], [rows]))
            new.append(int(model.logits(batch)[-1].argmax()))
        return new

    return run


@pytest.fixture(scope="session")
def text_of():
    """The text of an answer by transformers' own decoding."""

    def decode(model, ids):
        return model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return decode


@pytest.fixture(scope="session")
def counted():
    """`with counted(module, rows)` appends the number of rows of every forward pass of a module."""

    @contextmanager
    def count(module, rows):
        hook = module.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0]))
        yield
        hook.remove()

    return count
