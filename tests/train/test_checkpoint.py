"""Checkpoints are whole or absent, hold every bit, and refuse a run they don't belong to."""

import copy
import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
import torch

from lmmblocks.spec import LmmError
from lmmblocks.train import checkpoint as checkpoint_module
from lmmblocks.train.checkpoint import (
    CheckpointStore,
    load_checkpoint,
    random_state,
    set_random_state,
    verify_checkpoint,
)
from lmmblocks.train.fingerprint import fingerprint, refuse_difference
from lmmblocks.train.micro_batches import step_input
from lmmblocks.train.optimizer import build_optimizer, prepare_parts
from lmmblocks.train.step import Stepper

NOTHING = {"fingerprint": {}, "losses": "step\n", "counts": {}}


@pytest.fixture
def run(model, samples, stage):
    """A model that has taken a step, and its optimiser."""
    prepare_parts(model, stage)
    optimizer = build_optimizer(model, stage)
    Stepper(model, optimizer)(step_input(0, samples, model.input_spec, stage), 1.0)
    return model, optimizer


def test_save_and_load_give_every_bit_back(run, samples, stage, tmp_path):
    model, optimizer = run
    saved = CheckpointStore(tmp_path).save(1, model, optimizer, **NOTHING)
    weights = copy.deepcopy(model.state_dict())
    moments = copy.deepcopy(optimizer.state_dict())
    Stepper(model, optimizer)(step_input(1, samples, model.input_spec, stage), 0.5)
    assert not torch.equal(model.projector.linear_1.weight, weights["multi_modal_projector.linear_1.weight"])
    load_checkpoint(saved, model, optimizer)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    restored = optimizer.state_dict()
    assert restored["param_groups"] == moments["param_groups"]
    for index, state in moments["state"].items():
        assert all(torch.equal(restored["state"][index][key], value) for key, value in state.items())


def test_only_trained_parts_are_stored_under_the_names_of_the_state_dict(model, stage, tmp_path):
    from safetensors import safe_open

    stage = dataclasses.replace(stage, train={"projector": 1e-3})
    prepare_parts(model, stage)
    saved = CheckpointStore(tmp_path).save(1, model, build_optimizer(model, stage), **NOTHING)
    with safe_open(saved.path / "trainable.safetensors", "pt") as file:
        assert set(file.keys()) == {name for name in model.state_dict() if name.startswith("multi_modal_projector.")}


def test_random_generators_continue_where_they_were():
    state = random_state()
    drawn = [
        random.random(),
        np.random.rand(3).tolist(),
        torch.rand(3).tolist(),
        random.gauss(0, 1),
        np.random.randn(),
    ]
    set_random_state(state)
    assert drawn == [
        random.random(),
        np.random.rand(3).tolist(),
        torch.rand(3).tolist(),
        random.gauss(0, 1),
        np.random.randn(),
    ]


def test_newest_is_found_by_content_and_only_as_many_as_wanted_stay(run, tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for step in (1, 2, 10):
        store.save(step, *run, **NOTHING)
    assert sorted(path.name for path in store.folder.iterdir()) == ["step-00000002", "step-00000010"]
    (store.folder / "step-00000010").rename(store.folder / "a-name-of-my-own")
    assert store.latest().step == 10


@pytest.mark.parametrize("damage", ["no state", "broken state", "missing file", "short file", "still writing"])
def test_incomplete_folders_are_ignored_and_removed(run, tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save(1, *run, **NOTHING)
    broken = store.save(2, *run, **NOTHING).path
    if damage == "no state":
        (broken / "state.json").unlink()
    elif damage == "broken state":
        (broken / "state.json").write_text('{"step": 2, "fil')
    elif damage == "missing file":
        (broken / "optimizer.pt").unlink()
    elif damage == "short file":
        data = (broken / "trainable.safetensors").read_bytes()
        (broken / "trainable.safetensors").write_bytes(data[:-1])
    else:
        broken = broken.rename(tmp_path / ".writing-step-00000002")
    own = tmp_path / "notes"
    own.mkdir()
    assert store.latest().step == 1
    assert store.remove_incomplete() == [broken]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-00000001"]


def test_a_disk_that_refuses_leaves_earlier_checkpoints_and_one_clear_line(run, tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(1, *run, **NOTHING)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module.os, "fsync", full)
    with pytest.raises(LmmError, match="can't write the checkpoint .*No space left on device.*make room"):
        store.save(2, *run, **NOTHING)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_disk_that_gives_back_something_else_is_noticed(run, tmp_path):
    model, optimizer = run
    saved = CheckpointStore(tmp_path).save(1, model, optimizer, **NOTHING)
    verify_checkpoint(saved, model, optimizer)
    file = saved.path / "trainable.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(LmmError, match="reads back differently"):
        verify_checkpoint(saved, model, optimizer)


def test_a_checkpoint_of_another_shape_is_refused_by_name(run, tmp_path):
    model, optimizer = run
    saved = CheckpointStore(tmp_path).save(1, model, optimizer, **NOTHING)
    model.multi_modal_projector.linear_2 = torch.nn.Linear(32, 16)
    with pytest.raises(LmmError, match=r"linear_2\.weight has shape \(32, 32\), the model \(16, 32\)"):
        load_checkpoint(saved, model, optimizer)


def test_fingerprints_tell_what_differs_and_only_what_matters(model, samples, stage):
    stage = dataclasses.replace(stage, train={"projector": 1e-3})
    prepare_parts(model, stage)
    before = json.loads(json.dumps(fingerprint(model, stage, samples)))
    same = dataclasses.replace(stage, log_every=7, workers=3, checkpoint_every_steps=9, name="other")
    refuse_difference(before, fingerprint(model, same, samples), "here")

    with torch.no_grad():
        model.projector.linear_1.weight += 1  # trained: the checkpoint's own is what counts
    refuse_difference(before, fingerprint(model, stage, samples), "here")
    with torch.no_grad():
        model.decoder.lm_head.weight[0, 0] += 1e-6
    changed = dataclasses.replace(stage, batch_size=5, seed=1)
    with pytest.raises(LmmError) as error:
        refuse_difference(before, fingerprint(model, changed, samples[1:]), "here")
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[1:-1]] == [
        "- data.hash",
        "- data.samples",
        "- frozen weights.decoder",
        "- stage.batch_size",
        "- stage.seed",
    ]
    assert "stage.batch_size: the checkpoint has 4, this run 5" in str(error.value)


def test_data_moved_to_another_folder_is_the_same_data(model, samples, stage, tmp_path):
    samples[0].images[0].save(tmp_path / "a.png")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    shutil.copy(tmp_path / "a.png", moved)
    first = [dataclasses.replace(samples[0], images=[tmp_path / "a.png"])]
    second = [dataclasses.replace(samples[0], images=[str(moved / "a.png")])]
    assert fingerprint(model, stage, first) == fingerprint(model, stage, second)
    third = [dataclasses.replace(samples[0], messages=samples[1].messages)]
    assert fingerprint(model, stage, first)["data"] != fingerprint(model, stage, third)["data"]
