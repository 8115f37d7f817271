"""Qwen-VL read from files of the original's layout, against the architecture written out in plain torch with the original's parameter names.

There is no twin in transformers. :class:`Original` is what ``modeling_qwen.py`` and ``visual.py`` of Qwen/Qwen-VL-Chat compute up to ``seq_length``
positions, for one conversation.
"""

import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import lmmblocks as lb
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid
from lmmblocks.weights.systems.qwen_vl import to_file_names

sys.path.insert(0, str(Path(__file__).parents[1]))
import qwen_vocabulary
from qwen_vocabulary import RANKS, write_tokenizer_files

TOLERANCE = 2e-5
TWIN = "Qwen-VL in plain torch"
VISUAL = dict(image_size=56, patch_size=2, width=24, layers=3, heads=3, mlp_ratio=1.7, n_queries=9, output_dim=256, image_start_id=151857)
CONFIG = dict(
    **dict(model_type="qwen", architectures=["QWenLMHeadModel"], vocab_size=800, hidden_size=256, num_hidden_layers=2, num_attention_heads=4),
    **dict(kv_channels=64, intermediate_size=160, seq_length=256, max_position_embeddings=1024, layer_norm_epsilon=1e-6),
    **dict(rotary_emb_base=10000, rotary_pct=1.0, no_bias=True, scale_attn_weights=True, tie_word_embeddings=False),
    **dict(use_dynamic_ntk=True, use_logn_attn=True, bf16=True, fp16=False, fp32=False, visual=VISUAL),
)


class VisualAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.in_proj, self.out_proj, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x):
        batch, rows, width = x.shape
        each = self.in_proj(x).view(batch, rows, self.heads, 3 * width // self.heads)  # a head's query, key and value lie side by side
        q, k, v = (part.transpose(1, 2) for part in each.split(width // self.heads, -1))
        weights = (q / math.sqrt(width // self.heads) @ k.transpose(-1, -2)).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).reshape(batch, rows, width))


class Block(nn.Module):
    def __init__(self, visual):
        super().__init__()
        width, hidden = visual["width"], int(visual["width"] * visual["mlp_ratio"])
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = VisualAttention(width, visual["heads"])
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


def sines(side, dim):
    """The first half of the channels says the column, the second the row."""
    waves = 1 / 10000 ** (torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows = []
    for y in range(side):
        for x in range(side):
            rows.append(torch.cat([torch.sin(x * waves), torch.cos(x * waves), torch.sin(y * waves), torch.cos(y * waves)]))
    return torch.stack(rows).float()


def stretched(table, side):
    own = math.isqrt(len(table))
    square = table.float().view(1, own, own, -1).permute(0, 3, 1, 2)
    return table if own == side else F.interpolate(square, (side, side), mode="bicubic").permute(0, 2, 3, 1).flatten(0, 2)


class Pool(nn.Module):
    def __init__(self, visual):
        super().__init__()
        dim, side = visual["output_dim"], math.isqrt(visual["n_queries"])
        self.pos_embed, self.query = nn.Parameter(sines(side, dim), requires_grad=False), nn.Parameter(torch.zeros(side**2, dim))
        self.kv_proj = nn.Linear(visual["width"], dim, bias=False)
        self.attn = nn.MultiheadAttention(dim, dim // 128)
        self.ln_q, self.ln_kv = (nn.LayerNorm(dim, eps=1e-6) for _ in range(2))

    def forward(self, x, side):
        x = self.ln_kv(self.kv_proj(x)).transpose(0, 1)
        queries = self.ln_q(self.query)[:, None].repeat(1, x.shape[1], 1) + self.pos_embed[:, None]
        return self.attn(queries, x + stretched(self.pos_embed, side)[:, None], x)[0].transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, visual):
        super().__init__()
        width, dim = visual["width"], visual["output_dim"]
        self.side = visual["image_size"] // visual["patch_size"]
        self.conv1 = nn.Conv2d(3, width, visual["patch_size"], visual["patch_size"], bias=False)
        self.positional_embedding = nn.Parameter(torch.zeros(256, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(visual) for _ in range(visual["layers"]))})
        self.attn_pool, self.proj = Pool(visual), nn.Parameter(torch.zeros(dim, dim))

    def forward(self, pixels):
        x = self.ln_pre(self.conv1(pixels).flatten(2).transpose(1, 2) + stretched(self.positional_embedding, self.side))
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(self.attn_pool(x, self.side)) @ self.proj


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        dim, hidden = config["hidden_size"], config["intermediate_size"] // 2
        self.ln_1, self.ln_2, self.heads = RMSNorm(dim), RMSNorm(dim), config["num_attention_heads"]
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(dim, 3 * dim), "c_proj": nn.Linear(dim, dim, bias=False)})
        self.mlp = nn.ModuleDict({name: nn.Linear(dim, hidden, bias=False) for name in ("w1", "w2")})
        self.mlp["c_proj"] = nn.Linear(hidden, dim, bias=False)

    def forward(self, x, cos, sin):
        batch, rows, dim = x.shape
        q, k, v = (part.view(batch, rows, self.heads, -1) for part in self.attn["c_attn"](self.ln_1(x)).split(dim, -1))
        q, k, v = (part.transpose(1, 2) for part in (turned(q, cos, sin), turned(k, cos, sin), v))
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(torch.ones(rows, rows, dtype=torch.bool).triu(1), -torch.inf)
        x = x + self.attn["c_proj"]((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, rows, dim))
        normed = self.ln_2(x)
        return x + self.mlp["c_proj"](self.mlp["w1"](normed) * F.silu(self.mlp["w2"](normed)))


def turned(x, cos, sin):
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class Original(nn.Module):
    """Logits of one conversation ``(1, T)``; an image's rows come between ``<img>`` and ``</img>``."""

    def __init__(self, config, start):
        super().__init__()
        self.config, self.start = config, start
        layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        table = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.transformer = nn.ModuleDict({"wte": table, "h": layers, "ln_f": RMSNorm(config["hidden_size"]), "visual": Visual(config["visual"])})
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)

    def forward(self, ids, pixels):
        x = self.transformer["wte"](ids)
        starts, ends = ((ids[0] == token).nonzero()[:, 0].tolist() for token in (self.start, self.start + 1))
        images = self.transformer["visual"](pixels) if len(pixels) else ()
        for a, b, image in reversed(list(zip(starts, ends, images, strict=True))):
            x = torch.cat([x[:, : a + 1], image[None], x[:, b:]], 1)
        width = self.config["kv_channels"]
        waves = 1 / self.config["rotary_emb_base"] ** (torch.arange(0, width, 2).float() / width)
        angles = torch.outer(torch.arange(x.shape[1]).float(), waves).repeat(1, 2)[:, None]
        for layer in self.transformer["h"]:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.transformer["ln_f"](x))


def write(folder, original, *, chat_format="chatml", **changes):
    """A folder as on the hub, its code aside; frequencies that older code wrote are in the file, too."""
    state = {name: value.detach().clone() for name, value in original.state_dict().items()}
    write_bins({**state, "transformer.rotary_emb.inv_freq": torch.ones(32)}, folder)
    (folder / "config.json").write_text(json.dumps({**original.config, **changes}))
    said = {"chat_format": chat_format, "eos_token_id": len(RANKS), "pad_token_id": len(RANKS), "do_sample": True, "top_k": 0, "top_p": 0.3}
    (folder / "generation_config.json").write_text(json.dumps(said))
    return write_tokenizer_files(folder)


def write_bins(tensors, folder):
    place = {name: f"pytorch_model-0000{1 + index % 2}-of-00002.bin" for index, name in enumerate(tensors)}
    for shard in set(place.values()):
        torch.save({name: value for name, value in tensors.items() if place[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


@pytest.fixture(scope="module")
def theirs():
    """Every parameter has its own values, so that no part of the comparison is trivially equal, of a size that keeps that of rows."""
    original = Original(CONFIG, qwen_vocabulary.original().encode_single_token("<img>")).eval()
    generator = torch.Generator().manual_seed(3)
    for name, value in original.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        if value.requires_grad:
            norm = ".ln_" in name and name.endswith("weight")
            value.data = 1 + 0.1 * noise if norm else noise / math.sqrt(value[0].numel()) if value.dim() > 1 else 0.1 * noise
    original.transformer["wte"].weight.data *= 16
    return original


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    return write(tmp_path_factory.mktemp("qwen_vl"), theirs)


@pytest.fixture(scope="module")
def ours(folder):
    return lb.load(folder)


@pytest.fixture(scope="module")
def samples(theirs):
    """Ids with ``IMAGE_TOKEN`` for each image: one image, none, two; and pixels."""
    random = torch.Generator().manual_seed(5)
    words = lambda length: torch.randint(0, len(RANKS), (length,), generator=random).tolist()  # noqa: E731
    shown = [theirs.start, IMAGE_TOKEN, theirs.start + 1]
    ids = [[*words(4), *shown, *words(5)], words(9), [*shown, *words(3), *shown, *words(4)]]
    return ids, torch.randn(3, 3, 56, 56, generator=random)


def our_batch(ids, pixels, labels=None):
    plan = plan_splice(ids, [[9] * row.count(IMAGE_TOKEN) for row in ids], labels=labels)
    return Batch(pixels, (Grid(28, 28),) * len(pixels), plan)


def their_logits(theirs, ids, pixels):
    """Of every row, sample after sample."""
    images, rows = iter(pixels), []
    for row in ids:
        own = [next(images) for _ in range(row.count(IMAGE_TOKEN))]
        text = torch.tensor([[token for token in row if token != IMAGE_TOKEN]])
        rows.append(theirs(text, torch.stack(own) if own else pixels[:0])[0])
    return torch.cat(rows)


@torch.no_grad()
def test_every_row_of_logits_equals_the_original(ours, theirs, samples, record_parity):
    expected, got = their_logits(theirs, *samples), ours.logits(our_batch(*samples))
    error = (got - expected).abs().max().item()
    print("largest logit", expected.abs().max().item(), "largest difference", error)
    record_parity("Qwen-VL", TWIN, "logits: largest absolute difference", error)
    assert expected.abs().max() > 1 and error <= TOLERANCE


@torch.no_grad()
def test_packed_equals_each_sample_alone(ours, samples):
    ids, pixels = samples
    counts = [row.count(IMAGE_TOKEN) for row in ids]
    lengths = [len(row) + 8 * count for row, count in zip(ids, counts)]
    together = ours.logits(our_batch(ids, pixels)).split(lengths)
    for row, own, among in zip(ids, pixels.split(counts), together):
        torch.testing.assert_close(ours.logits(our_batch([row], own)), among, atol=TOLERANCE, rtol=0)


def test_gradients_equal_those_of_the_original(folder, theirs, samples, record_parity):
    ours, (ids, pixels) = lb.load(folder), samples
    for parameter in ours.parameters():
        parameter.requires_grad_(True)
    labels = [[IGNORE_LABEL if token == IMAGE_TOKEN else token for token in row] for row in ids]
    ours.loss(our_batch(ids, pixels, labels), reduction="sum").backward()
    theirs.zero_grad()
    plan = our_batch(ids, pixels, labels).plan
    logits = their_logits(theirs, ids, pixels)
    F.cross_entropy(logits[plan.target_rows.long()], plan.targets, reduction="sum").backward()
    found = to_file_names(ours.config, {name: value.grad for name, value in ours.named_parameters()})
    expected = {name: value.grad for name, value in theirs.named_parameters() if value.requires_grad}
    assert found.keys() == expected.keys()
    worst = max(((found[name] - expected[name]).abs().max() / expected[name].abs().max()).item() for name in expected)
    record_parity("Qwen-VL", TWIN, "gradients: largest difference, relative to the largest of its tensor", worst)
    assert worst <= 1e-4 and all(value.abs().max() > 0 for value in expected.values())
