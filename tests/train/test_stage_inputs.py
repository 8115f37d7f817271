"""A model was trained, is saved and asks with one template and one way to see pictures: those its last stage set, or its own."""

import dataclasses
import io
import json
import sys

import pytest
import torch
from PIL import Image, ImageOps

import lmmblocks as lb
from lmmblocks.chat import encode_chat, get_template
from lmmblocks.images.fit import reading_of, with_choices
from lmmblocks.images.fused import FusedPreprocess
from lmmblocks.images.preprocess import clip_preprocess
from lmmblocks.images.tiles import TilePreprocess
from lmmblocks.spec import LmmError
from lmmblocks.train import stage1, stage2, train
from lmmblocks.train.stage_inputs import set_stage_inputs

TEMPLATES = ("plain", "vicuna_v1", "llava_v1", "v1_mmtag")
FITS = ("pad", "crop", "squash")
WIDE = Image.effect_noise((60, 25), 80).convert("RGB")
QUESTION = [{"role": "user", "content": "<image>\nWhat colour is it?"}]
ANSWERED = lb.Sample([*QUESTION, {"role": "assistant", "content": "It is red."}], [WIDE])


@pytest.fixture(autouse=True)
def without_slow_extras(monkeypatch):
    for name in ("torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def given(model, use):
    """Return the ids and the pixels of everything that a model reads while it is used."""
    read, encode, seen = model.read, model.encode_images, []

    def spy_encode(pixels, **options):
        seen.append(pixels.clone())
        return encode(pixels, **options)

    def spy_read(encoded, plan, **options):
        seen.append([row for row in plan.source.tolist() if row >= 0])
        return read(encoded, plan, **options)

    model.encode_images, model.read = spy_encode, spy_read
    try:
        use()
    finally:
        del model.encode_images, model.read
    return seen[1], seen[0]


def expected(messages, template, fit, tokenizer, asking):
    """The same, from the template and the fit by their names."""
    ids = encode_chat(messages, get_template(template), tokenizer, add_generation_prompt=asking).ids
    return [token for token in ids if token >= 0], clip_preprocess(28, 14, fit)(WIDE)[None]


def assert_reads(found, wanted):
    assert found[0] == wanted[0]
    assert torch.equal(found[1], wanted[1])


def trained(model, stage, out):
    stage = dataclasses.replace(stage, batch_size=1, max_steps=1, truncate="error")
    return given(model, lambda: train(model, stage, [ANSWERED], out))


def asked(model, picture=WIDE):
    return given(model, lambda: model.generate(QUESTION, images=picture, max_new_tokens=1))


@pytest.mark.parametrize("form", ["hf", "native", "llava"])
@pytest.mark.parametrize(
    ("template", "fit"),
    [(t, FITS[i % 3]) for i, t in enumerate(TEMPLATES)] + [("plain", "crop"), ("vicuna_v1", "crop")],
)
@pytest.mark.parametrize("make_stage", [stage1, stage2])
def test_trained_with_is_saved_with_and_asked_with(model, tmp_path, make_stage, template, fit, form):
    model.set_inputs(template="llava_v1", image_fit="squash")  # what it was built with is another matter
    found = trained(model, make_stage(template=template, image_fit=fit), tmp_path / "run")
    assert_reads(found, expected(ANSWERED.messages, template, fit, model.tokenizer, asking=False))
    wanted = expected(QUESTION, template, fit, model.tokenizer, asking=True)
    assert_reads(asked(model), wanted)
    told = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert (told["resolved"]["template"], told["resolved"]["image_fit"]) == (template, fit)
    assert (told["model"]["template"], told["model"]["preprocess"]["fit"]) == (template, fit)
    assert (model.config.template, model.config.preprocess.fit) == (template, fit)
    if (form, fit) == ("llava", "squash"):
        with pytest.raises(LmmError, match="no place for pictures that are made square by fit='squash'"):
            model.save(tmp_path / "model", format=form)
        return
    model.save(tmp_path / "model", format=form)
    assert_reads(asked(lb.load(tmp_path / "model")), wanted)


@pytest.mark.parametrize("own", [("llava_v1", "crop"), ("plain", "squash")])
def test_a_stage_that_names_none_trains_with_the_models_own(model, stage, tmp_path, own):
    model.set_inputs(template=own[0], image_fit=own[1])
    found = trained(model, stage, tmp_path / "run")
    assert_reads(found, expected(ANSWERED.messages, *own, model.tokenizer, asking=False))
    assert_reads(asked(model), expected(QUESTION, *own, model.tokenizer, asking=True))


def turned_icon():
    """A picture whose left half is see-through red, and which EXIF says to turn."""
    icon = Image.new("RGBA", (8, 4), (0, 0, 200, 255))
    icon.paste((250, 0, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    icon.save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def shown(exif, transparent):
    """The same as Pillow itself shows it."""
    icon = Image.open(io.BytesIO(turned_icon()))
    icon = ImageOps.exif_transpose(icon) if exif == "rotate" else icon
    if transparent != "drop":
        icon = Image.alpha_composite(Image.new("RGBA", icon.size, transparent), icon)
    return icon.convert("RGB")


@pytest.mark.parametrize("exif", ["ignore", "rotate"])
@pytest.mark.parametrize("transparent", ["drop", "black", "white"])
def test_pictures_are_read_in_training_in_answers_and_after_saving_as_the_stage_says(model, stage, tmp_path, exif, transparent):
    stage = dataclasses.replace(stage, batch_size=1, max_steps=1, exif=exif, transparent=transparent)
    wanted = model.encoder.preprocess.batch([shown(exif, transparent)])[0]
    model.set_inputs(exif="rotate", transparent="black")  # what it was built with is another matter
    data = [dataclasses.replace(ANSWERED, images=[turned_icon()])]
    assert torch.equal(given(model, lambda: train(model, stage, data, tmp_path / "run"))[1], wanted)
    told = json.loads((tmp_path / "run" / "settings.json").read_text())
    for part in (told["stage"], told["resolved"], told["model"]["preprocess"]):
        assert (part["exif"], part["transparent"]) == (exif, transparent)
    model.save(tmp_path / "model", format="native")
    assert torch.equal(asked(model, turned_icon())[1], wanted)
    assert torch.equal(asked(lb.load(tmp_path / "model"), turned_icon())[1], wanted)


def test_tiles_and_several_towers_tell_how_their_pictures_are_read():
    square = clip_preprocess(28, 14)
    for preprocess in (square, TilePreprocess(square, ((28, 56),)), FusedPreprocess((square, square))):
        assert reading_of(preprocess) == {"exif": "ignore", "transparent": "drop"}
        way = {"exif": "rotate", "transparent": "white"}
        assert reading_of(with_choices(preprocess, **way)) == way


def test_each_stage_sets_its_own_and_the_last_one_stays(model, tmp_path):
    trained(model, stage1(), tmp_path / "one")
    assert_reads(asked(model), expected(QUESTION, "plain", "crop", model.tokenizer, asking=True))
    trained(model, stage2(), tmp_path / "two")
    assert_reads(asked(model), expected(QUESTION, "vicuna_v1", "pad", model.tokenizer, asking=True))


def test_a_conversation_after_stage_one_asks_as_it_was_trained(model, tmp_path):
    trained(model, stage1(), tmp_path / "run")
    chat = lb.generate.Conversation(model)
    found = given(model, lambda: chat.ask("What colour is it?", WIDE, max_new_tokens=1))
    assert_reads(found, expected(QUESTION, "plain", "crop", model.tokenizer, asking=True))


def state_of(model):
    """Everything that training changes before its first update."""
    return (
        (model.template, model.encoder.preprocess, model.config, model.encoder.frozen),
        [(name, module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.dtype, p.detach().clone().view(-1).tolist()) for name, p in model.named_parameters()],
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "vicuna"}, "template='vicuna', but unknown.*did you mean 'vicuna_v1'"),
        ({"template": "qwen2"}, "template='qwen2', but .*'<.im_start.>', which the tokenizer does not have"),
        ({"max_length": 5}, "max_length is 5"),
        ({"train": {"hooks": 1e-3}}, "no part 'hooks'"),
        ({"seed": 7}, "belongs to another run"),
    ],
)
def test_a_refused_training_changes_nothing(model, make_model, tokenizer, tmp_path, changes, message):
    other = make_model(tokenizer)
    trained(other, stage1(), tmp_path / "run")  # a checkpoint that the last case can't go on from
    out = tmp_path / ("run" if "seed" in changes else "new")
    model.set_inputs(template="llava_v1", image_fit="squash")
    model.to(torch.bfloat16)
    model.decoder.requires_grad_(False)
    before = state_of(model)
    settings = {"batch_size": 1, "max_steps": 1, **changes}
    with pytest.raises(LmmError, match=message):
        train(model, stage1(**settings), [ANSWERED], out)
    assert state_of(model) == before


def test_a_run_resumes_on_a_model_that_was_built_with_other_inputs(make_model, tokenizer, tmp_path):
    stage = stage1(batch_size=1, max_steps=2, checkpoint_every_steps=1)
    train(make_model(tokenizer), stage, [ANSWERED], tmp_path)
    fresh = make_model(tokenizer)
    assert fresh.template.name == "vicuna_v1"
    train(fresh, stage, [ANSWERED], tmp_path)
    assert fresh.template.name == "plain"


@pytest.mark.parametrize("change", [{"template": "llava_v1"}, {"image_fit": "squash"}, {"exif": "rotate"}, {"transparent": "white"}])
def test_a_run_isnt_resumed_with_other_inputs_of_the_model(make_model, tokenizer, stage, tmp_path, change):
    stage = dataclasses.replace(stage, batch_size=1, max_steps=1)
    train(make_model(tokenizer), stage, [ANSWERED], tmp_path)
    other = make_model(tokenizer)
    other.set_inputs(**change)
    with pytest.raises(LmmError, match=f"model.*{next(iter(change.values()))}"):
        train(other, stage, [ANSWERED], tmp_path)


def test_what_was_set_on_the_modules_by_hand_counts_as_well(make_model, tokenizer, stage, tmp_path):
    """A changed module tells the run, its folder and its checkpoint what it is now, whatever the config once said."""
    stage = dataclasses.replace(stage, batch_size=1, max_steps=1)
    model = make_model(tokenizer)
    model.encoder.preprocess = dataclasses.replace(model.encoder.preprocess, fit="crop")
    model.template = get_template("llava_v1")
    train(model, stage, [ANSWERED], tmp_path / "run")
    told = json.loads((tmp_path / "run" / "settings.json").read_text())["model"]
    assert (told["template"], told["preprocess"]["fit"]) == ("llava_v1", "crop")
    with pytest.raises(LmmError, match="model.preprocess.fit"):
        train(make_model(tokenizer), stage, [ANSWERED], tmp_path / "run")


def test_a_model_without_a_config_can_be_set_too(model):
    model.config = None
    set_stage_inputs(model, stage1())
    assert (model.template.name, model.encoder.preprocess.fit) == ("plain", "crop")
