"""A projector of your own, in your own file. Nothing is inherited and nothing in the library is touched.

import lmmblocks as lb

lb.build("llava15-7b", projector=GatedPair)                                    # by class
lb.build("llava15-7b", projector="examples.swap.my_projector:GatedPair")       # by name, as a saved model remembers it
lb.build("llava15-7b", projector=lb.Block("my_package.my_file:GatedPair", {"hidden": 2048}))
"""

import torch
import torch.nn as nn

import lmmblocks as lb


class GatedPair(nn.Module):
    """Two neighbouring patches of a line become one row, through a gated layer."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim: int, out_dim: int, hidden: int = 256) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(2 * in_dim, hidden), nn.Linear(2 * in_dim, hidden)
        self.down = nn.Linear(hidden, out_dim)

    def out_grid(self, grid: lb.Grid) -> lb.Grid:
        """The only place that counts rows; ``build`` checks it against what ``forward`` gives."""
        return lb.Grid(grid.h, grid.w // 2)

    def forward(self, features: lb.VisionFeatures) -> torch.Tensor:
        pairs = features.patches.unflatten(0, (-1, 2)).flatten(1)
        return self.down(nn.functional.silu(self.gate(pairs)) * self.up(pairs))


def main() -> None:
    for projector in (GatedPair, "examples.swap.my_projector:GatedPair"):
        model = lb.build("llava15-tiny", projector=projector, weights="random")
        grid = lb.Grid(8, 8)
        print(f"{model.config.projector.type}: {grid} patches become {model.projector.out_grid(grid)} rows of width {model.decoder.dim}")


if __name__ == "__main__":
    main()
