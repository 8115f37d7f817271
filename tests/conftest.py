"""A tokenizer trained here, a tiny LLaVA with random weights, and pictures; nothing is downloaded.

The session's fixtures are shared: a test that changes a model makes its own with `make_tiny_model`.
"""

import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image

if not torch.cuda.is_available():  # before any kernel is imported: the decorator decides
    os.environ.setdefault("TRITON_INTERPRET", "1")

SPECIALS = ["<unk>", "<s>", "</s>"]
CORPUS = [
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed answers.",
    "USER: What color is the cat? ASSISTANT: Black. USER: Is it asleep? ASSISTANT: No, it is awake and hungry.",
    "Answer the question using a single word or phrase. There are 3 red squares and one blue circle.",
] * 3
PARITY = "LMMBLOCKS_PARITY"


@pytest.fixture(scope="session")
def record_parity():
    """Note a measured difference as ``(block, twin, quantity, value)``: one JSON line in the file that LMMBLOCKS_PARITY names, if any."""

    def record(block: str, twin: str, quantity: str, value: float) -> None:
        path = os.environ.get(PARITY)
        if path:
            line = {"block": block, "twin": twin, "quantity": quantity, "value": float(value)}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    return record


@pytest.fixture(scope="session")
def image_processor_class():
    """`image_processor_class("CLIP")`: transformers' image processor that works with PIL; 5 gave its name an ending, 4 has no other."""
    import transformers

    def find(family):
        name = f"{family}ImageProcessor"
        return getattr(transformers, f"{name}Pil" if hasattr(transformers, f"{name}Pil") else name)

    return find


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """Llama-like: BPE over metaspace with byte fallback, 380 ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    reserved = [*SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256))]
    learner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=380, special_tokens=reserved, show_progress=False))
    words = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in words["merges"]]
    backend = Tokenizer(models.BPE(words["vocab"], merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIALS])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    yield made
    assert len(made) == 380, "a test added tokens to the tokenizer that all share: let it copy.deepcopy it first"


@pytest.fixture(scope="session")
def tiny_config():
    """Two by two patches to an image, so that a conversation is words mostly."""
    from lmmblocks.config import LMMConfig
    from lmmblocks.decoders.transformer import TransformerConfig
    from lmmblocks.encoders.clip import CLIPConfig

    return LMMConfig(
        encoder=CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=24, image_size=28, patch=14),
        decoder=TransformerConfig(dim=24, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=512),
    )


@pytest.fixture(scope="session")
def make_tiny_model(tiny_config, tiny_tokenizer):
    """Build one with weights large enough that every row depends on what it sees."""
    from lmmblocks.builder import build

    def make(*, config=tiny_config, tokenizer=tiny_tokenizer, seed=0, **swaps):
        torch.manual_seed(seed)
        model = build(config, tokenizer=tokenizer, weights="random", **swaps)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(make_tiny_model):
    return make_tiny_model()


@pytest.fixture(scope="session")
def colour_picture():
    """A picture of random blocks for each number."""

    def make(number, size=(40, 30)):
        blocks = np.random.default_rng(number).integers(0, 256, (3, 4, 3), dtype=np.uint8)
        return Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST)

    return make


@pytest.fixture(scope="session")
def conversations(colour_picture):
    """Samples of unequal lengths: one image, none, two, an image in the second turn."""
    from lmmblocks.spec import Sample

    def turns(*contents):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]

    return [
        Sample(turns("<image>\nWhat color is the cat?", "Black"), [colour_picture(0)], "one"),
        Sample(turns("Is it asleep?", "No, it is awake and hungry."), [], "text"),
        Sample(
            turns("<image> and <image>: is it the same cat?", "No"),
            [colour_picture(1), colour_picture(2)],
            "two",
        ),
        Sample(turns("Hello", "Hello.", "What is it? <image>", "A red square."), [colour_picture(3)], "late"),
    ]


@dataclass(frozen=True)
class _Exactness:
    """Errors of the kernel and of torch against fp64; shown when the assertion fails."""

    kernel: float
    torch: float
    floor: float

    @property
    def holds(self) -> bool:
        return self.kernel <= 2 * self.torch + self.floor


@pytest.fixture(scope="session")
def as_exact_as_torch():
    """`as_exact_as_torch(kernel, torch, fp64)`: three results of one formula, tensors or tuples of them.

    A kernel is as exact as torch when its error against fp64 is at most twice torch's own error in the same dtype.
    """

    def check(kernel, own, exact, floor=1e-6):
        if isinstance(exact, torch.Tensor):
            kernel, own, exact = (kernel,), (own,), (exact,)
        for index, (k, t, e) in enumerate(zip(kernel, own, exact, strict=True)):
            assert k.dtype == t.dtype and k.shape == e.shape, (index, k.dtype, t.dtype, k.shape, e.shape)
            errors = [(x.double() - e).abs().max().item() if e.numel() else 0.0 for x in (k, t)]
            scale = max(1.0, e.abs().max().item() if e.numel() else 0.0)
            found = _Exactness(*errors, floor=floor * scale)
            assert found.holds, (index, found)

    return check


@pytest.fixture(scope="session")
def in_pages():
    """`in_pages(k_TKE, v_TKE, lengths, page_rows)`: packed keys and values as pages, their table and lengths, all that is unused poisoned.

    Pages lie in a random order among strangers; rows that hold nothing are NaN, entries of the table after the last key point nowhere.
    """

    def make(k_TKE, v_TKE, lengths, page_rows, seed=0):
        kv_heads, counts = k_TKE.shape[1], [-(-length // page_rows) for length in lengths]
        shuffled = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(seed)).tolist()
        pages = k_TKE.new_full((len(shuffled), page_rows, 2 * kv_heads, k_TKE.shape[2]), float("nan"))
        table = torch.full((len(lengths), max(counts, default=0) + 1), -7, dtype=torch.int32)
        first = 0
        for sequence, (length, count) in enumerate(zip(lengths, counts)):
            rows = torch.cat([k_TKE[first : first + length], v_TKE[first : first + length]], 1)
            for place in range(count):
                part = rows[place * page_rows : (place + 1) * page_rows]
                table[sequence, place] = page = shuffled.pop()
                pages[page, : part.shape[0]] = part
            first += length
        lengths_S = torch.tensor(lengths, dtype=torch.int32, device=k_TKE.device)
        return *pages.split(kv_heads, 2), table.to(k_TKE.device), lengths_S

    return make
