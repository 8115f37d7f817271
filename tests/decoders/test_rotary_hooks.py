"""A hook that turns rows by tables of its own is obeyed by every decoder that gives it tables, from its layer on; others refuse."""

import dataclasses

import pytest
import torch

from lmmblocks.spec import LmmError, Segments
from lmmblocks.weights.parts.hf_decoders import decoder_from_hf

LENGTHS = (7, 5)


class Turned:
    """Stretches positions, before one layer; the layers after it keep what it gave."""

    requires, layers = frozenset(), (0,)

    def __init__(self, layer=0, factor=0.25):
        self.layers, self.factor = (layer,), factor

    def __call__(self, hidden, context):
        tables = context.cos_TE
        width = (tables[0] if isinstance(tables, tuple) else tables).shape[-1]
        speeds = 10000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.cat([context.positions[:, None] * self.factor * speeds] * 2, -1)
        cos, sin = angles.cos(), angles.sin()
        several = (lambda t: (t,) * len(tables)) if isinstance(tables, tuple) else (lambda t: t)
        return hidden, dataclasses.replace(context, cos_TE=several(cos), sin_TE=several(sin))


def run(decoder, **options):
    embeds = torch.randn(sum(LENGTHS), decoder.dim, generator=torch.Generator().manual_seed(0))
    places = torch.cat([torch.arange(n) for n in LENGTHS])
    return decoder(embeds, positions=places, segments=Segments.of(LENGTHS), **options)


@pytest.fixture
def pair(make_pair):
    """The same weights as a decoder of transformers and as a native one."""
    wrapped, twin = make_pair("llama")
    native = decoder_from_hf(twin.config.to_dict()).build().eval()
    native.load_state_dict(twin.state_dict())
    return wrapped, native


@torch.no_grad()
@pytest.mark.parametrize("layer", [0, 1])
def test_both_decoders_turn_as_the_hook_says(pair, layer):
    wrapped, native = pair
    hook = Turned(layer)
    found, expected, plain = run(wrapped, hooks=[hook]), run(native, hooks=[hook]), run(wrapped)
    assert (found - expected).abs().max() < 1e-5
    assert (found - plain).abs().max() > 1e-2


@torch.no_grad()
def test_tables_of_the_models_own_change_nothing(pair):
    wrapped, _ = pair

    class Same(Turned):
        def __call__(self, hidden, context):
            return hidden, dataclasses.replace(context, cos_TE=context.cos_TE.clone(), sin_TE=context.sin_TE.clone())

    assert torch.equal(run(wrapped, hooks=[Same()]), run(wrapped))


@torch.no_grad()
def test_rows_dropped_behind_it_keep_their_turn(pair):
    wrapped, native = pair

    class Keep:
        requires, layers = frozenset({"drop"}), (1,)

        def __call__(self, hidden, context):
            keep = torch.tensor([True, False, True, True, True, True, True, True, True, False, True, True])
            return context.keep(hidden, keep, (6, 4))

    hooks = [Turned(0), Keep()]
    assert (run(wrapped, hooks=hooks) - run(native, hooks=hooks)).abs().max() < 1e-5


def test_recomputed_layers_turn_the_same_way(make_pair):
    gradients = []
    for recompute in (False, True):
        decoder, _ = make_pair("llama", recompute=recompute)
        run(decoder.train(), hooks=[Turned(0)]).square().mean().backward()
        gradients.append([p.grad for p in decoder.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10 and all(torch.equal(a, b) for a, b in zip(*gradients))


class Setting(Turned):
    def __call__(self, hidden, context):
        table = torch.ones(hidden.shape[0], 8)
        return hidden, dataclasses.replace(context, cos_TE=table, sin_TE=table)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_a_decoder_without_tables_refuses(make_pair, kind):
    decoder, _ = make_pair(kind)
    with pytest.raises(LmmError, match="replaced the rotary tables.*has none"):
        run(decoder, hooks=[Setting()])


@torch.no_grad()
def test_layers_with_tables_of_several_kinds_refuse_one_for_all(make_pair):
    decoder, _ = make_pair("gemma3_text")
    with pytest.raises(LmmError, match="replaced the rotary tables.*another kind"):
        run(decoder, hooks=[Turned(0)])
