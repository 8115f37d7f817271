"""Qwen-VL read from files of the original's layout, against the architecture written out in plain torch with the original's parameter names.

There is no twin in transformers. :class:`Original` is what ``modeling_qwen.py`` and ``visual.py`` of Qwen/Qwen-VL-Chat compute up to ``seq_length``
positions, for one conversation.
"""

import itertools
import json
import math
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

import lmmblocks as lb
from lmmblocks.chat import answer_ends, encode_chat, written
from lmmblocks.chat.qwen_vl import QWEN_VL, QWEN_VL_CHAT
from lmmblocks.chat.text_encoder import text_encoder
from lmmblocks.config import Block
from lmmblocks.data.stretches import stretches_of_pieces
from lmmblocks.generate.prompts import user_message
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, LmmError
from lmmblocks.weights.inspect import inspect
from lmmblocks.weights.systems.qwen_vl import qwen_vl_from_config, qwen_vl_to_config, to_file_names

sys.path.insert(0, str(Path(__file__).parents[1]))
import qwen_vocabulary
from qwen_vocabulary import RANKS, TAGS, write_tokenizer_files

TOLERANCE = 2e-5
TWIN = "Qwen-VL in plain torch"
VISUAL = dict(image_size=56, patch_size=2, width=24, layers=3, heads=3, mlp_ratio=1.7, n_queries=9, output_dim=256)
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


class ResidualBlock(nn.Module):
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
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(ResidualBlock(visual) for _ in range(visual["layers"]))})
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
    changes = {"visual": {**VISUAL, "image_start_id": original.start}, **changes}
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
def test_every_hidden_state_of_the_tower_equals_the_original(ours, theirs, samples):
    encoder = replace(ours.config.encoder, select=(0, 1, 2, -1)).build()
    encoder.load_state_dict(ours.encoder.state_dict())
    visual, pixels = theirs.transformer["visual"], samples[1]
    x = visual.ln_pre(visual.conv1(pixels).flatten(2).transpose(1, 2) + stretched(visual.positional_embedding, visual.side))
    states = [x]
    for block in visual.transformer["resblocks"]:
        states.append(block(states[-1]))
    torch.testing.assert_close(encoder(pixels).patches, torch.cat(states, -1).flatten(0, 1), atol=TOLERANCE, rtol=0)
    third = visual.transformer["resblocks"][2]
    keys = third.attn.in_proj(third.ln_1(states[2])).view(3, -1, 3, 3, 8)[:, :, :, 1]  # image, patch, head, then query, key and value
    torch.testing.assert_close(encoder(pixels, need=frozenset({"keys"})).keys, keys.flatten(0, 1), atol=TOLERANCE, rtol=0)


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


def test_written_in_the_layout_of_the_original_it_is_what_was_read(ours, theirs, folder, tmp_path):
    out = ours.save(tmp_path / "out", format="qwen_vl")
    written, expected = load_file(out / "model.safetensors"), theirs.state_dict()
    assert {name: value.shape for name, value in written.items()} == {name: value.shape for name, value in expected.items()}
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert (out / "qwen.tiktoken").read_bytes() == (folder / "qwen.tiktoken").read_bytes()
    values, read = json.loads((out / "config.json").read_text()), CONFIG | {"max_position_embeddings": 8192, "bf16": False, "fp32": True}
    assert {key: values[key] for key in read if key != "visual"} == {key: value for key, value in read.items() if key != "visual"}
    assert {**values["visual"], "mlp_ratio": None} == {**VISUAL, "mlp_ratio": None, "image_start_id": theirs.start}
    assert int(24 * values["visual"]["mlp_ratio"]) == int(24 * VISUAL["mlp_ratio"])
    assert json.loads((out / "generation_config.json").read_text())["chat_format"] == "chatml"


@torch.no_grad()
def test_read_again_it_is_the_same_model(ours, samples, tmp_path, recwarn):
    out, expected = ours.save(tmp_path / "out", format="qwen_vl"), ours.logits(our_batch(*samples))
    for silent in (False, True):
        if silent:
            (out / "lmmblocks.json").unlink()
        again = lb.load(out)
        assert torch.equal(again.logits(our_batch(*samples)), expected)
        assert (again.config, again.template) == (replace(ours.config, decoder=again.config.decoder), QWEN_VL_CHAT)
        assert again.tokenizer.get_vocab() == ours.tokenizer.get_vocab()
        assert not inspect(out).problems and "qwen_vit" in inspect(out).part("encoder").what
    native = lb.load(ours.save(tmp_path / "native", format="native"))
    assert torch.equal(native.logits(our_batch(*samples)), expected) and native.template == QWEN_VL_CHAT
    said = [str(warning.message) for warning in recwarn]
    assert all("chat template is written" in text or "top_p" in text for text in said), said


def context(messages, system="You are a helpful assistant."):
    """Ids as ``make_context`` makes them, one for each image: roles, line breaks and contents are encoded apart."""
    theirs = qwen_vocabulary.original()
    start, end, shown = (theirs.encode_single_token(token) for token in ("<|im_start|>", "<|im_end|>", "<img>"))
    line, pictures, ids = theirs.encode("\n"), itertools.count(1), []
    for number, message in enumerate([{"role": "system", "content": system}, *messages]):
        text = re.sub("<image>", lambda _: f"Picture {next(pictures)}: <img></img>", message["content"])
        content = theirs.encode(unicodedata.normalize("NFC", text), allowed_special=set(TAGS), disallowed_special=())
        content = [each for token in content for each in ((token, IMAGE_TOKEN) if token == shown else (token,))]
        ids += [*(line if number else []), start, *theirs.encode(message["role"]), *line, *content, end]
    return [*ids, *line, start, *theirs.encode("assistant"), *line]


WORDS = ("<image>", "\n", " ", "What", " is it?", "一只猫", "<ref>", "the dog", "</ref>", "\r\n", "  ")
CONTENTS = st.lists(st.sampled_from(WORDS), max_size=8).map("".join)


@given(asked=CONTENTS, answered=CONTENTS.filter(lambda text: "<image>" not in text), again=CONTENTS, system=st.none() | st.just("Be brief.\n"))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompts_are_those_of_the_original(ours, asked, answered, again, system):
    messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), (asked, answered, again))]
    told = [] if system is None else [{"role": "system", "content": system}]
    tokens = encode_chat([*told, *messages], QWEN_VL_CHAT, ours.tokenizer, add_generation_prompt=True)
    expected = context(messages) if system is None else context(messages, system)
    assert tokens.ids == expected
    end = ours.tokenizer.convert_tokens_to_ids("<|im_end|>")
    learned = [label for label in tokens.labels if label != IGNORE_LABEL]
    said = qwen_vocabulary.original().encode(answered, allowed_special=set(TAGS[:6]), disallowed_special=())
    assert learned == [*said, end]


def test_a_question_with_pictures_is_written_as_from_list_format_does(ours):
    """``from_list_format([{"image": ...}, {"image": ...}, {"text": ...}])``: each picture on a line of its own."""
    question = ours.template.render([user_message("What?", 2)], add_generation_prompt=True)
    assert all(stretch.text or stretch.image is not None for stretch in stretches_of_pieces(question))
    assert "Picture 1: <img><image></img>\nPicture 2: <img><image></img>\nWhat?<|im_end|>" in written(question)
    base = QWEN_VL.render([user_message("<image>Describe the image in English:", 1)], add_generation_prompt=True)
    assert written(base) == "<img><image></img>Describe the image in English:"
    answered = [{"role": "user", "content": "<image>What? Answer:"}, {"role": "assistant", "content": "Dogs"}]
    assert written(QWEN_VL.render(answered), eos="<eos>") == "<img><image></img>What? Answer: Dogs<eos>"


@torch.no_grad()
def test_greedy_answers_are_those_of_the_original(ours, theirs, colour_picture, record_parity):
    picture, differing = colour_picture(1), 0
    pixels = ours.encoder.preprocess.batch([picture])[0]
    ids = context([{"role": "user", "content": "<image>\nWhat is it?"}])
    said = []
    for _ in range(8):
        said.append(their_logits(theirs, [[*ids, *said]], pixels)[-1].argmax().item())
        if said[-1] in answer_ends(ours.template, ours.tokenizer):
            break
    found = ours.generate("What is it?", images=picture, max_new_tokens=8)
    ends = answer_ends(ours.template, ours.tokenizer)
    expected = text_encoder(ours.tokenizer).decode([token for token in said if token not in ends])
    differing = sum(a != b for a, b in zip(found, expected))
    record_parity("Qwen-VL", TWIN, "greedy tokens that differ", differing)
    assert len(said) > 2 and found == expected


def test_answers_end_with_the_tokens_of_the_original(ours):
    """``eos_token_id`` of its generation config and ``get_stop_words_ids``."""
    vocabulary = ours.tokenizer.get_vocab()
    assert answer_ends(ours.template, ours.tokenizer) == {vocabulary[token] for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")}


def test_pixels_are_those_of_the_original(ours, colour_picture):
    """Squashed with PIL's bicubic filter, then CLIP's mean and standard deviation."""
    picture = colour_picture(4, size=(90, 37)).convert("RGB")
    values = torch.from_numpy(np.array(picture.resize((56, 56), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(ours.encoder.preprocess(picture), expected, atol=1e-6, rtol=0)


def released():
    """Names and shapes of Qwen-VL's 853 tensors, from its ``config.json`` and code."""
    table = {"transformer.wte": (151936, 4096), "transformer.ln_f": (4096,), "lm_head": (151936, 4096)}
    for i in range(32):
        layer = f"transformer.h.{i}"
        table |= {f"{layer}.ln_1": (4096,), f"{layer}.ln_2": (4096,), f"{layer}.attn.c_attn": (12288, 4096), f"{layer}.attn.c_proj": (4096, 4096)}
        table |= {f"{layer}.mlp.w1": (11008, 4096), f"{layer}.mlp.w2": (11008, 4096), f"{layer}.mlp.c_proj": (4096, 11008)}
    weights = {f"{name}.weight": shape for name, shape in table.items()}
    weights |= {f"transformer.h.{i}.attn.c_attn.bias": (12288,) for i in range(32)}
    visual = {"conv1.weight": (1664, 3, 14, 14), "positional_embedding": (256, 1664), "proj": (4096, 4096)}
    both = {"ln_pre": (1664,), "ln_post": (4096,), "attn_pool.ln_q": (4096,), "attn_pool.ln_kv": (4096,), "attn_pool.attn.out_proj": (4096, 4096)}
    visual |= {"attn_pool.query": (256, 4096), "attn_pool.pos_embed": (256, 4096), "attn_pool.kv_proj.weight": (4096, 1664)}
    visual |= {"attn_pool.attn.in_proj_weight": (12288, 4096), "attn_pool.attn.in_proj_bias": (12288,)}
    for i in range(48):
        block = f"transformer.resblocks.{i}"
        both |= {f"{block}.ln_1": (1664,), f"{block}.ln_2": (1664,), f"{block}.attn.in_proj": (4992, 1664), f"{block}.attn.out_proj": (1664, 1664)}
        both |= {f"{block}.mlp.c_fc": (8192, 1664), f"{block}.mlp.c_proj": (1664, 8192)}
    for name, shape in both.items():
        visual |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return weights | {f"transformer.visual.{name}": shape for name, shape in visual.items()}


@pytest.mark.parametrize("name", ["qwen-vl-7b", "qwen-vl-chat-7b"])
def test_the_preset_has_the_names_and_shapes_of_the_released_model(name):
    model = lb.build(name, device="meta")
    found = {key: tuple(value.shape) for key, value in to_file_names(model.config, model.state_dict()).items()}
    assert len(found) == 853 and found == released()
    billions = {part: sum(value.numel() for value in module.parameters()) / 1e9 for part, module in model.parts.items()}
    assert {part: round(count, 2) for part, count in billions.items()} == {"encoder": 1.84, "projector": 0.09, "decoder": 7.72}
    assert out_rows(model) == 256


def out_rows(model):
    return model.projector.out_grid(model.encoder.preprocess.grid(640, 480)).rows


RELEASED = dict(
    **dict(model_type="qwen", bf16=True, hidden_size=4096, intermediate_size=22016, kv_channels=128, layer_norm_epsilon=1e-06),
    **dict(max_position_embeddings=8192, no_bias=True, num_attention_heads=32, num_hidden_layers=32, rotary_emb_base=10000, rotary_pct=1.0),
    **dict(scale_attn_weights=True, seq_length=2048, tie_word_embeddings=False, use_dynamic_ntk=True, use_logn_attn=True, vocab_size=151936),
    visual=dict(heads=16, image_size=448, image_start_id=151857, layers=48, mlp_ratio=4.9231, output_dim=4096, patch_size=14, width=1664),
)
"""What decides about computation in the ``config.json`` of Qwen/Qwen-VL-Chat."""


def test_the_config_of_the_released_model_is_the_preset():
    assert qwen_vl_from_config(RELEASED) == lb.presets.preset("qwen-vl-7b")
    written = qwen_vl_to_config(lb.presets.preset("qwen-vl-chat-7b"))
    expected = {key: value for key, value in RELEASED.items() if key not in ("visual", "bf16")}
    assert {key: written[key] for key in expected} == expected
    assert written["visual"] == {**RELEASED["visual"], "n_queries": 256}


def test_stretching_begins_behind_seq_length():
    """The original's ``get_ntk_alpha`` and ``logn_tensor`` are 1 up to there, so a decoder of that many positions computes the same."""
    alpha = {length: max(2 ** math.ceil(math.log(length / 2048, 2) + 1) - 1, 1) for length in (1, 2, 3, 1024, 2047, 2048, 2049, 4096)}
    assert [length for length, factor in alpha.items() if factor != 1] == [2049, 4096]
    assert qwen_vl_from_config(RELEASED).decoder.max_positions == 2048
    plain = {**RELEASED, "use_dynamic_ntk": False, "use_logn_attn": False}
    assert qwen_vl_from_config(plain).decoder.max_positions == 8192
    assert qwen_vl_from_config({**plain, "use_logn_attn": True}).decoder.max_positions == 2048


def test_conversations_that_would_be_stretched_are_refused(ours):
    with pytest.raises(LmmError, match="256"):
        ours.generate("What? " * 200)


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(no_bias=False), "no_bias=False .expected True"),
        (dict(scale_attn_weights=False), "scale_attn_weights=False .expected True"),
        (dict(kv_channels=32), "kv_channels=32 .expected 64"),
        (dict(hidden_size="wide"), "expected positive numbers.*hidden_size='wide'"),
        (dict(visual={**VISUAL, "output_dim": 128}), "output_dim=128 .expected 256"),
        (dict(visual={**VISUAL, "n_queries": 8}), "n_queries=8 .expected 4"),
        (dict(visual={**VISUAL, "image_start_id": 151857}), "image_start_id=151857, in qwen.tiktoken <img> has the id [0-9]+: use"),
    ],
)
def test_what_the_blocks_cannot_compute_is_refused(theirs, changes, says, tmp_path):
    with pytest.raises(LmmError, match=says):
        lb.load(write(tmp_path, theirs, **changes))


def test_another_chat_format_is_refused_and_none_is_the_base_models(theirs, tmp_path):
    with pytest.raises(LmmError, match="has chat_format 'vicuna', expected one of 'raw', 'chatml'"):
        lb.load(write(tmp_path, theirs, chat_format="vicuna"))
    (tmp_path / "generation_config.json").unlink()
    assert lb.load(tmp_path).template == QWEN_VL


def test_what_the_original_has_no_place_for_is_refused(ours, tiny_model, tmp_path):
    with pytest.raises(LmmError, match="the original Qwen-VL has no place for CLIPConfig .expected QwenViTConfig"):
        tiny_model.save(tmp_path / "out", format="qwen_vl")
    decoder = replace(ours.config.decoder, rope_scaling={"method": "linear", "factor": 2.0})
    padded, projector = replace(ours.config.preprocess, fit="pad"), Block("resampler", {"grid": 3, "heads": 1})
    other = replace(ours.config, decoder=decoder, preprocess=padded, projector=projector)
    with pytest.raises(LmmError, match=r"decoder with rope_scaling=.*; projector 'resampler'.*'heads': 1.*; preprocessing .*fit='pad'"):
        qwen_vl_to_config(other)
    assert not (tmp_path / "out").exists()
