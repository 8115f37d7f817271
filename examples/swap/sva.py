"""Cambrian-1's Spatial Vision Aggregator: queries on a grid, each looking at its own window of every tower; again inside the language model.

Tong et al., arXiv 2406.16860; ``vision_sampler.py``, ``cambrian_arch.py`` and, inside, a copy of Llama's forward. ``python -m examples.swap.sva``
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

import lmmblocks as lb
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.fused import FusedConfig


class Sampler(nn.Module):
    """One layer: each query attends to its windows of all towers at once."""

    def __init__(self, q_dim, dim, windows, heads):
        super().__init__()
        self.proj_context, self.proj_in = nn.Linear(dim, dim, bias=False), nn.Linear(q_dim + dim, dim, bias=False)
        self.pos = nn.ParameterDict({str(i): torch.randn(w * w, dim) for i, w in enumerate(windows) if w > 1})
        own = [nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim, bias=False)) for _ in range(2 * len(windows) + 1)]
        self.q, self.k, self.v = own[0], nn.ModuleList(own[1::2]), nn.ModuleList(own[2::2])
        self.heads, self.o, self.norm = heads, nn.Linear(dim, dim, bias=False), nn.LayerNorm(dim)
        self.proj_out = nn.Sequential(nn.Linear(dim, dim, bias=False), nn.GELU(), nn.Linear(dim, q_dim, bias=False))

    def forward(self, queries_QC, context_QC, windows):
        x = self.proj_in(torch.cat([queries_QC, self.proj_context(context_QC)], -1))
        placed = [w + self.pos[str(i)] if str(i) in self.pos else w for i, w in enumerate(windows)]
        k, v = (torch.cat([f(w) for f, w in zip(layers, placed)], 1) for layers in (self.k, self.v))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.q(x)[:, None], k, v))
        return queries_QC + self.proj_out(self.norm(x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))))


class Aggregator(nn.Module):
    """Samplers, and what they look at: every tower at one width, its map cut into one window per query."""

    def __init__(self, towers, q_dim, depth, side, dim, heads):
        super().__init__()
        self.side, windows = side, [t.image_size // t.patch // side for t in towers]
        self.aux = nn.ModuleList(nn.Sequential(nn.Linear(t.dim, dim), nn.GELU(), nn.Linear(dim, dim), nn.LayerNorm(dim)) for t in towers)
        self.samplers = nn.ModuleList(Sampler(q_dim, dim, windows, heads) for _ in range(depth))

    from_spec = classmethod(lambda cls, spec, out_dim, **options: cls(spec.towers, out_dim, **options))

    def look(self, towers):
        maps = [aux(tower.patches).unflatten(0, (len(tower.grids), -1)) for aux, tower in zip(self.aux, towers)]
        cut = [m.unflatten(1, (self.side, tower.grids[0].h // self.side) * 2).transpose(2, 3) for m, tower in zip(maps, towers)]
        return maps[0].mean(1).repeat_interleave(self.side**2, 0), [c.flatten(0, 2).flatten(1, 2) for c in cut]


class SVA(Aggregator):
    """The connector: ``side x side`` queries, all alike at first, then an MLP to the decoder's width."""

    requires = frozenset({"towers"})

    def __init__(self, towers, out_dim, side=4, dim=32, depth=2, heads=4):
        super().__init__(towers, dim, depth, side, dim, heads)
        self.query = nn.Parameter(torch.randn(1, dim) * dim**-0.5)
        self.mlp = nn.Sequential(nn.Linear(dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim))

    def out_grid(self, grid):
        return lb.Grid(self.side, self.side)

    def forward(self, features):
        seen, queries = self.look(features.towers), self.query.expand(len(features.grids) * self.side**2, -1)
        for sampler in self.samplers:
            queries = sampler(queries, *seen)
        return self.mlp(queries)


class SVAInDecoder(Aggregator):
    """The same look from inside the language model, before ``layers``: the image's rows are the queries."""

    requires = frozenset({"vision", "towers"})

    def __init__(self, towers, out_dim, layers=(1, 3), side=4, dim=32, heads=4):
        super().__init__(towers, out_dim, len(layers), side, dim, heads)
        self.layers = tuple(layers)

    def forward(self, hidden, context):
        if not sum((vision := context.vision).row_counts):
            return hidden  # a pass without image rows, such as one more token of the answer
        spare = F.pad(hidden, (0, 0, 0, 1))  # one more row, for those that were truncated away
        at = torch.where(vision.rows_M < 0, len(hidden), vision.rows_M).long()
        return spare.index_copy(0, at, self.samplers[self.layers.index(context.layer)](spare[at], *self.look(vision.features.towers)))[:-1]


def main():
    fine = CLIPConfig(dim=32, layers=2, heads=4, mlp_dim=64, image_size=128, patch=8)
    towers = FusedConfig((CLIPConfig(dim=64, layers=2, heads=4, mlp_dim=64, image_size=112), fine), combine="list")
    model = lb.build("llava15-tiny", encoder=towers, projector=SVA, hooks=[SVAInDecoder], weights="random")
    encoded = model.encode_images(model.encoder.preprocess.batch([Image.new("RGB", (160, 120))])[0])
    seen = [str(tower.grids[0]) for tower in encoded.features.towers]
    print(f"towers {seen} become {encoded.counts[0]} rows, which look again before layers {model.hooks[0].layers}")


if __name__ == "__main__":
    main()
