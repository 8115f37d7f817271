"""A run that fails blames what is guilty: weights, data, precision or rates, each found out and none guessed."""

import dataclasses
import sys

import pytest
import torch
from PIL import Image

import lmmblocks as lb
from lmmblocks.compose.finite import broken_weights
from lmmblocks.spec import LmmError
from lmmblocks.train import train


@pytest.fixture(autouse=True)
def without_slow_extras(monkeypatch):
    for name in ("torch.utils.tensorboard", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def refusal(model, stage, samples, out, **changes):
    with pytest.raises(LmmError) as error:
        train(model, dataclasses.replace(stage, **changes), samples, out)
    return str(error.value)


@pytest.mark.parametrize("batch_size", [1, 4, 12])
@pytest.mark.parametrize("rate", [1e8, 1e20, 1e39])
def test_a_rate_that_is_too_high_is_blamed_and_no_sample(model, samples, stage, tmp_path, rate, batch_size):
    parts = {"projector": rate, "decoder": rate}
    message = refusal(model, stage, samples, tmp_path, train=parts, batch_size=batch_size, warmup_ratio=0.0, epochs=40)
    assert "No sample is to blame" in message and "mend or remove" not in message
    assert f"lower the learning rate (train.projector={rate:g}, train.decoder={rate:g})" in message


class Bright:
    """Preprocessing that gives pixels without end for pictures 13 px wide."""

    def __init__(self, inner):
        self.inner, self.patch_px = inner, inner.patch_px

    def batch(self, images):
        pixels, grids = self.inner.batch(images)
        for index, image in enumerate(images):
            pixels[index] *= 3e38 if image.width == 13 else 1
        return pixels, grids


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_a_sample_that_overflows_alone_is_blamed_whatever_is_beside_it(model, samples, stage, tmp_path, batch_size):
    model.encoder.preprocess = Bright(model.encoder.preprocess)
    samples[5] = dataclasses.replace(samples[5], images=[samples[5].images[0].resize((13, 30))])
    message = refusal(model, stage, samples, tmp_path, batch_size=batch_size)
    assert "Samples that are not finite on their own: 's5'" in message and "mend or remove" in message
    assert "learning rate" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["vision_tower.vision_model.embeddings.class_embedding", "language_model.lm_head.weight"])
def test_weights_that_came_broken_are_refused_before_any_step(model, samples, stage, tmp_path, name, value):
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] = value
    assert name in broken_weights(model)
    message = refusal(model, stage, samples, tmp_path / "run")
    assert "before any step the model's weights hold NaN or inf" in message and name in message and "sample" not in message
    assert not (tmp_path / "run").exists()


def test_finite_weights_that_overflow_are_blamed_for_the_first_step(model, samples, stage, tmp_path):
    with torch.no_grad():
        model.decoder.lm_head.weight.fill_(3e38)
    message = refusal(model, stage, samples, tmp_path)
    assert "No sample is to blame" in message and "no update was made yet" in message and "load or initialise others" in message


def test_healthy_weights_have_none_that_are_broken(model):
    assert broken_weights(model) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_answer_of_broken_weights_names_them(model, value):
    with torch.no_grad():
        model.decoder.lm_head.weight[3, 0] = value
    with pytest.raises(LmmError, match="logits are not finite.*hold NaN or inf: language_model.lm_head.weight"):
        model.generate("What colour is it?", images=Image.new("RGB", (9, 9)), max_new_tokens=2)


def test_an_answer_of_sound_weights_that_overflow_doesnt_call_them_broken(model):
    with torch.no_grad():
        model.decoder.lm_head.weight.fill_(3e38)
    with pytest.raises(LmmError, match="logits are not finite, and all weights are: .*float32 overflows") as error:
        model.generate("What colour is it?", max_new_tokens=2)
    assert "hold NaN" not in str(error.value)


def turns(question):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "It is red."}]


TEXT = [lb.Sample(turns("What colour is it?"), [], index) for index in range(4)]


@pytest.mark.parametrize("parts", [{"projector": 1e-3}, {"encoder": 1e-3}, {"encoder": 1e-3, "projector": 1e-3}])
def test_a_stage_that_only_pictures_reach_is_refused_data_without_pictures(model, stage, tmp_path, parts):
    message = refusal(model, stage, TEXT, tmp_path / "run", train=parts)
    assert f"trains {', '.join(parts)}, which only pictures reach, and no sample has one" in message
    assert not (tmp_path / "run").exists()


def test_a_part_that_stays_as_it_is_is_told_of_at_the_start(model, stage, tmp_path, capsys):
    before = model.projector.linear_1.weight.clone()
    train(model, dataclasses.replace(stage, max_steps=1), TEXT, tmp_path)
    printed = capsys.readouterr().out
    assert printed.index("nothing reaches encoder, projector") < printed.index("step 1/1")
    assert torch.equal(model.projector.linear_1.weight, before)


def test_one_picture_is_enough_for_no_warning(model, stage, samples, tmp_path, capsys):
    train(model, dataclasses.replace(stage, max_steps=1), [*TEXT, samples[0]], tmp_path)
    assert "nothing reaches" not in capsys.readouterr().out


def test_a_run_shorter_than_an_epoch_is_warned_that_it_learned_nothing(model, stage, samples, tmp_path, capsys):
    mostly_text = [*(dataclasses.replace(TEXT[0], id=f"text {i}") for i in range(40)), samples[0]]
    train(model, dataclasses.replace(stage, train={"projector": 1e-3}, max_steps=1, batch_size=1), mostly_text, tmp_path)
    assert "none of the 1 steps gave a gradient to any trained parameter (projector), so nothing was learned" in capsys.readouterr().out


def test_pictures_that_no_answer_follows_reach_nothing_and_the_run_says_so(model, stage, tmp_path):
    late = lb.Sample([*turns("What colour is it?"), *turns("<image>\nSure?")], [Image.new("RGB", (9, 9), "red")])
    length = int(lb.collate([late], model).plan.image_rows[-1]) + 2  # the picture stays, its answer is cut away
    changes = {"train": {"projector": 1e-3}, "batch_size": 1, "truncate": "right", "max_length": length}
    message = refusal(model, stage, [late] * 3, tmp_path, **changes)
    assert "no sample of an epoch gave a gradient to any trained parameter (projector)" in message
