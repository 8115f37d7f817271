"""VisionZip in one class: CLS and the patches it attends to most stay, the others are merged into a few by similar keys.

Yang et al., arXiv 2412.04467; ``clip_encoder.py`` of dvlab-research/VisionZip, there by rebinding ``forward`` of three classes.
Run: ``python -m examples.swap.visionzip``.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

import lmmblocks as lb


class VisionZip(nn.Module):
    """``dominant`` rows that stay, CLS among them, and ``contextual`` merged ones."""

    requires = frozenset({"patches", "prefix", "keys", "cls_attn"})
    before_projector = True

    def __init__(self, dominant: int = 54, contextual: int = 10) -> None:
        super().__init__()
        self.dominant, self.contextual = dominant, contextual
        self.options = {"dominant": dominant, "contextual": contextual}

    def out_count(self, grid: lb.Grid) -> int:
        return self.dominant + self.contextual

    def forward(self, features, rows, grids):
        images, stay = len(grids), self.dominant - 1
        keys = F.normalize(features.keys.mean(1), dim=-1)  # mean over heads
        x, keys, attention = (t.unflatten(0, (images, -1)) for t in (rows, keys, features.cls_attn))
        chosen = torch.zeros_like(attention).scatter(1, attention.topk(stay, dim=1).indices, 1.0)
        order = chosen.argsort(dim=1, stable=True)[..., None]  # the others in their order, then the chosen in theirs
        x, keys = torch.take_along_dim(x, order, 1), torch.take_along_dim(keys, order, 1)
        others, dominant = x[:, :-stay], x[:, -stay:]
        step = others.shape[1] // self.contextual
        targets = slice(0, step * self.contextual, step)
        similar = keys[:, :-stay] @ keys[:, :-stay][:, targets].transpose(1, 2)
        joins = torch.zeros_like(similar).scatter(2, similar.argmax(2, keepdim=True), 1.0)
        joins[:, targets] = 0  # a target joins nobody
        merged = joins.transpose(1, 2) @ others / joins.sum(1).clamp_min(1)[..., None]
        out = torch.cat([features.prefix[:, :1], dominant, others[:, targets] + merged], 1)
        return out.flatten(0, 1)


def main() -> None:
    torch.manual_seed(0)
    for reducers in ([], [VisionZip(dominant=12, contextual=4)]):
        model = lb.build("llava15-tiny", reducers=reducers, weights="random")
        with torch.no_grad():
            rows, counts = model.encode(torch.randn(2, 3, 112, 112))
        print(f"reducers {[type(r).__name__ for r in reducers]}: two images become {counts} rows of width {rows.shape[1]}")


if __name__ == "__main__":
    main()
