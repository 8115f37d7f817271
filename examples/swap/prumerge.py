"""LLaVA-PruMerge in one class: keep the patches that CLS attends to most, add to each what the patches with similar keys hold.

Shang et al., arXiv 2403.15388; ``clip_encoder.py`` of 42Shawn/LLaVA-PruMerge, there with a loop over every image and every kept patch. The number of
kept patches is fixed: a batch is planned before the encoder runs. Run: ``python -m examples.swap.prumerge``.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

import lmmblocks as lb


class PruMerge(nn.Module):
    """``keep`` patches, each with its ``neighbours`` weighted by CLS attention, and one row for all the others."""

    requires = frozenset({"patches", "keys", "cls_attn"})
    before_projector = True

    def __init__(self, keep: int = 32, neighbours: int = 32) -> None:
        super().__init__()
        self.keep, self.neighbours = keep, neighbours
        self.options = {"keep": keep, "neighbours": neighbours}

    def out_count(self, grid: lb.Grid) -> int:
        return self.keep + 1

    def forward(self, features, rows, grids):
        images = len(grids)  # all of one size: the encoder is CLIP
        x, keys, attention = (t.unflatten(0, (images, -1)) for t in (rows, features.keys.flatten(1), features.cls_attn))
        kept = attention.topk(self.keep, dim=1).indices
        keys = F.normalize(keys, dim=-1)
        mine = torch.take_along_dim(keys, kept[..., None], 1)
        similar = (mine @ keys.transpose(1, 2)).scatter(2, kept[..., None], -torch.inf)
        near = similar.topk(min(self.neighbours, x.shape[1] - 1), dim=2).indices
        weight = attention[:, None].expand_as(similar)
        weight = torch.zeros_like(similar).scatter(2, near, weight.gather(2, near)).scatter(2, kept[..., None], 1.0)
        rest = attention.scatter(1, kept, 0.0)[:, None]
        merged = torch.cat([weight, rest], 1) @ x
        return merged.flatten(0, 1)


def main() -> None:
    torch.manual_seed(0)
    for reducers in ([], [PruMerge(keep=8)]):
        model = lb.build("llava15-tiny", reducers=reducers, weights="random")
        with torch.no_grad():
            rows, counts = model.encode(torch.randn(2, 3, 112, 112))
        print(f"reducers {[type(r).__name__ for r in reducers]}: two images become {counts} rows of width {rows.shape[1]}")


if __name__ == "__main__":
    main()
