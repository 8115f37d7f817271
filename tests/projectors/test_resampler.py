"""Qwen-VL's connector against torch's own multi-head attention and positions written out number by number."""

import math

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from lmmblocks.projectors import Resampler
from lmmblocks.projectors.resampler import sincos_2d
from lmmblocks.spec import Grid

IN, OUT, SIDE = 6, 8, 3


def written_out(side, dim):
    """The first half of the channels says the column, the second the row: sines of all frequencies, then cosines."""
    table = np.zeros((side * side, dim))
    quarter = dim // 4
    for y in range(side):
        for x in range(side):
            for i in range(quarter):
                frequency = 1 / 10000 ** (i / quarter)
                table[y * side + x, i] = math.sin(x * frequency)
                table[y * side + x, quarter + i] = math.cos(x * frequency)
                table[y * side + x, 2 * quarter + i] = math.sin(y * frequency)
                table[y * side + x, 3 * quarter + i] = math.cos(y * frequency)
    return torch.from_numpy(table)


@pytest.mark.parametrize("side, dim", [(3, 8), (16, 64), (1, 4)])
def test_positions_are_sines_and_cosines_of_column_and_row(side, dim):
    torch.testing.assert_close(sincos_2d(side, dim).double(), written_out(side, dim), atol=1e-6, rtol=0)


class QwenVL(nn.Module):
    """The formula: attn_pool, ln_post, proj, for images of one size."""

    def __init__(self, in_dim):
        super().__init__()
        self.attn = nn.MultiheadAttention(OUT, 2, batch_first=True)
        self.ln_q, self.ln_kv, self.ln_post = (nn.LayerNorm(OUT, eps=1e-6) for _ in range(3))
        self.query, self.proj = nn.Parameter(torch.zeros(SIDE**2, OUT)), nn.Parameter(torch.zeros(OUT, OUT))
        self.kv_proj = nn.Linear(in_dim, OUT, bias=False) if in_dim != OUT else nn.Identity()

    def forward(self, x, grid):
        table = written_out(SIDE, OUT).float()
        places = table
        if (grid.h, grid.w) != (SIDE, SIDE):
            square = table.view(1, SIDE, SIDE, OUT).permute(0, 3, 1, 2)
            places = F.interpolate(square, (grid.h, grid.w), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(-1, OUT)
        x = self.ln_kv(self.kv_proj(x))
        queries = (self.ln_q(self.query) + table).expand(len(x), -1, -1)
        return self.ln_post(self.attn(queries, x + places, x, need_weights=False)[0]) @ self.proj


@pytest.mark.parametrize("in_dim", [IN, OUT])
@pytest.mark.parametrize("grid", [Grid(3, 3), Grid(5, 5), Grid(2, 4), Grid(1, 1)], ids=str)
def test_resampler_equals_attention_with_positions(grid, in_dim, features_of, randomised, compare):
    twin = randomised(QwenVL(in_dim))
    projector = Resampler(in_dim, OUT, grid=SIDE, heads=2)
    names = {name: name.removeprefix("attn_pool.") for name, _ in projector.named_parameters()}
    own = {name: dict(twin.named_parameters())[other] for name, other in names.items()}
    projector.load_state_dict(own | {"attn_pool.pos_embed": projector.attn_pool.pos_embed})
    features = features_of([grid, grid], in_dim)

    def run():
        return twin(features.patches.unflatten(0, (2, -1)), grid).flatten(0, 1)

    output, gradient = compare(projector, twin, features, run, names, "resampler", "torch.nn.MultiheadAttention")
    assert output <= 1e-5 and gradient <= 1e-4, (output, gradient)


def test_names_are_those_of_qwen_vl():
    names = set(Resampler(IN, OUT, grid=2, heads=2).state_dict())
    attention = {f"attn_pool.attn.{name}" for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")}
    norms = {f"{norm}.{end}" for norm in ("attn_pool.ln_q", "attn_pool.ln_kv", "ln_post") for end in ("weight", "bias")}
    assert names == attention | norms | {"attn_pool.query", "attn_pool.pos_embed", "attn_pool.kv_proj.weight", "proj"}
