"""What a stage trains: LLaVA's groups, and nothing of the frozen parts."""

import pytest
import torch

import lmmblocks as lb
from lmmblocks.spec import LmmError
from lmmblocks.train.optimizer import build_optimizer, parameter_groups, prepare_parts, trainable_table
from lmmblocks.train.stage import Stage


def llava_groups(model, stage):
    """The rule of ``llava_trainer.py:150-228``: decay = not in a norm and no "bias" in the name; split by part."""
    from transformers.trainer_pt_utils import get_parameter_names

    norms = {type(module) for module in model.modules() if "Norm" in type(module).__name__}
    decaying = {name for name in get_parameter_names(model, list(norms)) if "bias" not in name}
    groups = {}
    for name, _ in model.named_parameters():
        part = {"vision_tower": "encoder", "multi_modal_projector": "projector", "language_model": "decoder"}[name.split(".")[0]]
        if part in stage.train:
            key = (part, stage.weight_decay if name in decaying else 0.0, stage.train[part])
            groups.setdefault(key, set()).add(name)
    return groups


@pytest.mark.parametrize("train", [{"projector": 1e-3}, {"projector": 1e-3, "decoder": 2e-5}, {"encoder": 1e-6, "decoder": 1.0}])
def test_groups_are_llavas(model, train):
    stage = Stage(name="x", train=train, batch_size=1, weight_decay=0.1)
    prepare_parts(model, stage)
    found = {(g["part"], g["weight_decay"], g["lr"]): set(g["names"]) for g in parameter_groups(model, stage)}
    assert found == llava_groups(model, stage)
    parameters = dict(model.named_parameters())
    for group in parameter_groups(model, stage):
        assert all(parameters[name] is p for name, p in zip(group["names"], group["params"]))


def test_frozen_parts_have_no_gradient_and_no_state(model, samples):
    stage = Stage(name="x", train={"projector": 1e-3}, batch_size=1)
    prepare_parts(model, stage)
    optimizer = build_optimizer(model, stage)
    model.loss(lb.collate(samples, model)).backward()
    optimizer.step()
    trained = {id(p) for p in model.projector.parameters()}
    assert {id(p) for p in optimizer.state} == trained
    assert {id(p) for p in model.parameters() if p.grad is not None} == trained
    assert [part.training for part in model.parts.values()] == [False, True, False]


def test_naming_the_encoder_thaws_it(model, samples):
    assert model.encoder.frozen
    prepare_parts(model, Stage(name="x", train={"encoder": 1e-3}, batch_size=1))
    assert not model.encoder.frozen
    model.loss(lb.collate(samples, model)).backward()
    assert model.encoder.vision_model.embeddings.patch_embedding.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.decoder.parameters())


def test_a_shared_head_is_trained_once(model):
    model.decoder.lm_head.weight = model.decoder.model.embed_tokens.weight
    stage = Stage(name="x", train={"decoder": 1e-3}, batch_size=1)
    prepare_parts(model, stage)
    parameters = [id(p) for group in parameter_groups(model, stage) for p in group["params"]]
    assert len(parameters) == len(set(parameters))


def test_a_parameter_that_two_parts_share_is_trained_once(model):
    model.projector.borrowed = model.decoder.model.norm.weight
    stage = Stage(name="x", train={"projector": 1e-3, "decoder": 1e-3}, batch_size=1)
    prepare_parts(model, stage)
    parameters = [id(p) for group in parameter_groups(model, stage) for p in group["params"]]
    assert len(parameters) == len(set(parameters))


@pytest.mark.parametrize(("bf16", "expected"), [(False, torch.float32), (True, torch.bfloat16)])
def test_trained_weights_are_fp32_and_frozen_ones_keep_bf16_only_in_a_bf16_run(model, bf16, expected):
    model.to(torch.bfloat16)
    prepare_parts(model, Stage(name="x", train={"projector": 1e-3}, batch_size=1), bf16=bf16)
    assert {p.dtype for p in model.projector.parameters()} == {torch.float32}
    assert {p.dtype for p in model.decoder.parameters()} == {expected}


def test_a_part_without_parameters_is_refused(model):
    model.multi_modal_projector = torch.nn.Identity()
    with pytest.raises(LmmError, match="part 'projector' has no parameters: change 'train'"):
        prepare_parts(model, Stage(name="x", train={"projector": 1e-3}, batch_size=1))


def test_the_table_counts_what_is_trained(model):
    stage = Stage(name="x", train={"projector": 1e-3}, batch_size=1)
    prepare_parts(model, stage)
    count = sum(p.numel() for p in model.projector.parameters())
    lines = trainable_table(model, stage).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["encoder", "projector", "decoder"]
    assert lines[2].split() == ["projector", f"{count:,}", f"{count:,}", "0.001"]
    assert lines[1].split()[2:] == ["0", "frozen"]
    assert trainable_table(model).splitlines()[2].split() == ["projector", f"{count:,}", f"{count:,}"]
