"""IDEFICS assembled from blocks against ``IdeficsForVisionText2Text``: read from its files, run packed; transformers' is padded on the right.

Which image a token sees comes from transformers' processor, which makes a mask of the ids.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import lmmblocks as lb
from lmmblocks.plans.host import plan_splice
from lmmblocks.spec import IGNORE_LABEL, IMAGE_TOKEN, Batch, Grid, Segments
from lmmblocks.weights.systems.idefics import ADDED_ROWS, LAYOUT

TOLERANCE = 1e-5
VOCAB, FAKE_ID, IMAGE_ID, EOS = 400, 400, 401, 2
SIZE = 28
TWIN = "IdeficsForVisionText2Text"
SHAPES = {
    "perceiver": dict(use_resampler=True, qk_layer_norms=True, alpha_type="vector", num_hidden_layers=4, cross_layer_interval=2),
    "no perceiver": dict(),
    "tied": dict(tie_word_embeddings=True, use_resampler=True, rms_norm_eps=1e-4),
}


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, hf_idefics, tmp_path_factory):
    """Ours and theirs with the same weights."""
    theirs = hf_idefics(**SHAPES[request.param])
    folder = tmp_path_factory.mktemp("idefics")
    theirs.save_pretrained(folder)
    return lb.load(folder), theirs


def text(generator, length):
    return torch.randint(3, VOCAB, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def samples():
    """Ids with ``IMAGE_TOKEN`` for each image: one after words, none, two apart, two side by side, one at the very beginning; and pixels."""
    random = torch.Generator().manual_seed(7)
    shown = [FAKE_ID, IMAGE_TOKEN, FAKE_ID]
    ids = [
        [1, *text(random, 4), *shown, *text(random, 7)],
        [1, *text(random, 9)],
        [1, *text(random, 2), *shown, *text(random, 5), *shown, *text(random, 3)],
        [1, *shown, *shown[1:], *text(random, 6)],
        [IMAGE_TOKEN, *text(random, 3)],
    ]
    return ids, torch.randn(6, 3, SIZE, SIZE, generator=random)


def our_batch(ids, pixels, labels=None):
    plan = plan_splice(ids, [[1] * row.count(IMAGE_TOKEN) for row in ids], labels=labels)
    return Batch(pixels, (Grid(2, 2),) * len(pixels), plan)


def their_batch(ids, pixels):
    from transformers.models.idefics import processing_idefics as processing

    longest, most = max(map(len, ids)), max(1, *(row.count(IMAGE_TOKEN) for row in ids))
    rows = torch.tensor([[IMAGE_ID if token == IMAGE_TOKEN else token for token in row] + [0] * (longest - len(row)) for row in ids])
    padded, left = torch.zeros(len(ids), most, 3, SIZE, SIZE), iter(pixels)
    for index, row in enumerate(ids):
        for place in range(row.count(IMAGE_TOKEN)):
            padded[index, place] = next(left)
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda token: {"<image>": IMAGE_ID}[token], eos_token_id=EOS)
    mask, _ = processing.image_attention_mask_for_packed_input_ids(rows, tokenizer, "pt")
    mask = processing.incremental_to_binary_attention_mask(mask, "pt", num_classes=most)
    real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
    return dict(input_ids=rows, attention_mask=real, pixel_values=padded, image_attention_mask=mask)


def their_logits(theirs, ids, pixels):
    """Logits of the real rows, sample after sample."""
    batch = their_batch(ids, pixels)
    return theirs(**batch).logits[batch["attention_mask"].bool()]


def alone(samples):
    """Each sample as a batch of its own."""
    ids, pixels = samples
    parts = pixels.split([row.count(IMAGE_TOKEN) for row in ids])
    return [([row], part) for row, part in zip(ids, parts)]


@torch.no_grad()
def test_every_row_of_logits_equals_transformers(pair, samples, record_parity):
    ours, theirs = pair
    expected, got = their_logits(theirs, *samples), ours.logits(our_batch(*samples))
    error = (got - expected).abs().max().item()
    print("largest logit", expected.abs().max().item(), "largest difference", error)
    record_parity("IDEFICS", TWIN, "logits: largest absolute difference", error)
    assert expected.abs().max() > 1 and error <= TOLERANCE


@torch.no_grad()
def test_each_sample_alone_equals_transformers_and_itself_among_others(pair, samples):
    ours, theirs = pair
    together = ours.logits(our_batch(*samples)).split([len(row) for row in samples[0]])
    for sample, among in zip(alone(samples), together):
        got = ours.logits(our_batch(*sample))
        torch.testing.assert_close(got, their_logits(theirs, *sample), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(got, among, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_a_row_sees_the_last_image_up_to_itself_and_no_other(pair, samples):
    """Changing an image changes the rows from its own up to the next image's by attention, those after by what was read there."""
    ours, _ = pair
    row, pixels = samples[0][2], samples[1][1:3]
    first, second = (place for place, token in enumerate(row) if token == IMAGE_TOKEN)
    seen = {}
    hook = ours.hooks[0].gated_cross_attn_layers[0].cross_attn
    with hook.register_forward_hook(lambda _, args, out: seen.setdefault("looks", []).append(out)):
        for shift in ([0, 0], [1, 0], [0, 1]):
            ours.logits(our_batch([row], pixels + torch.tensor(shift)[:, None, None, None]))
    plain, one, two = seen["looks"]
    assert len(plain) == len(row) - first  # rows before the first image don't look at all
    cut = second - first
    assert ((plain != one).any(1)).tolist() == [place < cut for place in range(len(plain))]
    assert ((plain != two).any(1)).tolist() == [place >= cut for place in range(len(plain))]


def test_loss_and_every_gradient_equal_transformers(pair, samples, record_parity):
    ours, theirs = pair
    ids, pixels = samples
    labels = [[IGNORE_LABEL if i % 3 == 0 or token == IMAGE_TOKEN else token for i, token in enumerate(row)] for row in ids]
    ours.encoder.frozen = False
    ours.requires_grad_(True).zero_grad()
    theirs.requires_grad_(True).zero_grad()
    loss = ours.loss(our_batch(ids, pixels, labels))
    logits = their_logits(theirs, ids, pixels).split([len(row) for row in ids])
    wanted = torch.cat([torch.tensor(row[1:]) for row in labels])
    expected_loss = F.cross_entropy(torch.cat([rows[:-1] for rows in logits]), wanted, ignore_index=IGNORE_LABEL)
    torch.testing.assert_close(loss, expected_loss, atol=TOLERANCE, rtol=0)
    loss.backward()
    expected_loss.backward()
    expected = gradients_in_our_names(theirs)
    got = {name: value.grad for name, value in ours.named_parameters()}
    assert got.keys() == expected.keys()
    for gradient in ("alpha_cross_attn", "alpha_dense"):
        assert got[f"hooks.0.gated_cross_attn_layers.1.{gradient}"].abs().max() > 1e-4
    assert got["vision_tower.vision_model.embeddings.class_embedding"].abs().max() > 1e-5
    worst = 0.0
    for name, gradient in got.items():
        if gradient is None or expected[name] is None:  # the tower's last norm, which nothing reads
            assert gradient is None and expected[name] is None, name
            continue
        torch.testing.assert_close(gradient, expected[name], atol=TOLERANCE, rtol=0, msg=name)
        worst = max(worst, (gradient - expected[name]).abs().max().item())
    record_parity("IDEFICS", TWIN, "gradients: largest absolute difference", worst)


def gradients_in_our_names(theirs):
    found = {name: value.grad for name, value in theirs.named_parameters()}
    for table, added in ADDED_ROWS.items():
        if added in found:
            found[table] = torch.cat([found[table], found.pop(added)])
    return {LAYOUT.to_model(name): value for name, value in found.items()}


def test_greedy_tokens_of_all_samples_side_by_side_equal_transformers(pair, samples, record_parity):
    ours, theirs = pair
    answers, differing = greedy(ours, *samples, 12), 0
    for sample, answer in zip(alone(samples), answers):
        batch = their_batch(*sample)
        options = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        expected = theirs.generate(**batch, **options)[0, len(sample[0][0]) :].tolist()
        differing += sum(a != b for a, b in zip(answer, expected))
        assert answer == expected and len(expected) == 12
    record_parity("IDEFICS", TWIN, "greedy tokens that differ", differing)


@torch.no_grad()
def greedy(model, ids, pixels, count):
    """The next tokens of each sample: all prompts in one pass, then one row each after the cached ones."""
    batch = our_batch(ids, pixels)
    cache = model.decoder.new_cache(len(ids))
    hidden = model.read(model.encode_images(batch.pixels), batch.plan, cache=cache)[batch.plan.cu_seqlens[1:] - 1]
    answers = [[] for _ in ids]
    for _ in range(count):
        tokens = model.decoder.head(hidden).argmax(-1)
        for answer, token in zip(answers, tokens.tolist()):
            answer.append(token)
        hidden = model.decode(model.decoder.embed(tokens), torch.tensor(cache.lengths), Segments.of([1] * len(ids)), cache=cache)
    return answers


@torch.no_grad()
def test_images_of_a_later_turn_are_seen_behind_the_cache(pair, samples):
    """Text, then an image, then text, in three passes and among others that leave, as in one pass."""
    ours, _ = pair
    (_, _, row, _, _), pixels = samples
    whole = ours.logits(our_batch([row], pixels[1:3]))
    cache, got = ours.decoder.new_cache(3), []
    cuts = [0, 3, row.index(IMAGE_TOKEN) + 3, len(row)]
    others = [[[5, IMAGE_TOKEN, 6], [7]], [[8], [9, 9]]]
    for turn, (first, last) in enumerate(zip(cuts, cuts[1:])):
        own, used = row[first:last], row[:first].count(IMAGE_TOKEN)
        new = [*others[turn], own] if turn < 2 else [own]
        images = pixels[1 + used : 1 + used + own.count(IMAGE_TOKEN)]
        images = torch.cat([pixels[:1], images]) if turn == 0 else images
        if turn == 2:
            cache.keep([2])
        batch = our_batch(new, images)
        earlier = torch.cat([torch.full((len(part),), length) for part, length in zip(new, cache.lengths)])
        hidden = ours.read(ours.encode_images(images), batch.plan, positions_T=batch.plan.positions + earlier, cache=cache)
        got.append(ours.decoder.head(hidden)[-len(own) :])
    torch.testing.assert_close(torch.cat(got), whole, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(pair, samples, tmp_path):
    ours, _ = pair
    ours.save(tmp_path / "own", format="native")
    again = lb.load(tmp_path / "own")
    state = again.state_dict()
    assert state.keys() == ours.state_dict().keys() and again.config == lb.load(tmp_path / "own").config
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    assert torch.equal(again.logits(our_batch(*samples)), ours.logits(our_batch(*samples)))
