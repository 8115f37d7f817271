"""Cambrian's SVA against the paper's formula: one query, one window and one head at a time."""

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import lmmblocks as lb
from examples.swap import sva
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.fused import FusedConfig
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Batch, Grid

SIDE, DIM, HEADS = 2, 8, 2


@pytest.fixture(scope="module")
def model():
    small = dict(layers=2, heads=2, mlp_dim=8)
    towers = FusedConfig((CLIPConfig(dim=8, image_size=28, patch=14, **small), CLIPConfig(dim=12, image_size=48, patch=8, **small)), combine="list")
    decoder = TransformerConfig(dim=16, layers=3, heads=2, kv_heads=1, ffn_dim=16, vocab=20, max_positions=64)
    torch.manual_seed(0)
    options = dict(side=SIDE, dim=DIM, heads=HEADS)
    model = lb.build(
        LMMConfig(encoder=towers, decoder=decoder),
        projector=Block("examples.swap.sva:SVA", {**options, "depth": 2}),
        hooks=[Block("examples.swap.sva:SVAInDecoder", {**options, "layers": (1, 2)})],
        weights="random",
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def windows_of(part, towers, image, row, column):
    """What one query looks at: its window of each tower, brought to one width; and the mean of the first tower."""
    found = []
    for aux, tower in zip(part.aux, towers):
        grid, count = tower.grids[image], tower.grids[0].rows
        rows = aux(tower.patches[image * count : (image + 1) * count]).reshape(grid.h, grid.w, DIM)
        size = grid.h // SIDE
        found.append(rows[row * size : (row + 1) * size, column * size : (column + 1) * size].reshape(-1, DIM))
        if len(found) == 1:
            context = rows.reshape(-1, DIM).mean(0)
    return context, found


def look(sampler, query, context, windows):
    """The paper's cross-attention of one query, head by head, with the shortcuts of the released code."""
    x = sampler.proj_in(torch.cat([query, sampler.proj_context(context)]))
    keys, values = [], []
    for index, window in enumerate(windows):
        placed = window + sampler.pos[str(index)] if len(window) > 1 else window
        keys.append(sampler.k[index](placed))
        values.append(sampler.v[index](placed))
    q, k, v = sampler.q(x), torch.cat(keys), torch.cat(values)
    heads = []
    for head in range(HEADS):
        at = slice(head * DIM // HEADS, (head + 1) * DIM // HEADS)
        weights = ((k[:, at] @ q[at]) / (DIM // HEADS) ** 0.5).softmax(0)
        heads.append(weights @ v[:, at])
    x = F.layer_norm(x + sampler.o(torch.cat(heads)), (DIM,), sampler.norm.weight, sampler.norm.bias)
    return query + sampler.proj_out(x)


PLACES = [(row, column) for row in range(SIDE) for column in range(SIDE)]


@torch.no_grad()
def test_the_connector_gives_the_papers_rows(model, record_parity):
    pixels = model.encoder.preprocess.batch([])[0]
    pixels = type(pixels)(tuple(torch.randn(2, 3, size, size) for size in (28, 48)))
    encoded, part = model.encode_images(pixels), model.projector
    expected = []
    for image in range(2):
        for place in PLACES:
            seen = windows_of(part, encoded.features.towers, image, *place)
            query = part.query[0]
            for sampler in part.samplers:
                query = look(sampler, query, *seen)
            expected.append(part.mlp(query))
    worst = (encoded.rows_MD - torch.stack(expected)).abs().max().item()
    assert encoded.counts == (4, 4) and worst < 1e-5
    record_parity("SVA (examples/swap)", "the paper's formula, query by query", "rows, max abs diff", worst)


@torch.no_grad()
def test_inside_the_decoder_image_rows_look_again_and_nothing_else_changes(model, record_parity):
    pixels = model.encoder.preprocess.batch([])[0]
    pixels = type(pixels)(tuple(torch.randn(2, 3, size, size) for size in (28, 48)))
    plan = plan_splice([[1, -200, 5], [7], [-200, 3]], [[4], [], [4]])
    entered, left, hook = [], [], model.hooks[0]
    handles = [model.decoder.model.layers[i].register_forward_pre_hook(lambda _, a: entered.append(a[0])) for i in (1, 2)]
    handles += [model.decoder.model.layers[i].register_forward_hook(lambda _, a, out: left.append(out)) for i in (0, 1)]
    model(Batch(pixels, (Grid(2, 2),) * 2, plan))
    for handle in handles:
        handle.remove()
    towers, worst = model.encode_images(pixels).features.towers, 0.0
    for sampler, before, after in zip(hook.samplers, left, entered):
        expected = before.clone()
        for image, first in ((0, 1), (1, 7)):
            for number, place in enumerate(PLACES):
                expected[first + number] = look(sampler, before[first + number], *windows_of(hook, towers, image, *place))
        worst = max(worst, (after - expected).abs().max().item())
    assert worst < 1e-5 and [len(x) for x in entered] == [12, 12]
    record_parity("SVA in the decoder (examples/swap)", "the paper's formula, query by query", "hidden states, max abs diff", worst)


def test_it_learns_and_runs(model, capsys):
    pixels = model.encoder.preprocess.batch([])[0]
    pixels = type(pixels)(tuple(torch.randn(1, 3, size, size) for size in (28, 48)))
    plan = plan_splice([[1, -200, 5, 6]], [[4]], labels=[[-100, -100, 5, 6]])
    model.loss(Batch(pixels, (Grid(2, 2),), plan)).backward()
    learned = {name: p.grad for name, p in model.named_parameters() if name.startswith(("multi_modal", "hooks"))}
    assert all(gradient is not None and gradient.any() for gradient in learned.values())
    model.zero_grad()
    sva.main()
    assert "become 16 rows" in capsys.readouterr().out
