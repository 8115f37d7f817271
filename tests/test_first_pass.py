"""What is built or loaded has run once: encoder, projector, decoder and head, with memory or without."""

import sys
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path

import pytest
import torch

import lmmblocks as lb
from lmmblocks.config import LMMConfig
from lmmblocks.decoders.transformer import Transformer, TransformerConfig
from lmmblocks.encoders.clip import CLIP, CLIPConfig
from lmmblocks.images import clip_preprocess
from lmmblocks.presets import PRESETS
from lmmblocks.projectors import MLP
from lmmblocks.spec import LmmError

sys.path.append(str(Path(__file__).parent / "weights"))
import own_blocks

ENCODER = CLIPConfig(dim=16, layers=2, heads=2, mlp_dim=24, image_size=28, patch=14)
DECODER = TransformerConfig(dim=24, layers=2, heads=2, kv_heads=1, ffn_dim=32, vocab=20, max_positions=64)


class Broken(CLIP):
    def forward(self, pixels, **options):
        features = super().forward(pixels, **options)
        return replace(features, patches=features.patches @ torch.zeros(3, 3, device=features.patches.device))


@dataclass(frozen=True)
class BrokenConfig(CLIPConfig):
    def build(self):
        return Broken(self)


class ShortHead(Transformer):
    def head(self, hidden):
        return super().head(hidden)[:, :-1]


@dataclass(frozen=True)
class ShortHeadConfig(TransformerConfig):
    def build(self):
        return ShortHead(self)


class Renamed(Transformer):
    def forward(self, embeds, **options):
        return self.no_such_layer(embeds)


@dataclass(frozen=True)
class RenamedConfig(TransformerConfig):
    def build(self):
        return Renamed(self)


def config(**parts):
    return LMMConfig(**{"encoder": ENCODER, "decoder": DECODER, **parts})


def fields(shape):
    return {name: getattr(shape, name) for name in (f.name for f in dataclass_fields(shape))}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "parts, match",
    [
        ({"encoder": BrokenConfig(**fields(ENCODER))}, "encoder, projector or reducers 'Broken' fails with a first picture: RuntimeError"),
        ({"decoder": ShortHeadConfig(**fields(DECODER))}, r"decoder 'ShortHead' gives logits \(1, 19\) for one row, its vocab is 20"),
        ({"decoder": RenamedConfig(**fields(DECODER))}, "decoder 'Renamed' fails with a first picture: AttributeError: .*no_such_layer"),
        ({"preprocess": clip_preprocess(42, 14)}, "fails with a first picture: .*42"),
    ],
)
def test_a_part_that_fails_is_named_when_it_is_built(parts, match, device):
    with pytest.raises(LmmError, match=f"(?s){match}"):
        lb.build(config(**parts), weights="random", device=device)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_runs_without_memory(name):
    assert lb.build(name, device="meta").device.type == "meta"


def test_rows_found_in_the_data_are_tried_with_data_alone():
    swap = {"projector": own_blocks.Routed, "weights": "random"}
    assert lb.build(config(), device="meta", **swap).projector.router.weight.is_meta
    broken = type("Uneven", (own_blocks.Routed,), {"forward": lambda self, features: super(type(self), self).forward(features)[:-1]})
    with pytest.raises(LmmError, match="says one image of 2x2 becomes 4 rows, but gives 3"):
        lb.build(config(), **{**swap, "projector": broken})


def test_the_pass_leaves_random_numbers_alone(monkeypatch):
    from lmmblocks import builder

    def after():
        torch.manual_seed(3)
        lb.build(config(), weights="random")
        return torch.rand(1)

    with_pass = after()
    monkeypatch.setattr(builder, "check_runs", lambda model: None)
    assert torch.equal(with_pass, after())


class Counting(MLP):
    """A projector that counts the pictures it has seen."""

    def __init__(self, in_dim, out_dim):
        super().__init__(in_dim, out_dim)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, features):
        self.seen += len(features.grids)
        return super().forward(features)


def test_the_pass_leaves_buffers_alone():
    model = lb.build(config(), projector=Counting, weights="random")
    assert model.projector.seen == 0
    model.encode(torch.zeros(2, 3, 28, 28))
    assert model.projector.seen == 2
