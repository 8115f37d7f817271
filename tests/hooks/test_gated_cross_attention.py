"""Who sees what, gates, and what is refused; equality with transformers is in ``tests/parity/test_idefics.py``."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks import registry
from lmmblocks.compose.image_rows import Encoded
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.decoders.vision import VisionContext
from lmmblocks.hooks import GatedCrossAttention
from lmmblocks.hooks.last_image import LastImage
from lmmblocks.plans.host import plan_splice
from lmmblocks.projectors import ImageToken
from lmmblocks.spec import IMAGE_TOKEN, Grid, ImageSpan, LmmError, Projector, Segments, VisionFeatures

IN, OUT = 6, 8
RESAMPLER = dict(latents=3, depth=1, heads=2, head_dim=4)


def hook_of(**options):
    return GatedCrossAttention(IN, OUT, **{"layers": [0, 1], "heads": 2, "ffn_dim": 12, "prefix": False, **options})


def opened(hook):
    torch.manual_seed(0)
    for value in hook.parameters():
        torch.nn.init.normal_(value, 0.3, 0.3)
    return hook.requires_grad_(False)


def vision_of(plan, grids, tiles=None):
    random = torch.Generator().manual_seed(1)
    features = VisionFeatures(torch.randn(sum(grid.rows for grid in grids), IN, generator=random), tuple(grids))
    tiles = tiles or (1,) * len(grids)
    counts = (1,) * len(tiles)
    return VisionContext.of(Encoded(features, torch.zeros(len(tiles), OUT), counts, tiles), plan)


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(3)
    return TransformerConfig(dim=OUT, layers=2, heads=2, kv_heads=2, ffn_dim=12, vocab=20).build().requires_grad_(False)


def run(decoder, hooks, plan, vision):
    embeds = torch.randn(plan.total_rows, OUT, generator=torch.Generator().manual_seed(2))
    return decoder(embeds, positions=plan.positions, segments=plan.segments, hooks=hooks, vision=vision)


sequences = st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(0, 9), max_size=3, unique=True)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(sequences=sequences, lengths=st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_runs_are_the_last_image_up_to_each_row(sequences, lengths):
    starts = [start for start, _ in sequences]
    lengths = lengths[: len(starts)]
    places = [(segment, place) for segment, (_, found) in enumerate(sequences) for place in sorted(found)]
    places = [(segment, place) for segment, place in places if place < starts[segment] + lengths[segment]]
    spans = [ImageSpan(image, segment, place, 1) for image, (segment, place) in enumerate(places)]
    sight = LastImage.of(lengths, starts, spans)
    expected = [
        max((span.image for span in spans if span.segment == segment and span.start <= row), default=None)
        for segment, (start, length) in enumerate(zip(starts, lengths))
        for row in range(start, start + length)
    ]
    assert [image for rows, image in zip(sight.lengths, sight.images) for _ in range(rows)] == expected
    rows = torch.arange(float(sum(lengths)))[:, None]
    assert sight.taken(rows).flatten().tolist() == [row for row, image in enumerate(expected) if image is not None]
    assert sight.put_back(rows, -sight.taken(rows)).flatten().tolist() == [row if image is None else -row for row, image in enumerate(expected)]


@pytest.mark.parametrize("gate", ["float", "vector"])
def test_closed_gates_leave_the_decoder_as_it_was(decoder, gate):
    plan = plan_splice([[1, IMAGE_TOKEN, 5], [7, 8]], [[1], []])
    vision = vision_of(plan, [Grid(2, 2)])
    hook = hook_of(gate=gate, resampler=RESAMPLER)
    assert torch.equal(run(decoder, [hook], plan, vision), run(decoder, [], plan, None))
    assert not torch.equal(run(decoder, [opened(hook)], plan, vision), run(decoder, [], plan, None))


def test_one_attention_of_a_row_is_the_formula(decoder):
    """One row, one image: softmax over its patches, added after a gate, then the MLP after its own."""
    plan, hook = plan_splice([[IMAGE_TOKEN]], [[1]]), opened(hook_of(gate="vector"))
    vision, layer = vision_of(plan, [Grid(2, 3)]), hook.gated_cross_attn_layers[0]
    embeds = torch.randn(1, OUT, generator=torch.Generator().manual_seed(2))
    seen = []
    with decoder.model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        run(decoder, [hook], plan, vision)

    def normed(x, norm):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight

    attention, patches = layer.cross_attn, vision.features.patches
    q = attention.q_proj(normed(embeds, layer.input_layernorm)).view(2, 4)
    k, v = (projection(patches).view(6, 2, 4) for projection in (attention.k_proj, attention.v_proj))
    weights = (torch.einsum("ne,kne->nk", q, k) / 2).softmax(-1)
    x = embeds + layer.alpha_cross_attn[0, 0].tanh() * attention.o_proj(torch.einsum("nk,kne->ne", weights, v).reshape(1, OUT))
    inner = normed(x, layer.post_attention_layernorm)
    out = layer.mlp.down_proj(torch.nn.functional.silu(layer.mlp.gate_proj(inner)) * layer.mlp.up_proj(inner))
    torch.testing.assert_close(seen[0], x + layer.alpha_dense[0, 0].tanh() * out, atol=1e-5, rtol=0)


def test_an_image_in_tiles_is_seen_with_all_of_them(decoder):
    plan = plan_splice([[1, IMAGE_TOKEN, 5, IMAGE_TOKEN, 6]], [[1, 1]])
    hook = opened(hook_of())
    cut = run(decoder, [hook], plan, vision_of(plan, [Grid(1, 2), Grid(1, 3), Grid(2, 2)], tiles=(2, 1)))
    whole = run(decoder, [hook], plan, vision_of(plan, [Grid(1, 5), Grid(2, 2)]))
    torch.testing.assert_close(cut, whole)


def test_images_are_computed_once_for_all_layers_and_all_passes_behind_a_cache(decoder):
    plan, hook = plan_splice([[1, IMAGE_TOKEN, 5], [IMAGE_TOKEN, 5]], [[1], [1]]), opened(hook_of(resampler=RESAMPLER))
    calls, cache = [], decoder.new_cache(2)
    for part in (hook.resampler, *(layer.cross_attn.k_proj for layer in hook.gated_cross_attn_layers)):
        part.register_forward_hook(lambda *_: calls.append(1))
    common = dict(cache=cache, hooks=[hook])
    vision = vision_of(plan, [Grid(2, 2), Grid(1, 3)])
    decoder(torch.zeros(5, OUT), positions=plan.positions, segments=plan.segments, vision=vision, **common)
    for _ in range(3):
        positions = torch.tensor(cache.lengths)
        decoder(torch.ones(2, OUT), positions=positions, segments=Segments.of([1, 1]), **common)
    assert len(calls) == 3


class Dropping:
    layers, requires = (1,), frozenset({"vision", "drop"})

    def __call__(self, hidden, context):
        keep = ~context.vision.mask_T
        counts = [length - rows for length, rows in zip(context.segments.lengths_q, context.vision.row_counts)]
        return context.keep(hidden, keep, counts)


def test_rows_dropped_in_front_of_it_are_refused_and_behind_it_are_not(decoder):
    plan = plan_splice([[1, IMAGE_TOKEN, 5]], [[1]])
    vision = vision_of(plan, [Grid(2, 2)])
    with pytest.raises(LmmError, match="'GatedCrossAttention' before layer 1 can't tell .* let 'GatedCrossAttention' name layers up to"):
        run(decoder, [Dropping(), hook_of()], plan, vision)
    assert run(decoder, [hook_of(), Dropping()], plan, vision).shape == (3, OUT)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(heads=3, gate="vectr"), "heads 3 don't divide the decoder's width 8; gate must be one of .* found 'vectr'; did you mean 'vector'"),
        (dict(layers=[]), r"layers must name each layer once and at least one, found \[\]"),
        (dict(layers=[1, 1], ffn_dim=0), r"found \[1, 1\]; ffn_dim must be a whole number above 0, found 0"),
        (dict(resampler=dict(latent=3)), "its resampler has no option 'latent'; did you mean 'latents'.; known: latents, depth"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(LmmError, match=message):
        hook_of(**options)


def test_the_row_of_a_token_stands_for_each_image():
    projector, table = ImageToken(IN, OUT, token=3), torch.randn(5, OUT, requires_grad=True)
    features = VisionFeatures(torch.zeros(10, IN), (Grid(2, 3), Grid(2, 2)), table=table)
    rows = projector(features)
    assert torch.equal(rows, table[[3, 3]]) and projector.out_grid(Grid(2, 3)) == 1
    rows.sum().backward()
    assert table.grad.sum(1).tolist() == [0, 0, 0, 2 * OUT, 0]
    assert isinstance(projector, Projector) and registry.name_of("projector", ImageToken) == "image_token"
    assert projector(VisionFeatures(torch.zeros(0, IN), (), table=table)).shape == (0, OUT)


def test_a_token_that_is_none_of_the_table_is_refused():
    with pytest.raises(LmmError, match="token must be the id of a token, a whole number from 0 on, found -1"):
        ImageToken(IN, OUT, token=-1)
    features = VisionFeatures(torch.zeros(4, IN), (Grid(2, 2),), table=torch.zeros(5, OUT))
    with pytest.raises(LmmError, match="stands for the token 5, the decoder's table has 5 rows"):
        ImageToken(IN, OUT, token=5)(features)
    features.table = None
    with pytest.raises(LmmError, match="reads the decoder's table"):
        ImageToken(IN, OUT, token=1)(features)
