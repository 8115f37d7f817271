"""How samples are cut and packed changes nothing; what isn't finite changes no weight and is named."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lmmblocks as lb
from lmmblocks.train.blame import cause
from lmmblocks.train.micro_batches import step_input
from lmmblocks.train.optimizer import build_optimizer, prepare_parts
from lmmblocks.train.stage import Stage
from lmmblocks.train.step import Stepper


def gradients(model, samples, stage):
    """Return loss and gradients of one step, cut as the stage says."""
    prepare_parts(model, stage)
    stepper = Stepper(model, build_optimizer(model, stage))
    loss = stepper.backward(step_input(0, samples, model.input_spec, stage))
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    stepper.optimizer.zero_grad(set_to_none=True)
    return loss.item(), found


def assert_same(found, expected, tolerance=1e-6):
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    errors = {name: (found[1][name] - grad).abs().max().item() for name, grad in expected[1].items()}
    assert max(errors.values()) <= tolerance, max(errors.items(), key=lambda entry: entry[1])


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 400), group=st.none() | st.integers(1, 12))
def test_accumulated_gradients_equal_those_of_one_batch(model_and_samples, rows, group):
    model, samples = copy.deepcopy(model_and_samples[0]), model_and_samples[1]
    every = Stage(
        name="x",
        train={"encoder": 1.0, "projector": 1.0, "decoder": 1.0},
        batch_size=12,
        micro_batch_rows=10**6,
    )
    whole = gradients(model, samples, every)
    cut = dataclasses.replace(every, micro_batch_rows=rows, micro_batch_samples=group)
    assert_same(gradients(model, samples, cut), whole)


def test_packed_loss_equals_unpacked_and_single_sample_losses(model, samples, stage):
    packed = lb.collate(samples, model)
    losses = [model.loss(lb.collate([sample], model), reduction="none") for sample in samples]
    each = torch.cat(losses)
    torch.testing.assert_close(model.loss(packed, reduction="none"), each, atol=1e-5, rtol=0)
    loss, _ = gradients(model, samples, stage)
    assert loss == pytest.approx(each.mean().item(), abs=1e-6)


def test_token_weighted_mean_and_llavas_mean_of_means_are_what_a_hand_computes(model, samples, stage):
    with torch.no_grad():
        model.decoder.lm_head.weight *= 20  # losses that differ from token to token
    each = [model.loss(lb.collate([sample], model), reduction="none") for sample in samples]
    groups = [torch.cat(each[i : i + 4]) for i in range(0, 12, 4)]
    by_token, by_group = (
        torch.cat(groups).mean().item(),
        torch.stack([g.mean() for g in groups]).mean().item(),
    )
    assert abs(by_token - by_group) > 1e-3
    assert gradients(model, samples, stage)[0] == pytest.approx(by_token, abs=1e-5)
    for rows in (60, 10**6):  # a group that needs several micro-batches is still one group
        compat = dataclasses.replace(stage, llava15_compat=True, micro_batch_samples=4, micro_batch_rows=rows)
        assert gradients(model, samples, compat)[0] == pytest.approx(by_group, abs=1e-5)


def test_a_step_is_adamws_on_the_mean_loss(model, samples, stage):
    """One step of ours against torch's own AdamW, unfused, on the whole batch."""
    twin = copy.deepcopy(model)
    for each in (model, twin):
        prepare_parts(each, stage)
    stepper = Stepper(model, build_optimizer(model, stage), clip_norm=0.5)
    reference = torch.optim.AdamW(
        [{"params": g["params"], "lr": g["lr"] * 0.25, "weight_decay": g["weight_decay"]} for g in build_optimizer(twin, stage).param_groups],
        fused=False,
    )
    for _ in range(3):
        outcome = stepper(step_input(0, samples, model.input_spec, stage), 0.25)
        reference.zero_grad()
        loss = twin.loss(lb.collate(samples, twin))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        reference.step()
        assert outcome.loss.item() == pytest.approx(loss.item(), abs=1e-5)
        assert outcome.grad_norm.item() == pytest.approx(norm.item(), rel=1e-4)
    moved = (p - q for p, q in zip(model.parameters(), twin.parameters()))
    assert max(d.abs().max().item() for d in moved) < 1e-5


class Poisoned:
    """Preprocessing that gives NaN for pictures 13 px wide."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def batch(self, images):
        pixels, grids = self.inner.batch(images)
        for index, image in enumerate(images):
            if image.width == 13:
                pixels[index, 0, 0, 0] = float("nan")
        return pixels, grids


@pytest.fixture
def poisoned_samples(samples):
    samples[5] = dataclasses.replace(samples[5], images=[samples[5].images[0].resize((13, 30))])
    return samples


def test_a_non_finite_step_changes_nothing_and_neither_does_any_later_one(model, poisoned_samples, stage):
    model.encoder.preprocess = Poisoned(model.encoder.preprocess)
    prepare_parts(model, stage)
    stepper = Stepper(model, build_optimizer(model, stage))
    fine = [step_input(i, poisoned_samples[6:9], model.input_spec, stage) for i in range(2)]
    stepper(fine[0], 1.0)
    weights = [p.clone() for p in model.parameters()]
    moments = copy.deepcopy(stepper.optimizer.state_dict()["state"])
    outcome = stepper(step_input(1, poisoned_samples[4:7], model.input_spec, stage), 1.0)
    assert not torch.isfinite(outcome.loss)
    assert torch.isfinite(stepper(fine[1], 1.0).loss)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights))
    for index, state in stepper.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][key]) for key, value in state.items())


def test_the_sample_that_is_not_finite_is_found_among_its_step(model, poisoned_samples, stage):
    model.encoder.preprocess = Poisoned(model.encoder.preprocess)
    prepare_parts(model, stage)
    stepper = Stepper(model, build_optimizer(model, stage))
    found = cause(stepper, model.input_spec, stage, poisoned_samples, [])
    assert found == "Samples that are not finite on their own: 's5' (their pixels are not): mend or remove them"
    assert all(p.grad is None for p in model.parameters())


def test_text_only_micro_batches_and_steps_train_what_they_reach(model, samples, stage):
    text = [sample for sample in samples if not sample.images]
    only_projector = dataclasses.replace(stage, train={"projector": 1e-2})
    prepare_parts(model, only_projector)
    stepper = Stepper(model, build_optimizer(model, only_projector))
    before = model.projector.linear_1.weight.clone()
    stepper(step_input(0, text, model.input_spec, only_projector), 1.0)
    assert torch.equal(model.projector.linear_1.weight, before)
    stepper(step_input(1, samples, model.input_spec, only_projector), 1.0)
    moved = model.projector.linear_1.weight.clone()
    assert not torch.equal(moved, before)
    moment = stepper.optimizer.state[model.projector.linear_1.weight]["exp_avg"].clone()
    stepper(step_input(2, text, model.input_spec, only_projector), 1.0)
    after = stepper.optimizer.state[model.projector.linear_1.weight]["exp_avg"]
    torch.testing.assert_close(after, moment * 0.9)  # a gradient of zero, not none: the moments decay
    assert not torch.equal(model.projector.linear_1.weight, moved)


def test_micro_batches_side_by_side_give_the_gradients_of_one_after_the_other_and_the_same_bits_every_time(model, samples, stage):
    stage = dataclasses.replace(stage, micro_batch_samples=2)
    prepare_parts(model, stage)
    inputs = step_input(0, samples, model.input_spec, stage)
    assert len(inputs.batches) > 3

    def found(threads):
        stepper = Stepper(model, build_optimizer(model, stage), threads=threads)
        loss = stepper.backward(inputs)
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        stepper.optimizer.zero_grad(set_to_none=True)
        return loss, grads

    expected, first = found(1), found(3)
    assert_same((first[0].item(), first[1]), (expected[0].item(), expected[1]))
    for _ in range(5):
        again = found(3)
        assert torch.equal(again[0], first[0]) and all(torch.equal(grad, first[1][name]) for name, grad in again[1].items())


def test_text_only_micro_batches_side_by_side_reach_no_projector(model, samples, stage):
    text = [sample for sample in samples if not sample.images]
    only_projector = dataclasses.replace(stage, train={"projector": 1e-2}, micro_batch_samples=1)
    prepare_parts(model, only_projector)
    stepper = Stepper(model, build_optimizer(model, only_projector), threads=2)
    assert torch.isfinite(stepper.backward(step_input(0, [*text, *text], model.input_spec, only_projector)))
    assert all(p.grad is None for p in model.parameters())


def test_threads_of_a_run_are_given_back(model, samples, stage, tmp_path):
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(before + 1)
    several = dataclasses.replace(stage, micro_batch_samples=2, micro_batch_threads=2, max_steps=2, log_every=1)
    lb.train.train(model, several, samples, tmp_path, on_step=lambda row: seen.append(torch.get_num_threads()))
    found = torch.get_num_threads()
    torch.set_num_threads(before)
    assert seen == [1, 1] and found == before + 1


def test_bf16_autocast_gives_nearly_the_same_loss(model, samples, stage):
    prepare_parts(model, stage)
    inputs = step_input(0, samples, model.input_spec, stage)
    exact = Stepper(model, build_optimizer(model, stage)).backward(inputs)
    half = Stepper(model, build_optimizer(model, stage), bf16=True).backward(inputs)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(exact.item(), rel=5e-3) and half.item() != exact.item()
