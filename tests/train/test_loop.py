"""A run learns, writes its log, curve and settings, counts what it left out, and stops at what isn't finite."""

import copy
import dataclasses
import json
import sys

import pytest
import torch

import lmmblocks as lb
from lmmblocks.compose.current_config import current_config
from lmmblocks.spec import LmmError
from lmmblocks.train import log as log_module
from lmmblocks.train import plot as plot_module
from lmmblocks.train import train
from lmmblocks.train.log import rows_from_csv, rows_to_csv
from lmmblocks.train.micro_batches import step_input
from lmmblocks.train.optimizer import build_optimizer, prepare_parts
from lmmblocks.train.order import StepOrder
from lmmblocks.train.schedule import lr_factor
from lmmblocks.train.stage import Stage
from lmmblocks.train.step import Stepper


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_and_samples):
    """A whole run, once for the tests that look at what it leaves; its stage, result, folder and model."""
    model, samples = copy.deepcopy(model_and_samples[0]), model_and_samples[1]
    stage = Stage(
        name="learn",
        train={"projector": 1e-2, "decoder": 1e-2},
        batch_size=4,
        epochs=8,
        micro_batch_rows=110,
        log_every=5,
        checkpoint_every_steps=10,
        weight_decay=0.01,
    )
    out = tmp_path_factory.mktemp("run")
    encoder = copy.deepcopy(model.encoder.state_dict())
    result = train(model, stage, samples, out)
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in model.encoder.state_dict().items())
    return stage, result, out, model, samples


def test_it_learns_and_leaves_the_frozen_part_alone(finished):
    _, result, _, _, _ = finished
    assert len(result.losses) == result.steps == 24
    assert result.losses[-1] < 0.6 * result.losses[0]


def test_the_loop_is_the_steps_one_by_one(finished, model_and_samples):
    """The same losses, to the last bit, from steps taken by hand."""
    stage, result, _, _, samples = finished
    model = copy.deepcopy(model_and_samples[0])
    prepare_parts(model, stage)
    stepper = Stepper(model, build_optimizer(model, stage))
    losses = []
    for step, indices in enumerate(StepOrder(samples, stage)):
        inputs = step_input(step, [samples[i] for i in indices], model.input_spec, stage)
        losses.append(stepper(inputs, lr_factor(step, 24)).loss.item())
    assert losses == result.losses


def test_losses_csv_has_one_row_per_step_with_every_bit(finished):
    stage, result, out, _, samples = finished
    rows = rows_from_csv((out / "losses.csv").read_text())
    assert [row.step for row in rows] == list(range(1, 25))
    assert [row.loss for row in rows] == result.losses
    assert [row.lr for row in rows] == [1e-2 * lr_factor(step, 24) for step in range(24)]
    assert {row.samples for row in rows} == {4}
    assert sum(row.supervised_tokens for row in rows) == result.totals.supervised_tokens
    assert all(row.tokens_per_s > 0 and row.grad_norm > 0 for row in rows)
    assert rows_to_csv(rows) == (out / "losses.csv").read_text()


def test_counts_and_shares_of_the_result(finished, model_and_samples):
    stage, result, _, _, samples = finished
    rows = lb.collate(samples, model_and_samples[0]).plan.total_rows
    assert result.tokens == stage.epochs * rows == result.totals.computed_rows
    assert result.padding_fraction == 0.0
    assert 0 <= result.data_wait_share < 1
    assert result.tokens_per_second == pytest.approx(result.tokens / result.totals.seconds)
    assert result.skipped == result.totals.truncated == result.totals.dropped == 0


def test_settings_curve_and_checkpoints_are_written(finished):
    stage, result, out, model, _ = finished
    settings = json.loads((out / "settings.json").read_text())
    assert settings["stage"] == stage.to_dict()
    assert settings["resolved"]["steps"] == 24 and settings["resolved"]["warmup_steps"] == 1
    assert settings["resolved"]["template"] == "vicuna_v1" and settings["resolved"]["max_length"] == 512
    assert settings["model"] == current_config(model).to_dict()  # what it is, defaults resolved
    assert settings["model"]["preprocess"]["fit"] == "pad" and settings["model"]["max_length"] == 512
    assert (out / "loss_curve.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000020", "step-00000024"]
    assert result.checkpoint.name == "step-00000024"


def test_tensorboard_has_every_step_once(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, result, out, _, _ = finished
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == list(range(1, 25))
    assert [event.value for event in scalars] == pytest.approx(result.losses)


def test_a_finished_run_is_not_trained_again(finished, model_and_samples):
    stage, result, out, model, samples = finished
    again = copy.deepcopy(model_and_samples[0])
    second = train(again, stage, samples, out)
    assert second.losses == result.losses and second.totals == result.totals
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), model.parameters()))
    with pytest.raises(LmmError, match="holds a checkpoint: resume from it, remove .* or choose another folder"):
        train(again, stage, samples, out, resume=False)
    with pytest.raises(LmmError, match="stage.batch_size: the checkpoint has 4, this run 6"):
        train(again, dataclasses.replace(stage, batch_size=6), samples, out)


def test_settings_and_the_table_of_parts_are_printed_once(model, samples, stage, tmp_path, capsys):
    train(model, dataclasses.replace(stage, max_steps=2), samples, tmp_path)
    printed = capsys.readouterr().out
    assert printed.count("learning rate\n") == 1
    assert "batch_size              4\n" in printed
    assert "12 steps" not in printed and "steps                   2\n" in printed


def test_what_was_cut_or_left_out_is_counted_and_said(model, samples, stage, tmp_path, capsys):
    samples[2] = dataclasses.replace(samples[2], images=["/nowhere/x.png"])
    stage = dataclasses.replace(stage, epochs=1, truncate="turn", max_length=50, bad_samples="skip")
    result = train(model, stage, samples, tmp_path)
    plan = lb.collate([s for s in samples if s.id != "s2"], model, truncate="turn", max_length=50).plan
    totals = result.totals
    assert totals.samples == len(plan.kept)
    assert totals.truncated == sum(1 for n in plan.truncated if n) > 0
    assert totals.skipped + totals.dropped == 12 - len(plan.kept) and totals.skipped >= 1
    printed = capsys.readouterr().out
    assert "skipped sample 's2': sample 's2': image /nowhere/x.png" in printed or "/nowhere/x.png" in printed
    assert f"{totals.truncated} truncated, {totals.dropped} dropped as too long" in printed


def test_a_step_without_any_target_changes_nothing_and_is_counted(model, samples, stage, tmp_path):
    empty = 5
    stage = dataclasses.replace(stage, batch_size=1, epochs=1, bad_samples="skip", warmup_ratio=0.0)
    (victim,) = StepOrder(samples, stage)[empty]
    samples[victim] = dataclasses.replace(samples[victim], images=["/nowhere/x.png"])
    weights = []

    def on_step(row):
        weights.append([p.clone() for p in model.parameters()])

    result = train(model, stage, samples, tmp_path, on_step=on_step)
    assert [loss is None for loss in result.losses] == [step == empty for step in range(12)]
    rows = rows_from_csv((tmp_path / "losses.csv").read_text())
    assert (rows[empty].loss, rows[empty].grad_norm) == (None, None) and [row.loss for row in rows] == result.losses
    assert "nan" not in (tmp_path / "losses.csv").read_text()
    assert result.totals.empty_steps == result.skipped == 1
    before = weights[empty - 1]
    assert all(torch.equal(p, q) for p, q in zip(weights[empty], before))


def test_data_without_anything_to_learn_is_an_error(model, samples, stage, tmp_path):
    with pytest.raises(LmmError, match="no sample of the data has anything to learn: .*12 without targets"):
        train(model, dataclasses.replace(stage, truncate="right", max_length=25), samples, tmp_path / "a")
    with pytest.raises(LmmError, match="12 skipped as unusable.*; such as: .*'plain'"):
        text = [dataclasses.replace(s, images=[], messages=[{**m, "content": "x"} for m in s.messages]) for s in samples]
        train(model, dataclasses.replace(stage, template="plain", bad_samples="skip"), text, tmp_path / "b")


@pytest.mark.parametrize("log_every", [1, 4])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_sample(model, samples, stage, tmp_path, log_every):
    stage = dataclasses.replace(stage, log_every=log_every, checkpoint_every_steps=2)
    inner = model.encoder.preprocess

    class Poisoned:
        patch_px = inner.patch_px

        def batch(self, images):
            pixels, grids = inner.batch(images)
            for index, image in enumerate(images):
                pixels[index] *= float("inf") if image.width == 13 else 1
            return pixels, grids

    model.encoder.preprocess = Poisoned()
    order = list(StepOrder(samples, stage))
    victim = next(i for i in order[2] if samples[i].images)
    samples[victim] = dataclasses.replace(samples[victim], images=[i.resize((13, 30)) for i in samples[victim].images])
    with pytest.raises(LmmError) as error:
        train(model, stage, samples, tmp_path)
    message = str(error.value)
    assert "stage 'test', step 3: loss nan" in message and "no update was made" in message
    assert f"not finite on their own: 's{victim}' (their pixels are not): mend or remove them" in message
    assert "step-00000002" in message
    assert [row.step for row in rows_from_csv((tmp_path / "losses.csv").read_text())] == [1, 2]


def test_without_tensorboard_and_matplotlib_it_says_so_once_and_goes_on(model, samples, stage, tmp_path, monkeypatch, caplog):
    for name in ("torch.utils.tensorboard", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with caplog.at_level("WARNING"):
        train(model, dataclasses.replace(stage, max_steps=2), samples, tmp_path)
    messages = [record.message for record in caplog.records if record.name in (log_module.__name__, plot_module.__name__)]
    assert [message.split(" is not installed")[0] for message in messages] == ["tensorboard", "matplotlib"]
    assert not (tmp_path / "loss_curve.png").exists() and (tmp_path / "losses.csv").exists()


def test_a_model_without_tokenizer_and_a_folder_that_is_a_file_are_refused(model, samples, stage, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LmmError, match="can't write to .*file.*choose another folder"):
        train(model, stage, samples, tmp_path / "file")
    model.tokenizer = None
    with pytest.raises(LmmError, match="the model has no tokenizer"):
        train(model, stage, samples, tmp_path / "out")
    assert not (tmp_path / "out").exists()
