"""``lmmblocks train``: from a saved model to a trained one; every mistake is one line and exit code 2."""

import argparse
import json
from dataclasses import fields

import pytest
import torch

import lmmblocks as lb
from lmmblocks.cli import main
from lmmblocks.cli.train import add_cli, read_stage
from lmmblocks.spec import LmmError
from lmmblocks.train.stage import Stage, stage1, stage2


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_and_samples):
    """A saved model, a LLaVA-format file with its pictures, and a stage of settings."""
    model, samples = model_and_samples
    root = tmp_path_factory.mktemp("cli")
    model.save(root / "model")
    (root / "images").mkdir()
    roles = {"user": "human", "assistant": "gpt"}
    records = []
    for sample in samples:
        names = [f"{sample.id}-{index}.png" for index in range(len(sample.images))]
        for name, image in zip(names, sample.images):
            image.save(root / "images" / name)
        turns = [{"from": roles[m["role"]], "value": m["content"]} for m in sample.messages]
        records.append({"id": sample.id, "conversations": turns, **({"image": names} if names else {})})
    (root / "data.json").write_text(json.dumps(records))
    stage = stage2(name="own", batch_size=4, max_steps=2, train={"projector": 1e-2}, warmup_ratio=0.0)
    (root / "stage.json").write_text(json.dumps(stage.to_dict()))
    return root


def train_command(folder, out, *more, **changes):
    options = {
        "model": folder / "model",
        "data": folder / "data.json",
        "images": folder / "images",
        "stage": folder / "stage.json",
    }
    options = {**options, "out": out, "device": "cpu", **changes}
    return main(["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value)), *more])


def test_it_trains_saves_resumes_and_the_result_loads(folder, tmp_path, capsys):
    assert train_command(folder, tmp_path / "run") == 0
    first = capsys.readouterr().out
    assert "2 steps" in first and "model saved in" in first
    before, after = lb.load(folder / "model"), lb.load(tmp_path / "run" / "model")
    assert not before.projector.linear_1.weight.equal(after.projector.linear_1.weight)
    assert before.decoder.lm_head.weight.equal(after.decoder.lm_head.weight)
    assert train_command(folder, tmp_path / "run") == 0
    assert "resumed from" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints",
        "loss_curve.png",
        "losses.csv",
        "model",
        "settings.json",
        "tensorboard",
    ]


def test_settings_on_the_command_line_change_the_stage(folder):
    stage = read_stage("stage1", ["batch_size=32", "train.projector=5e-4", "template=vicuna_v1", "max_steps=null"])
    assert stage == stage1(batch_size=32, train={"projector": 5e-4}, template="vicuna_v1")
    assert read_stage("stage2", ["train.encoder=1e-6"]).train == {
        "projector": 2e-5,
        "decoder": 2e-5,
        "encoder": 1e-6,
    }
    assert read_stage(str(folder / "stage.json"), ["seed=7"]).seed == 7
    assert read_stage("stage1", ["exif=rotate", "transparent=white"]) == stage1(exif="rotate", transparent="white")


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("stage3", [], "unknown stage 'stage3'; did you mean"),
        ("stage1", ["batchsize=3"], "'batchsize'; did you mean 'batch_size'?"),
        ("stage1", ["batch_size=many"], "batch_size must be a whole number above 0, found 'many'"),
        ("stage1", ["batch_size"], "expected key=value"),
        ("stage1", ["batch_size=2", "seed=1", "batch_size=4"], "'batch_size' is given twice, 'batch_size=2' and 'batch_size=4'"),
        ("stage1", ["train.projector=1", "train.projector=1"], "'train.projector' is given twice"),
        ("stage1", ["exif=turn"], "exif must be one of ignore, rotate or null, found 'turn'"),
        ("stage1", ["transparent=grey"], "transparent must be one of drop, black, white or null, found 'grey'"),
        ("stage1", ["train.projektor=1"], "'projektor'; did you mean 'projector'?"),
        ("stage1", ["train=5"], "train must map parts to learning rates"),
    ],
)
def test_mistakes_in_the_stage_are_named(name, settings, expected):
    with pytest.raises(LmmError) as error:
        read_stage(name, settings)
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("changes", "more", "expected"),
    [
        ({"model": "llava15-7bb"}, [], "unknown model 'llava15-7bb'; did you mean 'llava15-7b'?"),
        ({"model": "no/such/folder/here"}, [], "no/such/folder/here"),
        ({"data": "missing.json"}, [], "missing.json"),
        ({"images": "missing"}, [], "missing"),
        ({"stage": "stge1"}, [], "did you mean 'stage1'?"),
        ({"device": "abacus"}, [], "--device 'abacus' can't be used"),
        ({"format": "gguf"}, [], "unknown format 'gguf'"),
        ({"projector": "linear"}, [], "--projector swaps a part of a preset"),
        ({}, ["template=vicunna_v1"], "unknown template 'vicunna_v1'; did you mean 'vicuna_v1'?"),
        ({}, ["max_length=30", "truncate=error"], "max_length is 30"),
        ({}, ["precision=fp8"], "precision must be one of auto, fp32, bf16, found 'fp8'"),
        ({"model": "llava15-tiny"}, [], "model 'llava15-tiny' has no tokenizer, which turns the text into ids: give --tokenizer X"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_no_folder(folder, tmp_path, capsys, changes, more, expected):
    assert train_command(folder, tmp_path / "run", *more, **changes) == 2
    output = capsys.readouterr().err
    assert expected in output and output.startswith("error: ") and "Traceback" not in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [[], ["settings.json", "mine.txt"]])
def test_a_first_batch_that_fails_leaves_a_folder_as_it_was(folder, tmp_path, there):
    (tmp_path / "run").mkdir()
    for name in there:
        (tmp_path / "run" / name).write_text("before")
    assert train_command(folder, tmp_path / "run", "max_length=30", "truncate=error") == 2
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(there)


def test_folders_above_a_refused_run_go_too_but_not_those_that_were_there(folder, tmp_path):
    assert train_command(folder, tmp_path / "new" / "newer" / "run", "template=vicunna") == 2
    assert not list(tmp_path.iterdir())


def test_a_later_failure_keeps_the_checkpoint_and_the_log(folder, tmp_path, capsys):
    records = json.loads((folder / "data.json").read_text())
    short, long = records[0], json.loads(json.dumps(records[0]))
    long["conversations"][0]["value"] += " Really?" * 300
    (tmp_path / "data.json").write_text(json.dumps([short] * 4 + [long] * 4))
    for seed in range(8):  # until one begins with a short sample
        out, settings = tmp_path / f"run{seed}", [f"seed={seed}", "batch_size=1", "max_steps=8", "max_length=200", "truncate=error"]
        assert train_command(folder, out, *settings, data=tmp_path / "data.json") == 2
        if out.exists():
            break
    assert list((out / "checkpoints").iterdir()) and len((out / "losses.csv").read_text().splitlines()) > 1


def test_a_stage_file_that_is_broken_is_named(folder, tmp_path, capsys):
    (tmp_path / "bad.json").write_text('{"name": "x",\n oops}')
    assert train_command(folder, tmp_path / "run", stage=tmp_path / "bad.json") == 2
    assert f"error: {tmp_path / 'bad.json'}: stage is not JSON: line 2, column 2" in capsys.readouterr().err
    (tmp_path / "bad.json").write_text('{"name": "x"}')
    with pytest.raises(LmmError, match="bad.json: stage: missing keys train, batch_size"):
        read_stage(str(tmp_path / "bad.json"))


def test_frozen_parts_of_random_weights_are_warned_of(folder, tmp_path, tokenizer, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    new = {"model": "llava15-tiny", "tokenizer": tmp_path / "tokenizer", "format": "native"}

    def warnings(*settings, **changes):
        out = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert train_command(folder, out, *settings, "max_steps=1", "batch_size=1", **changes) == 0
        return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]

    encoder, decoder = warnings(**new)
    assert encoder.startswith("warning: the weights of the encoder are random and stage 'own' keeps them so: give --encoder X")
    assert "--decoder X" in decoder and decoder.endswith("train.decoder=1e-3")
    (projector,) = warnings('train={"encoder": 1e-3, "decoder": 1e-3}', **new)
    assert "the projector" in projector and "--model FOLDER" in projector
    assert warnings('train={"encoder": 1e-3, "decoder": 1e-3, "projector": 1e-3}', **new) == []
    assert warnings() == [], "a saved model has its weights"


def test_a_model_folder_without_a_tokenizer_says_what_to_copy(folder, tmp_path, capsys):
    lb.build(lb.load(folder / "model").config, weights="random").save(tmp_path / "bare", format="native")
    assert train_command(folder, tmp_path / "run", model=tmp_path / "bare") == 2
    said = capsys.readouterr().err
    assert "copy the language model's tokenizer files into its folder" in said and "build()" not in said


def test_records_that_cannot_be_used_name_the_setting_that_leaves_them_out(folder, tmp_path, capsys):
    (tmp_path / "data.json").write_text(json.dumps([*json.loads((folder / "data.json").read_text()), {"id": "bad"}]))
    assert train_command(folder, tmp_path / "run", data=tmp_path / "data.json") == 2
    assert "bad_samples=skip" in capsys.readouterr().err
    assert train_command(folder, tmp_path / "run", "bad_samples=skip", data=tmp_path / "data.json") == 0


@pytest.mark.parametrize("word", ["bf16", "bfloat16"])
def test_both_spellings_of_a_dtype_are_accepted(folder, tmp_path, word):
    assert train_command(folder, tmp_path / "run", "max_steps=1", dtype=word) == 0
    before, after = (lb.load(path).decoder.lm_head.weight for path in (folder / "model", tmp_path / "run" / "model"))
    assert after.float().equal(before.to(torch.bfloat16).float()) and not after.equal(before)


def test_help_lists_the_settings():
    parser = argparse.ArgumentParser()
    add_cli(parser)
    shown = parser.format_help().split()
    assert {f.name for f in fields(Stage)} - {"train"} <= {word.strip(",;") for word in shown}
    assert "train.PART" in shown


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_read(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert train_command(folder, tmp_path / "file") == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_output_folder_is_not_the_current_one(folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert train_command(folder, "") == 2
    assert "--out is empty: give a folder" in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())


def test_a_model_of_blocks_that_the_format_cannot_hold_is_refused_before_training(folder, tmp_path, tokenizer, capsys):
    model = lb.build(lb.load(folder / "model").config, projector="linear", weights="random", tokenizer=tokenizer)
    model.save(tmp_path / "linear", format="native")
    assert train_command(folder, tmp_path / "run", model=tmp_path / "linear") == 2
    assert "save with --format native" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train_command(folder, tmp_path / "run", model=tmp_path / "linear", format="native") == 0
