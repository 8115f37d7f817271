"""Rows that leave in the middle of the decoder: what is left is computed as if it had been alone, with and without a cache."""

import pytest
import torch

from lmmblocks.compose.image_rows import Encoded
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.decoders.vision import VisionContext
from lmmblocks.ops import last_row_scores
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import Grid, LmmError, Segments, VisionFeatures

WIDTH, LAYERS, TOLERANCE = 16, 4, 1e-5
IMAGE = -200


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    made = TransformerConfig(dim=WIDTH, layers=LAYERS, heads=4, kv_heads=2, ffn_dim=24, vocab=50).build()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False)


def rows(count, seed=0):
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def vision_of(plan, counts, seed=5):
    """Images of as many features as rows, whose features are numbered by image."""
    features = VisionFeatures(rows(sum(counts), seed), tuple(Grid(1, n) for n in counts))
    return VisionContext.of(Encoded(features, features.patches, tuple(counts), (1,) * len(counts)), plan)


def read(decoder, embeds, plan, cache=None, hooks=(), vision=None, lengths=None):
    offset = torch.cat([torch.full((n,), read) for n, read in zip(plan.lengths, lengths or [0] * len(plan.lengths))])
    positions = plan.positions + offset
    return decoder(embeds, positions=positions, segments=plan.segments, cache=cache, hooks=hooks, vision=vision)


class Dropping:
    """Keeps the image rows of the pass whose number within their segment is in ``stay``."""

    requires = frozenset({"vision", "drop"})

    def __init__(self, layer, stay):
        self.layers, self.stay = (layer,), stay

    def __call__(self, hidden, context):
        keep, lengths, start = ~context.vision.mask_T, [], 0
        for length in context.segments.lengths_q:
            image = context.vision.mask_T[start : start + length].nonzero().flatten().tolist()
            chosen = [row for place, row in enumerate(image) if place in self.stay]
            keep[[start + row for row in chosen]] = True
            lengths.append(length - len(image) + len(chosen))
            start += length
        return context.keep(hidden, keep, lengths)


def by_hand(decoder, embeds, drops):
    """One sequence: layers on fewer and fewer rows, each with its own position. ``drops``: layer -> rows (of the whole) that stay."""
    x, left = embeds, list(range(len(embeds)))
    for index, layer in enumerate(decoder.model.layers):
        if index in drops:
            stay = [row for row in left if row in drops[index]]
            x, left = x[[left.index(row) for row in stay]], stay
        single = TransformerConfig(**{**decoder.config.__dict__, "layers": 1}).build()
        single.model.layers[0].load_state_dict(layer.state_dict())
        single.model.norm = torch.nn.Identity()
        x = single(x, positions=torch.tensor(left), segments=Segments.of([len(left)]))
    whole = torch.zeros_like(embeds)
    whole[left] = decoder.model.norm(x)
    return whole


PLAN = plan_splice([[1, IMAGE, 5, 6], [7, 8], [IMAGE, 3, IMAGE, 4]], [[5], [], [2, 3]])
SEGMENT_ROWS = [range(0, 8), range(8, 10), range(10, 17)]


@torch.no_grad()
def test_rows_that_are_left_equal_a_decoder_that_never_had_the_others(decoder):
    embeds = rows(PLAN.total_rows)
    hooks = [Dropping(1, {0, 2, 4}), Dropping(3, {1})]
    got = read(decoder, embeds, PLAN, hooks=hooks, vision=vision_of(PLAN, [5, 2, 3]))
    # image rows: 1..5 | none | 0, 1 and 3..5; the second hook counts those that the first left
    stay = [({0, 1, 3, 5, 6, 7}, {0, 3, 6, 7}), ({0, 1}, {0, 1}), ({0, 2, 3, 5, 6}, {2, 3, 6})]
    for place, own in enumerate(SEGMENT_ROWS):
        expected = by_hand(decoder, embeds[list(own)], {1: stay[place][0], 3: stay[place][1]})
        assert (got[list(own)] - expected).abs().max() < TOLERANCE, place


@torch.no_grad()
def test_the_context_behind_a_drop_tells_where_the_rows_are(decoder):
    seen = {}

    class Watch:
        layers, requires = (2,), frozenset({"vision"})

        def __call__(self, hidden, context):
            seen["context"] = context
            return hidden

    read(decoder, rows(17), PLAN, hooks=[Dropping(1, {0, 3}), Watch()], vision=vision_of(PLAN, [5, 2, 3]))
    context = seen["context"]
    assert context.segments.lengths_q == (5, 2, 4) and context.vision.row_counts == (2, 0, 2)
    assert context.positions.tolist() == [0, 1, 4, 6, 7, 0, 1, 0, 2, 4, 6]
    assert context.vision.mask_T.nonzero().flatten().tolist() == [1, 2, 7, 9]
    assert context.vision.rows_M.tolist() == [1, -1, -1, 2, -1, 7, -1, -1, 9, -1]
    assert context.kept_rows.tolist() == [0, 1, 4, 6, 7, 8, 9, 10, 12, 14, 16]


@torch.no_grad()
def test_kv_end_follows_the_rows_that_are_left(decoder):
    plan = plan_splice([[1, IMAGE, 5, 6]], [[5]], bidirectional_images=True)
    embeds, hook = rows(8), Dropping(0, {0, 2, 4})
    common = dict(segments=plan.segments, vision=vision_of(plan, [5]), hooks=[hook])
    got = decoder(embeds, positions=plan.positions, kv_end=plan.kv_end, **common)
    left = [0, 1, 3, 5, 6, 7]
    ends = torch.tensor([1, 4, 4, 4, 5, 6], dtype=torch.int32)
    expected = decoder(embeds[left], positions=torch.tensor(left), segments=Segments.of([6]), kv_end=ends)
    assert (got[left] - expected).abs().max() < TOLERANCE and not got[[2, 4]].any()


@torch.no_grad()
def test_behind_a_ragged_cache_rows_in_pieces_equal_all_at_once(decoder):
    """The image rows that stay don't depend on what comes later, so one pass over everything is the reference."""
    hooks, text = [Dropping(1, {0, 2}), Dropping(2, {1})], [9, 9, 9]
    whole_plan = plan_splice([[1, IMAGE, 5, 6, *text], [7, 8, *text]], [[5], []])
    embeds = rows(whole_plan.total_rows)
    whole = read(decoder, embeds, whole_plan, hooks=hooks, vision=vision_of(whole_plan, [5]))
    prompt = plan_splice([[1, IMAGE, 5, 6], [7, 8]], [[5], []])
    cache = decoder.new_cache(2)
    first = read(decoder, torch.cat([embeds[:8], embeds[11:13]]), prompt, cache, hooks, vision_of(prompt, [5]))
    assert (first[:8] - whole[:8]).abs().max() < TOLERANCE
    assert [cache.stored(layer) for layer in range(LAYERS)] == [[8, 2], [5, 2], [4, 2], [4, 2]]
    for step in range(3):
        plan = plan_splice([[9], [9]], [[], []])
        new = read(decoder, embeds[[8 + step, 13 + step]], plan, cache, hooks, lengths=cache.lengths)
        assert (new - whole[[8 + step, 13 + step]]).abs().max() < TOLERANCE, step
    assert cache.lengths == [11, 5] and cache.stored(3) == [7, 5]


@torch.no_grad()
@pytest.mark.parametrize("length", [8, 7, 4, 2, 0])
def test_a_ragged_cache_can_be_cut_back_anywhere(decoder, length):
    hook, cache = Dropping(1, {0, 2, 4}), decoder.new_cache(2)
    prompt, embeds = plan_splice([[7, 8], [1, IMAGE, 5, 6]], [[], [5]]), rows(10)
    read(decoder, embeds, prompt, cache, [hook], vision_of(prompt, [5]))
    read(decoder, rows(3, 1), plan_splice([[3], [4, 4]], [[], []]), cache, [hook], lengths=[2, 8])
    cache.truncate(1, length)
    left = [row for row in (0, 1, 3, 5, 6, 7) if row < length]
    assert cache.lengths == [3, length] and cache.stored(0) == [3, length] and cache.stored(3) == [3, len(left)]
    spans = cache.vision.spans
    assert [span.rows for span in spans] == ([min(5, length - 1)] if length > 1 else [])
    more = plan_splice([[3], [4, 4]], [[], []])
    new = read(decoder, rows(3, 2), more, cache, [hook], lengths=cache.lengths)[1:]
    sequence = torch.cat([embeds[2 : 2 + length], rows(3, 2)[1:]])
    stay = {*left, length, length + 1}
    expected = by_hand(decoder, sequence, {1: stay})[length:]
    assert (new - expected).abs().max() < TOLERANCE


@torch.no_grad()
def test_kept_sequences_of_a_ragged_cache_go_on_as_if_alone(decoder):
    hook, cache = Dropping(2, {1}), decoder.new_cache(3)
    read(decoder, rows(17), PLAN, cache, [hook], vision_of(PLAN, [5, 2, 3]))
    cache.keep([2, 0])
    assert cache.stored(3) == [3, 4] and cache.stored(1) == [7, 8]
    assert [(span.image, span.segment, span.rows) for span in cache.vision.spans] == [(0, 0, 2), (1, 0, 3), (2, 1, 5)]
    new = read(decoder, rows(2, 3), plan_splice([[9], [9]], [[], []]), cache, [hook], lengths=cache.lengths)
    alone = decoder.new_cache(1)
    own = plan_splice([[1, IMAGE, 5, 6]], [[5]])
    read(decoder, rows(17)[:8], own, alone, [hook], vision_of(own, [5]))
    single = read(decoder, rows(2, 3)[1:], plan_splice([[9]], [[]]), alone, [hook], lengths=[8])
    assert (new[1] - single[0]).abs().max() < TOLERANCE


class Looking:
    """Adds to every row the mean of the features of all images of its segment, as cross-attention would read them."""

    layers, requires = (1, 3), frozenset({"vision"})

    def __call__(self, hidden, context):
        vision, out, start = context.vision, hidden.clone(), 0
        features = vision.features.patches.split([grid.rows for grid in vision.features.grids]) if vision.counts else ()
        for segment, length in enumerate(context.segments.lengths_q):
            for span in vision.spans:
                if span.segment == segment:
                    out[start : start + length] += features[span.image].mean(0)
            start += length
        return out


@torch.no_grad()
def test_images_read_earlier_are_seen_behind_the_cache_also_with_new_ones(decoder):
    hook, cache = Looking(), decoder.new_cache(2)
    first = plan_splice([[IMAGE, 5], [7]], [[2], []])
    one = vision_of(first, [2], 1)
    read(decoder, rows(4), first, cache, [hook], one)
    second = plan_splice([[6], [IMAGE, 8]], [[], [3]])
    two = vision_of(second, [3], 2)
    got = read(decoder, rows(5, 7), second, cache, [hook], two, lengths=cache.lengths)
    assert cache.vision.counts == (2, 3) and [span.start for span in cache.vision.spans] == [0, 1]

    class Given(Looking):
        def __init__(self, means):
            self.means = means

        def __call__(self, hidden, context):
            return hidden + self.means

    means = torch.stack([one.features.patches.mean(0), two.features.patches.mean(0)])
    reference = decoder.new_cache(2)
    read(decoder, rows(4), first, reference, [Given(torch.cat([means[:1].expand(3, -1), 0 * means[:1]]))])
    expected = read(decoder, rows(5, 7), second, reference, [Given(torch.cat([means[:1], means[1:].expand(4, -1)]))], lengths=[3, 1])
    assert (got - expected).abs().max() < TOLERANCE
    cache.keep([1])
    step = plan_splice([[9]], [[]])
    got = read(decoder, rows(1, 8), step, cache, [hook], lengths=cache.lengths)
    reference.keep([1])
    expected = read(decoder, rows(1, 8), step, reference, [Given(means[1:])], lengths=[5])
    assert (got - expected).abs().max() < TOLERANCE and cache.vision.counts == (3,)


def test_a_failed_pass_leaves_a_ragged_cache_as_it_was(decoder):
    class Broken:
        layers, requires = (3,), frozenset()

        def __call__(self, hidden, context):
            raise RuntimeError("out of memory")

    cache, hook = decoder.new_cache(3), Dropping(1, {0})
    with pytest.raises(RuntimeError):
        read(decoder, rows(17), PLAN, cache, [hook, Broken()], vision_of(PLAN, [5, 2, 3]))
    got = read(decoder, rows(17), PLAN, cache, [hook], vision_of(PLAN, [5, 2, 3]))
    assert torch.equal(got, read(decoder, rows(17), PLAN, None, [hook], vision_of(PLAN, [5, 2, 3])))
    assert cache.stored(1) == [4, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("cached", [False, True])
def test_scores_are_the_last_rows_of_the_attention_map(decoder, cached):
    asked = []

    class Ask:
        layers, requires = (2,), frozenset({"last_row_scores"})

        def __call__(self, hidden, context):
            asked.append(context.last_row_scores)
            return hidden

    layer, entered = decoder.model.layers[1], []
    with layer.register_forward_pre_hook(lambda _, args: entered.append(args[0])):
        cache = decoder.new_cache(3) if cached else None
        if cached:
            read(decoder, rows(6, 9), plan_splice([[1], [1, 1], [1, 1, 1]], [[]] * 3), cache)
        read(decoder, rows(17), PLAN, cache, [Ask()], lengths=[1, 2, 3] if cached else None)
    early = entered[0].split([1, 2, 3]) if cached else [entered[0][:0]] * 3
    expected = []
    for own, old, new in zip(SEGMENT_ROWS, early, entered[-1].split(PLAN.lengths)):
        x = layer.input_layernorm(torch.cat([old, new]))
        cos, sin = (table for table in _table(decoder, len(x)))
        q, k = (_turned(projection(x).unflatten(-1, (-1, 4)), cos, sin) for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj))
        weights = torch.einsum("qne,kne->nqk", q, k.repeat_interleave(2, 1)) * 4**-0.5
        hidden = torch.ones(len(x), len(x)).triu(1).bool()
        expected.append(weights.masked_fill(hidden, -torch.inf).softmax(-1).mean(0)[-1][len(old) :])
        assert len(expected[-1]) == len(own)
    assert (asked[0] - torch.cat(expected)).abs().max() < TOLERANCE


def _table(decoder, length):
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, 4, 2) / 4)
    return torch.cat([angles, angles], -1).cos()[:, None], torch.cat([angles, angles], -1).sin()[:, None]


def _turned(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


def test_scores_keep_to_the_window_and_leave_empty_segments_out():
    torch.manual_seed(0)
    q, k = torch.randn(3, 2, 4), torch.randn(7, 1, 4)
    scores = last_row_scores(q, k, Segments.of([3, 0], [5, 2]), window=2, softcap=3.0)
    products = 3 * torch.tanh(torch.einsum("ne,ke->nk", q[2], k[3:5, 0]) * 0.5 / 3)
    torch.testing.assert_close(scores, torch.cat([torch.zeros(3), products.softmax(-1).mean(0), torch.zeros(2)]))


class Returning:
    requires = frozenset({"vision", "drop"})

    def __init__(self, give):
        self.layers, self.give = (1,), give

    def __call__(self, hidden, context):
        return self.give(hidden, context)


WRONG = {
    "rows": (lambda h, c: h[1:], r"'Returning' before layer 1 returned rows \(16, 16\), expected \(17, 16\): to drop rows, return context.keep"),
    "nothing": (lambda h, c: None, "returned NoneType, expected the rows, or context.keep"),
    "mask alone": (lambda h, c: (h, c.vision.mask_T), "expected the rows, or context.keep"),
    "lengths": (lambda h, c: c.keep(h, ~c.vision.mask_T, [3, 2, 3]), r"marks \(3, 2, 2\) rows of the segments, lengths says \(3, 2, 3\)"),
    "segments": (lambda h, c: c.keep(h, ~c.vision.mask_T, [3, 2]), r"lengths \(3, 2\) of the kept rows don't fit segments of \(8, 2, 7\)"),
    "text": (lambda h, c: c.keep(h, c.vision.mask_T, [5, 0, 5]), "drops text rows: only rows where context.vision.mask_T is true"),
}


@pytest.mark.parametrize("name", WRONG)
def test_hooks_that_break_the_contract_are_refused(decoder, name):
    give, message = WRONG[name]
    with pytest.raises(LmmError, match=message):
        read(decoder, rows(17), PLAN, hooks=[Returning(give)], vision=vision_of(PLAN, [5, 2, 3]))


def test_a_gradient_reaches_the_rows_that_are_left_and_no_other(decoder):
    embeds = rows(17).requires_grad_()
    hidden = read(decoder, embeds, PLAN, hooks=[Dropping(0, {0})], vision=vision_of(PLAN, [5, 2, 3]))
    hidden.square().sum().backward()
    left = torch.tensor([0, 1, 6, 7, 8, 9, 10, 12, 16])
    gone = torch.ones(17).index_fill(0, left, 0).bool()
    assert embeds.grad[left].abs().sum(1).all() and not embeds.grad[gone].any() and not hidden[gone].any()
