"""Blocks of somebody's own, which can be imported by another program."""

from dataclasses import dataclass, replace

import torch

from lmmblocks.encoders.clip import CLIP, CLIPConfig
from lmmblocks.images.native import NativePreprocess
from lmmblocks.images.preprocess import ImagePreprocess
from lmmblocks.projectors import MLP
from lmmblocks.spec import Grid


class Grey(ImagePreprocess):
    """A subclass without fields of its own: it computes other pixels."""

    def batch(self, images):
        pixels, grids = super().batch(images)
        return pixels.mean(1, keepdim=True).expand_as(pixels).contiguous(), grids


@dataclass(frozen=True)
class Bright(ImagePreprocess):
    """A subclass with a field of its own."""

    gain: float = 1.0

    def batch(self, images):
        pixels, grids = super().batch(images)
        return pixels * self.gain, grids


class Even(NativePreprocess):
    """Grids of even sides."""

    def grid(self, width_px, height_px):
        grid = super().grid(width_px, height_px)
        return Grid(max(2, grid.h // 2 * 2), max(2, grid.w // 2 * 2))


class Written:
    """No dataclass: says itself how it is written down."""

    def __init__(self, inner, gain):
        self.inner, self.gain = inner, gain

    def batch(self, images):
        pixels, grids = self.inner.batch(images)
        return pixels * self.gain, grids

    def grid(self, width_px, height_px):
        return self.inner.grid(width_px, height_px)

    def to_dict(self):
        return {"gain": self.gain, "size_px": self.inner.size_px, "patch_px": self.inner.patch_px}

    @classmethod
    def from_dict(cls, values):
        from lmmblocks.images import clip_preprocess

        return cls(clip_preprocess(values["size_px"], values["patch_px"]), values["gain"])


class Unwritten:
    """Can't be written down."""

    def __init__(self, inner):
        self.inner = inner

    def batch(self, images):
        return self.inner.batch(images)

    def grid(self, width_px, height_px):
        return self.inner.grid(width_px, height_px)


class OwnPixelsCLIP(CLIP):
    """An encoder whose preprocessing follows from its config."""

    def __init__(self, config):
        super().__init__(config)
        self.preprocess = Unwritten(config.default_preprocess().__class__(28, 14, "pad", (0.5,) * 3, (0.5,) * 3))


@dataclass(frozen=True)
class OwnPixelsConfig(CLIPConfig):
    def build(self):
        return OwnPixelsCLIP(self)


class NoisyCLIP(CLIP):
    """Another encoder under CLIP's own config."""

    def forward(self, pixels, **options):
        features = super().forward(pixels, **options)
        return replace(features, patches=features.patches * 2)


class HalfRows(MLP):
    """Every second row of the MLP's: the same names and shapes, other rows."""

    def out_grid(self, grid):
        return grid.rows // 2

    def forward(self, features):
        rows = super().forward(features)
        return rows[: rows.shape[0] // 2 * 2].view(-1, 2, rows.shape[1]).mean(1)


class Routed(torch.nn.Module):
    """A mixture of experts whose rows are found in the data, which has no answer without data."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim, out_dim, experts=2):
        super().__init__()
        self.options = {"experts": experts}
        self.router = torch.nn.Linear(in_dim, experts)
        self.experts = torch.nn.ModuleList(torch.nn.Linear(in_dim, out_dim) for _ in range(experts))

    def out_grid(self, grid):
        return grid

    def forward(self, features):
        chosen = self.router(features.patches).argmax(-1)
        rows = features.patches.new_zeros(len(chosen), self.experts[0].out_features)
        for index, expert in enumerate(self.experts):
            places = (chosen == index).nonzero()[:, 0]
            rows[places] = expert(features.patches[places])
        return rows


class Adapted(torch.nn.Module):
    """A linear layer with an adapter beside it, as LoRA's libraries wrap one."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.down = torch.nn.Linear(base_layer.in_features, 2, bias=False)
        self.up = torch.nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))

    def merged(self):
        with torch.no_grad():
            self.base_layer.weight += self.up.weight @ self.down.weight
        return self.base_layer


class MaskHead(torch.nn.Module):
    """A head that travels as a hook."""

    requires, layers = frozenset(), ()

    def __init__(self, out_dim):
        super().__init__()
        self.linear = torch.nn.Linear(out_dim, 1)

    def __call__(self, hidden, context):
        return hidden
