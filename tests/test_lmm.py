"""The model: one packed row gives what its conversations give alone, and parts that don't fit are refused, all at once."""

import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import lmmblocks.decoders.wrapped_ends
from lmmblocks.data.collate import collate
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.encoders.siglip2_naflex import NaFlexConfig
from lmmblocks.lmm import LMM
from lmmblocks.plans.host import plan_splice
from lmmblocks.projectors import MLP, Linear
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, PATCHES, Batch, Grid, LmmError, Segments

TOLERANCE = 2e-5
ENCODER = CLIPConfig(dim=16, layers=3, heads=2, mlp_dim=24, image_size=28, patch=14)
DECODER = TransformerConfig(dim=24, layers=2, heads=4, kv_heads=2, ffn_dim=32, vocab=400, max_positions=512)


def largest(difference):
    return difference.abs().max().item() if difference.numel() else 0.0


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def by_hand(model, sample):
    """Hidden states and next-token labels of one conversation: embeddings and image rows joined piece by piece."""
    spec = model.input_spec
    tokens = collate([sample], spec)  # for its pixels only
    from lmmblocks.chat import encode_chat

    encoded = encode_chat(sample.messages, spec.template, spec.tokenizer, mode=spec.tokenize_mode)
    pieces, labels, image = [], [], 0
    for token, label in zip(encoded.ids, encoded.labels):
        if token == IMAGE_TOKEN:
            features = model.encoder(tokens.pixels[image : image + 1])
            pieces.append(model.projector(features))
            labels += [IGNORE_LABEL] * len(pieces[-1])
            image += 1
        else:
            pieces.append(model.decoder.table[token][None])
            labels.append(label)
    rows = torch.cat(pieces)
    hidden = model.decoder(rows, positions=torch.arange(len(rows)), segments=Segments.of([len(rows)]))
    return hidden, torch.tensor([*labels[1:], IGNORE_LABEL])


def test_names_are_those_of_the_hub(tiny_model):
    prefixes = {".".join(name.split(".")[:2]) for name in tiny_model.state_dict()}
    assert prefixes == {
        "vision_tower.vision_model",
        "multi_modal_projector.linear_1",
        "multi_modal_projector.linear_2",
        "language_model.model",
        "language_model.lm_head",
    }


def test_parts_are_the_modules_and_make_up_the_whole(tiny_model):
    m = tiny_model
    assert m.parts == {"encoder": m.vision_tower, "projector": m.multi_modal_projector, "decoder": m.language_model}
    assert (m.encoder, m.projector, m.decoder) == tuple(m.parts.values())
    own = [p for part in m.parts.values() for p in part.parameters()]
    assert {id(p) for p in own} == {id(p) for p in m.parameters()} and len(own) == len(set(map(id, own)))
    assert m.device == torch.device("cpu")


def test_packed_hidden_states_and_logits_equal_pieces_joined_by_hand(tiny_model, conversations):
    batch = collate(conversations, tiny_model)
    with torch.no_grad():
        packed, logits = tiny_model(batch), tiny_model.logits(batch)
        expected = torch.cat([by_hand(tiny_model, sample)[0] for sample in conversations])
    assert largest(packed - expected) < TOLERANCE
    torch.testing.assert_close(logits, expected @ tiny_model.decoder.head_weight.T, atol=1e-4, rtol=1e-4)


def test_packed_loss_equals_the_padded_one_and_the_weighted_single_ones(tiny_model, conversations):
    batch = collate(conversations, tiny_model)
    counts = batch.plan.target_counts
    with torch.no_grad():
        packed = tiny_model.loss(batch)
        single = torch.stack([tiny_model.loss(collate([sample], tiny_model)) for sample in conversations])
        parts = [by_hand(tiny_model, sample) for sample in conversations]
    hidden = nn.utils.rnn.pad_sequence([h for h, _ in parts], batch_first=True)
    labels = nn.utils.rnn.pad_sequence([n for _, n in parts], batch_first=True, padding_value=IGNORE_LABEL)
    logits = hidden @ tiny_model.decoder.head_weight.T
    padded = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE_LABEL)
    weighted = (single * torch.tensor(counts)).sum() / sum(counts)
    assert counts == tuple(int((n != IGNORE_LABEL).sum()) for _, n in parts) and min(counts) > 1
    assert abs(packed - padded) < TOLERANCE and abs(packed - weighted) < TOLERANCE, (packed, padded, weighted)


@pytest.mark.parametrize("frozen", [True, False])
def test_packed_gradients_equal_the_weighted_single_ones(make_tiny_model, conversations, frozen):
    model = make_tiny_model()
    model.encoder.frozen = frozen
    batch = collate(conversations, model)
    model.loss(batch).backward()
    packed = gradients(model)
    model.zero_grad()
    for sample, count in zip(conversations, batch.plan.target_counts):
        (model.loss(collate([sample], model)) * count / sum(batch.plan.target_counts)).backward()
    single = gradients(model)
    assert set(packed) == set(single)
    assert any(name.startswith("vision_tower") for name in packed) is not frozen
    for name, gradient in packed.items():
        assert largest(gradient - single[name]) < 1e-5 * max(1.0, largest(gradient)), name


def test_order_of_the_conversations_does_not_matter(tiny_model, conversations):
    with torch.no_grad():
        one = tiny_model.loss(collate(conversations, tiny_model), reduction="none")
        other = tiny_model.loss(collate(conversations[::-1], tiny_model), reduction="none")
    counts = collate(conversations, tiny_model).plan.target_counts
    turned = torch.cat(other.split(counts[::-1])[::-1])
    assert largest(one - turned) < TOLERANCE


def test_positions_and_segments_of_the_decoder_restart_with_every_conversation(tiny_model, conversations):
    seen = []
    hook = tiny_model.decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with hook, torch.no_grad():
        tiny_model(collate(conversations, tiny_model))
    lengths = seen[0]["segments"].lengths_q
    alone = [collate([sample], tiny_model).plan.total_rows for sample in conversations]
    assert list(lengths) == alone
    assert seen[0]["positions"].tolist() == [position for n in alone for position in range(n)]


def test_each_image_goes_to_its_own_place(tiny_model, conversations):
    """Exchanging pictures between two conversations changes the loss of every answer after them, and equals asking alone."""
    one, two = conversations[0], conversations[2]
    swapped = [replace(one, images=two.images[:1]), replace(two, images=[*one.images, two.images[1]])]
    with torch.no_grad():
        plain = tiny_model.loss(collate([one, two], tiny_model), reduction="none")
        other = tiny_model.loss(collate(swapped, tiny_model), reduction="none")
        alone = [tiny_model.loss(collate([sample], tiny_model), reduction="none") for sample in swapped]
    assert ((plain - other).abs() > 1e-6).all()
    assert largest(other - torch.cat(alone)) < TOLERANCE


def test_text_only_batch_runs_no_encoder_and_teaches_no_projector(make_tiny_model, conversations):
    model, calls = make_tiny_model(), []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    text = conversations[1]
    batch = collate([text, text], model)
    assert batch.pixels.shape == (0, 3, 28, 28) and batch.grids == ()
    loss = model.loss(batch)
    loss.backward()
    assert not calls and all(not name.startswith("multi_modal") for name in gradients(model))
    mixed = collate([conversations[0], text], model)
    count = mixed.plan.target_counts[0]
    expected = model.loss(mixed, reduction="none")[count:].mean()
    assert abs(loss - expected) < TOLERANCE and calls


def test_only_supervised_rows_reach_the_head(tiny_model, conversations, monkeypatch):
    batch, seen = collate(conversations, tiny_model), []
    plain = lmmblocks.decoders.wrapped_ends.ops.linear_cross_entropy
    monkeypatch.setattr(lmmblocks.decoders.wrapped_ends.ops, "linear_cross_entropy", lambda h, *a, **k: seen.append(h.shape) or plain(h, *a, **k))
    monkeypatch.setattr(tiny_model.decoder, "head", lambda hidden: pytest.fail("all rows went to the head"))
    largest_kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: largest_kept.append(t.shape) or t, lambda t: t):
        tiny_model.loss(batch)
    supervised = sum(batch.plan.target_counts)
    assert seen == [(supervised, 24)] and supervised < batch.plan.total_rows
    assert (batch.plan.total_rows, 400) not in largest_kept


def test_reductions_and_weights_are_those_of_the_rows(tiny_model, conversations):
    batch = collate(conversations[:2], tiny_model)
    with torch.no_grad():
        rows = tiny_model.loss(batch, reduction="none")
        weights = torch.rand(len(rows))
        total, mean = (tiny_model.loss(batch, reduction=r) for r in ("sum", "mean"))
        weighted = tiny_model.loss(batch, weights=weights)
    assert rows.shape == (sum(batch.plan.target_counts),) and rows.dtype == torch.float32
    torch.testing.assert_close(total, rows.sum())
    torch.testing.assert_close(mean, rows.mean())
    torch.testing.assert_close(weighted, (rows * weights).sum() / weights.sum())
    with pytest.raises(LmmError, match="reduction 'avg' is none of"):
        tiny_model.loss(batch, reduction="avg")


def test_a_batch_that_teaches_nothing_has_loss_zero_and_zero_gradients(make_tiny_model):
    model = make_tiny_model()
    loss = model.loss(Batch(torch.zeros(1, 3, 28, 28), (Grid(2, 2),), plan_splice([[1, IMAGE_TOKEN, 5]], [[4]])))
    loss.backward()
    assert loss == 0 and all(not g.any() for g in gradients(model).values())


def test_gradients_are_the_same_on_every_run(make_tiny_model, conversations):
    runs = []
    for _ in range(2):
        model = make_tiny_model()
        model.loss(collate(conversations, model)).backward()
        runs.append(gradients(model))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_encode_gives_the_projected_patches_of_all_images(tiny_model):
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        rows, counts = tiny_model.encode(pixels)
        expected = tiny_model.projector(tiny_model.encoder(pixels))
        none, no_counts = tiny_model.encode(pixels[:0])
    assert torch.equal(rows, expected) and counts == (4, 4, 4)
    assert none.shape == (0, 24) and no_counts == ()


class Own(nn.Module):
    """A user's projector; what it gives and needs can be set."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim=16, out_dim=24, *, rows=lambda grid: grid, give=None, need=None):
        super().__init__()
        self.layer = nn.Linear(in_dim, out_dim)
        self.norm = nn.BatchNorm1d(out_dim)
        self.rows, self.give = rows, give
        self.requires = Own.requires if need is None else need
        self.seen = []

    def out_grid(self, grid):
        return self.rows(grid)

    def forward(self, features):
        self.seen.append(features)
        rows = self.norm(self.layer(features.patches))
        return self.give(rows) if self.give else rows


def compose(projector, *, encoder=ENCODER, decoder=DECODER, **options):
    return LMM(encoder.build(), projector, decoder.build(), **options)


def test_own_projector_without_a_base_class_is_composed_and_learns(tiny_tokenizer, conversations):
    projector = Own()
    before = {name: buffer.clone() for name, buffer in projector.named_buffers()}
    model = compose(projector, tokenizer=tiny_tokenizer)
    assert all(torch.equal(buffer, before[name]) for name, buffer in projector.named_buffers())
    model.loss(collate(conversations, model)).backward()
    assert projector.layer.weight.grad.any()


def test_projector_gets_the_extras_it_requires(tiny_tokenizer, conversations):
    projector = Own(need={"patches", "cls_attn", "keys", "layers", "prefix"})
    model = compose(projector, tokenizer=tiny_tokenizer)
    model(collate(conversations[:1], model))
    blank, *_, real = projector.seen
    for features, heads in ((blank, 1), (real, 2)):
        shapes = [features.cls_attn.shape, features.keys.shape, features.prefix.shape, features.layers[-2].shape]
        assert shapes == [(4,), (4, heads, 16 // heads), (1, 1, 16), (4, 16)]


WRONG = {
    "width": (dict(projector=Linear(16, 20)), "'Linear' gives width 20, decoder 'Transformer' takes 24: make the projector with out_dim=24"),
    "input width": (dict(projector=MLP(12, 24)), "'MLP' can't take 2x2 patches of width 16: RuntimeError: "),
    "count": (dict(projector=Own(rows=lambda grid: 3)), r"says one image of 2x2 becomes 3 rows, but gives 4: make its out_grid"),
    "counts": (dict(projector=Own(give=lambda rows: (rows, [4]))), r"returns \(a tensor .*, list\), expected .*: return the rows only, its out_grid"),
    "batched": (dict(projector=Own(give=lambda rows: rows[None])), r"returns a tensor \(1, 4, 24\), expected a tensor \(rows, 24\)"),
    "first image only": (dict(projector=Own(give=lambda rows: rows[:4])), "gives 4 rows for one image of 2x2 and 4 for two: make its out_grid"),
    "last first": (dict(projector=Own(give=lambda rows: rows.view(-1, 4, 24).flip(0).flatten(0, 1))), "row 0 of image 0 is one of image 1: let"),
    "woven": (dict(projector=Own(give=lambda rows: rows.view(-1, 4, 24).transpose(0, 1).flatten(0, 1))), "row 1 of image 0 is one of image 1: let"),
    "one moved": (dict(projector=Own(give=lambda rows: rows[[0, 1, 2, *range(4, len(rows)), 3]])), "row 3 of image 0 is one of image 1: let its"),
    "layer": (dict(projector=Own(give=lambda rows: {-2: rows}[-5])), "KeyError: -5"),
    "need": (dict(projector=Own(need={"patches", "depth"})), r"needs \['depth'\], encoder 'CLIP' offers \['cls_attn', 'keys'"),
    "max_length": (dict(max_length=513), "max_length 513 is above the decoder's max_positions 512: lower max_length"),
    "tokenizer": (dict(tokenizer=range(401)), "tokenizer has 401 ids, decoder 'Transformer' has a table of 400 rows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_parts_that_do_not_fit_are_refused_with_both_values(name):
    options, message = WRONG[name]
    with pytest.raises(LmmError, match=message) as error:
        compose(**{"projector": Linear(16, 24), **options})
    assert str(error.value).count("\n- ") == 1


def test_all_mismatches_are_in_one_error():
    projector = Own(16, 20, rows=lambda grid: Grid(1, 1), need={"depth"})
    with pytest.raises(LmmError) as error:
        compose(projector, tokenizer=range(1000), max_length=9999)
    lines = str(error.value).split("\n- ")[1:]
    expected = ["needs ['depth']", "becomes 1 rows", "gives width 20", "has 1000 ids", "max_length 9999"]
    assert len(lines) == len(expected) and all(text in line for text, line in zip(expected, lines)), lines


def test_parts_that_are_no_blocks_are_refused_with_what_they_lack():
    with pytest.raises(LmmError) as error:
        LMM(nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(1, 1))
    lines = str(error.value).split("\n- ")[1:]
    assert "encoder 'Linear' lacks ['spec', 'preprocess'], which lmmblocks.spec.Encoder asks for" in lines[0]
    assert "projector 'Linear' lacks ['requires', 'out_grid']" in lines[1]
    assert "decoder 'Linear' lacks ['dim', 'vocab', 'table'" in lines[2]


def test_unknown_template_is_refused():
    with pytest.raises(LmmError, match="unknown template 'vicuna'"):
        compose(Linear(16, 24), template="vicuna")


def test_model_without_a_tokenizer_eats_ready_batches_only(make_tiny_model):
    model = make_tiny_model(tokenizer=None)
    batch = Batch(torch.zeros(0, 3, 28, 28), (), plan_splice([[1, 5, 6]], [[]], labels=[[-100, 5, 6]]))
    assert model.loss(batch).isfinite()
    with pytest.raises(LmmError, match=r"the model has no tokenizer: pass tokenizer=... to build\(\)"):
        model.input_spec  # noqa: B018


def test_input_spec_travels_without_the_weights_and_makes_the_same_batch(make_tiny_model, conversations, tiny_tokenizer):
    model = compose(MLP(16, 24), tokenizer=tiny_tokenizer, max_length=300)
    model.projector.ballast = nn.Parameter(torch.zeros(3_000_000))
    sent = pickle.dumps(model.input_spec)
    assert len(sent) < 500_000, len(sent)
    spec = pickle.loads(sent)
    assert spec.image_rows(Grid(2, 2)) == 4 and spec.max_length == 300 and spec.tokenize_mode == "pieces"
    here, there = collate(conversations, model), collate(conversations, spec)
    assert torch.equal(here.pixels, there.pixels) and torch.equal(here.plan.source, there.plan.source)
    assert model.projector.ballast.device.type == "cpu"


def test_number_of_image_rows_that_differs_from_the_plan_is_refused(tiny_model):
    plan = plan_splice([[1, IMAGE_TOKEN, 5]], [[3]], labels=[[-100, -100, 5]])
    with pytest.raises(LmmError, match="the plan places 3 image rows, the projector gave 4"):
        tiny_model.loss(Batch(torch.zeros(1, 3, 28, 28), (Grid(1, 3),), plan))


class Late(nn.Module):
    """Loses a row of a batch of three images, which nobody tries before."""

    requires = frozenset({"patches"})

    def __init__(self, in_dim, out_dim):
        super().__init__()
        self.linear = nn.Linear(in_dim, out_dim)

    def out_grid(self, grid):
        return grid

    def forward(self, features):
        rows = self.linear(features.patches)
        return rows[1:] if len(features.grids) == 3 else rows


class Kept(nn.Module):
    """A reducer that gives what it is told to, before the projector or after it."""

    requires = PATCHES

    def __init__(self, give, before=False, count=lambda state: state):
        super().__init__()
        self.give, self.before_projector, self.out_count = give, before, count

    def forward(self, features, rows, state):
        return self.give(rows)


REDUCED_WRONG = {
    "counts": (lambda rows: (rows, (4,)), r"returns \(a tensor .*, \(int\)\), expected .*: return the rows only, its out_count"),
    "count": (lambda rows: rows[1:], r"says one image of 2x2 patches becomes 4 rows, but gives 3: make its out_count\(\)"),
    "width": (lambda rows: rows[:, 1:], "gives width .* for rows of width .*: let its forward"),
    "first image only": (lambda rows: rows[:4], r"gives 4 rows for one image of 2x2 and 4 for two: make its out_count\(\)"),
    "last first": (lambda rows: rows.view(-1, 4, rows.shape[1]).flip(0).flatten(0, 1), "row 0 of image 0 is one of image 1: let"),
    "one moved": (lambda rows: rows[[0, 1, 2, *range(4, len(rows)), 3]], "row 3 of image 0 is one of image 1: let its"),
}


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", REDUCED_WRONG)
def test_rows_of_a_reducer_that_are_not_those_it_counts_are_refused_by_its_name(name, before):
    give, message = REDUCED_WRONG[name]
    with pytest.raises(LmmError, match=f"reducer 'Kept' {message}" if "row" != message[:3] else f"reducer 'Kept' gives two images .*{message}"):
        compose(Own(), reducers=[Kept(give, before)])


class Late3(Kept):
    """Loses a row of a batch of three images, which nobody tries before."""

    def forward(self, features, rows, state):
        return rows[1:] if len(state) == 3 else rows


@pytest.mark.parametrize("before", [False, True])
def test_rows_that_a_reducer_loses_in_a_batch_are_refused_by_its_name(before):
    model = compose(Own(), reducers=[Late3(None, before)])
    assert model.encode(torch.zeros(2, 3, 28, 28))[1] == (4, 4)
    with pytest.raises(LmmError, match=r"Late3 gives 11 rows for 3 images, and its out_count\(\) counts 4, 4, 4: make its out_count\(\) and what"):
        model.encode(torch.zeros(3, 3, 28, 28))


@pytest.mark.parametrize("before", [False, True])
def test_a_reducer_of_images_of_any_size_is_tried_with_uneven_grids_too(before):
    class Lines(Kept):
        """Each second line, which out_count takes for each second column."""

        def forward(self, features, rows, state):
            parts = rows.split([grid.rows for grid in state])
            return torch.cat([part.unflatten(0, (grid.h, grid.w))[::2].flatten(0, 1) for part, grid in zip(parts, state)])

    naflex = NaFlexConfig(dim=16, layers=2, heads=2, mlp_dim=16, positions=16, patch=4)
    with pytest.raises(LmmError, match="reducer 'Lines' says one image of 8x5 patches becomes 24 rows, but gives 20: make its out_count"):
        compose(Own(), encoder=naflex, reducers=[Lines(None, before, lambda grid: Grid(grid.h, -(-grid.w // 2)))])


def test_rows_that_are_missing_in_a_batch_are_refused_by_the_name_of_the_projector(tiny_model, make_tiny_model):
    model = make_tiny_model(config=replace(tiny_model.config, reducers=()), projector=Late)
    assert model.encode(torch.zeros(2, 3, 28, 28))[1] == (4, 4)
    with pytest.raises(LmmError, match=r"Late gives 11 rows for 3 images, and its out_grid\(\) counts 4, 4, 4: make its out_grid\(\) and what"):
        model.encode(torch.zeros(3, 3, 28, 28))


class Squeezed(Own):
    """Pairs of a line become a row, those of an odd line too, which out_grid forgets."""

    def __init__(self):
        super().__init__(rows=lambda grid: Grid(grid.h, grid.w // 2))

    def forward(self, features):
        lines = [image.view(g.h, g.w, -1) for image, g in zip(features.patches.split([g.rows for g in features.grids]), features.grids)]
        return torch.cat([self.layer(line[:, ::2]).flatten(0, 1) for line in lines])


def test_an_encoder_of_any_size_is_tried_with_uneven_grids_too():
    """Rows that one image has too many are those that another lacks: their sum may be right."""
    with pytest.raises(LmmError, match="says one image of 8x5 becomes 16 rows, but gives 24: make its out_grid"):
        compose(Squeezed(), encoder=NaFlexConfig(dim=16, layers=2, heads=2, mlp_dim=16, positions=16, patch=4))


def test_a_batch_norm_in_training_and_dropout_are_no_mixed_images():
    for part in (nn.BatchNorm1d(24), nn.Dropout(0.5)):
        projector = Own()
        projector.norm = part
        assert compose(projector).projector.training and part.training


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_pixels_that_nobody_normalised_are_refused(tiny_model, dtype):
    with pytest.raises(LmmError, match=f"pixels are {dtype}, expected floating point, normalised for this encoder: .*preprocess.batch"):
        tiny_model.encode(torch.ones(1, 3, 28, 28).to(dtype))
