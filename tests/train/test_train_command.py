"""``lmmblocks train``: from a saved model to a trained one; every mistake is one line and exit code 2."""

import json

import pytest

import lmmblocks as lb
from lmmblocks.cli import main
from lmmblocks.spec import LmmError
from lmmblocks.train.command import read_stage
from lmmblocks.train.stage import stage1, stage2


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
    return main(
        ["train", *(str(word) for name, value in options.items() for word in (f"--{name}", value)), *more]
    )


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
    stage = read_stage(
        "stage1", ["batch_size=32", "train.projector=5e-4", "template=vicuna_v1", "max_steps=null"]
    )
    assert stage == stage1(batch_size=32, train={"projector": 5e-4}, template="vicuna_v1")
    assert read_stage("stage2", ["train.encoder=1e-6"]).train == {
        "projector": 2e-5,
        "decoder": 2e-5,
        "encoder": 1e-6,
    }
    assert read_stage(str(folder / "stage.json"), ["seed=7"]).seed == 7


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("stage3", [], "unknown stage 'stage3'; did you mean"),
        ("stage1", ["batchsize=3"], "'batchsize'; did you mean 'batch_size'?"),
        ("stage1", ["batch_size=many"], "batch_size must be a whole number of at least 1, found 'many'"),
        ("stage1", ["batch_size"], "expected key=value"),
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
    ],
)
def test_mistakes_end_with_one_line_and_leave_no_model(folder, tmp_path, capsys, changes, more, expected):
    assert train_command(folder, tmp_path / "run", *more, **changes) == 2
    output = capsys.readouterr().err
    assert expected in output and output.startswith("error: ") and "Traceback" not in output
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "model-rehearsal").exists()


def test_an_output_folder_that_is_a_file_is_refused_before_anything_is_read(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert train_command(folder, tmp_path / "file") == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_model_of_blocks_that_the_format_cannot_hold_is_refused_before_training(
    folder, tmp_path, tokenizer, capsys
):
    model = lb.build(
        lb.load(folder / "model").config, projector="linear", weights="random", tokenizer=tokenizer
    )
    model.save(tmp_path / "linear", format="native")
    assert train_command(folder, tmp_path / "run", model=tmp_path / "linear") == 2
    assert "native" in capsys.readouterr().err
    assert not (tmp_path / "run" / "losses.csv").exists()
    assert train_command(folder, tmp_path / "run", model=tmp_path / "linear", format="native") == 0
