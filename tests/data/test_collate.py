"""Samples to a batch: what is in it, what the options change, and which sample an error is about."""

from dataclasses import dataclass, replace

import pytest
import torch

from lmmblocks.chat import encode_chat, get_template
from lmmblocks.data.collate import collate
from lmmblocks.images.preprocess import clip_preprocess
from lmmblocks.spec import IGNORE_LABEL, Grid, LmmError, Sample

ROWS_OF_AN_IMAGE = 4


def sample(question, answer="No", images=(), id=None):
    turns = [{"role": "user", "content": question}]
    turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    return Sample(turns, list(images), id)


@pytest.fixture(scope="module")
def spec(tiny_model):
    return tiny_model.input_spec


def expected_rows(samples, spec, **options):
    """Token ids of each sample, with None for each image row."""
    out = []
    for entry in samples:
        ids = encode_chat(entry.messages, options.get("template", spec.template), spec.tokenizer, mode=spec.tokenize_mode).ids
        out.append([row for token in ids for row in ([None] * ROWS_OF_AN_IMAGE if token == -200 else [token])])
    return out


def rows_of(batch):
    """The same of a batch."""
    source = [token if token >= 0 else None for token in batch.plan.source.tolist()]
    starts = batch.plan.cu_seqlens.tolist()
    return [source[a:b] for a, b in zip(starts, starts[1:])]


def test_batch_holds_every_conversation_and_every_picture(conversations, spec):
    batch = collate(conversations, spec)
    assert rows_of(batch) == expected_rows(conversations, spec)
    pictures = [image for entry in conversations for image in entry.images]
    assert torch.equal(batch.pixels, torch.stack([spec.preprocess(image) for image in pictures]))
    assert batch.grids == (Grid(2, 2),) * len(pictures)
    assert batch.sample_ids == ("one", "text", "two", "late")
    assert batch.plan.kept == (0, 1, 2, 3) and batch.plan.truncated == (0,) * 4
    assert sorted(batch.plan.source[batch.plan.source < 0].tolist()) == list(range(-len(pictures) * ROWS_OF_AN_IMAGE, 0))


def test_supervised_rows_predict_the_answers(conversations, spec):
    plan = collate(conversations, spec).plan
    answers = []
    for entry in conversations:
        tokens = encode_chat(entry.messages, spec.template, spec.tokenizer)
        answers += [label for label in tokens.labels if label != IGNORE_LABEL]
    assert plan.targets.tolist() == answers
    assert plan.source[plan.target_rows.long() + 1].tolist() == answers


def test_model_and_its_input_spec_give_the_same_batch(conversations, tiny_model, spec):
    a, b = collate(conversations, tiny_model), collate(conversations, spec)
    assert torch.equal(a.pixels, b.pixels) and torch.equal(a.plan.source, b.plan.source)


def test_paths_and_pictures_are_the_same(conversations, spec, tmp_path):
    one = conversations[0]
    one.images[0].save(tmp_path / "a.png")
    from_path = collate([replace(one, images=[tmp_path / "a.png"])], spec)
    assert torch.equal(from_path.pixels, collate([one], spec).pixels)


def test_no_samples_are_an_empty_batch(spec):
    batch = collate([], spec)
    assert batch.pixels.shape == (0, 3, 28, 28) and batch.plan.total_rows == 0 and batch.sample_ids == ()


def test_the_models_template_is_followed_set_by_name_or_by_object(conversations, make_tiny_model):
    model = make_tiny_model()
    pictured = [conversations[0], conversations[2]]
    before = rows_of(collate(pictured, model))
    for template in ("plain", get_template("plain")):
        model.set_inputs(template=template)
        assert rows_of(collate(pictured, model)) == expected_rows(pictured, model.input_spec, template="plain") != before


def test_the_models_image_fit_is_followed(colour_picture, make_tiny_model):
    model = make_tiny_model()
    wide = sample("<image>?", images=[colour_picture(1, (90, 30))])
    for fit in ("pad", "crop", "squash"):
        model.set_inputs(image_fit=fit)
        assert torch.equal(collate([wide], model).pixels[0], clip_preprocess(28, 14, fit)(wide.images[0]))


def test_tokenize_mode_of_the_model_is_followed(conversations, spec):
    llava = replace(spec, tokenize_mode="llava15")
    late = conversations[3]
    assert rows_of(collate([late], llava)) == expected_rows([late], llava) != rows_of(collate([late], spec))


def test_generation_prompt_waits_for_an_answer(spec, colour_picture):
    asked = sample("<image>\nWhat is it?", None, [colour_picture(1)])
    batch = collate([asked], spec, add_generation_prompt=True)
    ids = encode_chat(asked.messages, spec.template, spec.tokenizer, add_generation_prompt=True).ids
    assert batch.plan.total_rows == len(ids) + ROWS_OF_AN_IMAGE - 1 and batch.plan.target_counts == (0,)


def test_image_rows_see_their_last_row_where_the_model_says_so(conversations, spec):
    plan = collate(conversations[:1], replace(spec, attention="images")).plan
    image = (plan.source < 0).nonzero().flatten()
    assert plan.kv_end[image].tolist() == [int(image[-1]) + 1] * ROWS_OF_AN_IMAGE


@dataclass
class Policies:
    samples: list
    lengths: list
    limit: int


@pytest.fixture
def policies(conversations, spec):
    """All four conversations, and a limit that only the last, of two turns with an image in the second, exceeds."""
    lengths = [len(rows) for rows in expected_rows(conversations, spec)]
    limit = max(lengths) - 1
    assert [length > limit for length in lengths] == [False, False, False, True]
    return Policies(conversations, lengths, limit)


def test_too_long_is_an_error_that_names_the_sample(policies, spec):
    with pytest.raises(LmmError, match=rf"sample 'late' has {policies.lengths[3]} rows \(4 of images\), max_length is {policies.limit}"):
        collate(policies.samples, spec, max_length=policies.limit)


def test_dropped_samples_are_reported_and_the_others_unchanged(policies, spec):
    batch = collate(policies.samples, spec, max_length=policies.limit, truncate="drop")
    assert batch.plan.kept == (0, 1, 2) and batch.sample_ids == ("one", "text", "two")
    assert batch.plan.truncated == (0, 0, 0)
    assert rows_of(batch) == expected_rows(policies.samples[:3], spec)
    assert batch.pixels.shape[0] == 4 and batch.plan.image_rows.tolist()[-ROWS_OF_AN_IMAGE:] == [-1] * ROWS_OF_AN_IMAGE


def test_dropped_samples_change_no_loss(policies, tiny_model):
    with torch.no_grad():
        dropped = tiny_model.loss(collate(policies.samples, tiny_model, max_length=policies.limit, truncate="drop"))
        without = tiny_model.loss(collate(policies.samples[:3], tiny_model))
    assert abs(dropped - without) < 1e-5


def test_whole_turns_are_cut_and_counted(policies, spec):
    batch = collate(policies.samples, spec, max_length=policies.limit, truncate="turn")
    first_turn = replace(policies.samples[3], messages=policies.samples[3].messages[:2], images=[])
    assert rows_of(batch)[3] == expected_rows([first_turn], spec)[0]
    cut = policies.lengths[3] - len(rows_of(batch)[3])
    assert batch.plan.truncated == (0, 0, 0, cut) and cut > ROWS_OF_AN_IMAGE and batch.plan.kept == (0, 1, 2, 3)


def test_cut_right_is_counted(policies, spec):
    batch = collate(policies.samples, spec, max_length=policies.limit, truncate="right")
    assert batch.plan.truncated == (0, 0, 0, 1) and rows_of(batch)[3] == expected_rows(policies.samples, spec)[3][:-1]


def test_limit_is_the_models_unless_given(policies, spec):
    short = replace(spec, max_length=policies.limit)
    with pytest.raises(LmmError, match="sample 'late'"):
        collate(policies.samples, short)
    assert collate(policies.samples, short, max_length=policies.limit + 1).plan.kept == (0, 1, 2, 3)


@pytest.mark.parametrize("truncate", ["drop", "turn"])
def test_nothing_left_is_an_error(policies, spec, truncate):
    with pytest.raises(LmmError, match="all 4 samples of the batch were dropped as too long"):
        collate(policies.samples, spec, max_length=10, truncate=truncate)


BAD = {
    "missing image": (sample("<image>?", images=["/no/such.png"]), "/no/such.png"),
    "one image too few": (sample("<image> and <image>"), "marks 2 images in its text but has 0 images: write one <image> per image"),
    "role": (Sample([{"role": "robot", "content": "x"}]), "robot"),
    "no message": (Sample([]), ""),
    "no answer": (sample("Hello", None), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_sample_by_id_or_by_place(conversations, spec, name):
    bad, message = BAD[name]
    for own, shown in (("x-17", "'x-17'"), (0, "0"), (None, "4")):
        with pytest.raises(LmmError) as error:
            collate([*conversations, replace(bad, id=own)], spec)
        assert f"sample {shown}" in str(error.value) and message in str(error.value)


def test_an_image_without_its_mark_is_an_error(spec, colour_picture):
    with pytest.raises(LmmError, match="sample 'a' marks 0 images in its text but has 1 images"):
        collate([sample("Hello", images=[colour_picture(1)], id="a")], spec)


def test_as_many_marks_and_images_in_the_batch_but_not_in_each_sample_is_an_error(spec, colour_picture):
    pictures = [colour_picture(1), colour_picture(2)]
    with pytest.raises(LmmError, match="sample 'a' marks 1 images in its text but has 2 images"):
        collate([sample("<image>", images=pictures, id="a"), sample("<image>", id="b")], spec)


@pytest.mark.parametrize(
    "samples, message",
    [
        (["x"], "samples.0. is str 'x', expected lmmblocks.Sample"),
        ([sample("Hi"), {"messages": []}], "samples.1. is dict, expected lmmblocks.Sample"),
        (sample("Hi"), "takes a list of samples, found Sample; a single sample is given as .sample."),
        ("x", "takes a list of samples, found str 'x'$"),
        ({"messages": []}, "takes a list of samples, found dict$"),
        (3, "takes a list of samples, found int 3$"),
    ],
)
def test_what_is_no_list_of_samples_is_refused(spec, samples, message):
    with pytest.raises(LmmError, match=message):
        collate(samples, spec)


def test_what_is_no_model_is_refused(conversations):
    with pytest.raises(LmmError, match="a model or its input_spec, found str for the model"):
        collate(conversations, "llava15-7b")


def test_samples_may_come_from_a_generator_and_be_of_any_class(conversations, spec):
    @dataclass
    class Theirs:
        messages: list
        images: list
        id: str | None = None

    batch = collate((Theirs(entry.messages, entry.images, entry.id) for entry in conversations), spec)
    assert rows_of(batch) == rows_of(collate(conversations, spec))


def test_an_image_that_is_none_is_an_error_of_its_sample(spec):
    with pytest.raises(LmmError, match="sample 'a': an image is a path, a PIL image, .* found int"):
        collate([sample("<image>", images=[3], id="a")], spec)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"truncate": "trun"}, "truncate='trun' is none of .*did you mean 'turn'"),
        ({"max_length": 0}, "max_length must be at least 1, found 0"),
    ],
)
def test_wrong_options_are_refused(conversations, spec, options, message):
    with pytest.raises(LmmError, match=message):
        collate(conversations, spec, **options)


@pytest.mark.parametrize(
    "inputs, message",
    [({"template": "vicuna"}, "unknown template 'vicuna'"), ({"image_fit": "stretch"}, "fit must be one of pad, crop, squash, found 'stretch'")],
)
def test_wrong_inputs_of_the_model_are_refused_and_change_nothing(make_tiny_model, inputs, message):
    model = make_tiny_model()
    before = model.template, model.encoder.preprocess, model.config
    with pytest.raises(LmmError, match=message):
        model.set_inputs(**{"template": "plain", "image_fit": "crop", **inputs})
    assert (model.template, model.encoder.preprocess, model.config) == before
