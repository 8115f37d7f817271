"""A stage refuses what makes no sense, all at once, and survives a round trip; the presets are LLaVA-1.5's scripts."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmmblocks.spec import LmmError
from lmmblocks.train.stage import STAGES, Stage, stage1, stage2


def test_all_mistakes_are_reported_in_one_message():
    with pytest.raises(LmmError) as error:
        Stage(
            name="x",
            train={"projecter": 1e-3, "decoder": -1.0},
            batch_size="16",
            sampler="pack",
            betas=[0.9, 1.0],
            warmup_ratio=1.5,
            clip_norm=0,
            max_length=0,
        )
    message = str(error.value)
    for part in (
        "'projecter'; did you mean 'projector'?",
        "learning rate of 'decoder' must be a number above 0, found -1.0",
        "batch_size must be a whole number above 0, found '16'",
        "sampler must be one of packed, modality_length_grouped, found 'pack'",
        "betas must be two numbers from 0 to below 1",
        "warmup_ratio must be a number from 0 to 1, found 1.5",
        "clip_norm must be a number above 0 or null, found 0",
        "max_length must be a whole number above 0 or null, found 0",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"name": "x", "train": {"projector": 1.0}, "batchsize": 4},
            "'batchsize'; did you mean 'batch_size'?",
        ),
        ({"name": "x", "train": {}, "batch_size": 4}, "train must map parts to learning rates"),
        ({"name": "x", "train": ["projector"], "batch_size": 4}, "train must map parts to learning rates"),
        ({"train": {"projector": 1.0}}, "missing keys name, batch_size"),
        (
            {"name": "x", "train": {"projector": float("nan")}, "batch_size": 4},
            "must be a number above 0, found nan",
        ),
        (
            {"name": "x", "train": {"projector": True}, "batch_size": 4},
            "must be a number above 0, found True",
        ),
    ],
)
def test_unknown_missing_and_malformed_keys_are_named(values, expected):
    with pytest.raises(LmmError, match=None) as error:
        Stage.from_dict(values)
    assert expected in str(error.value)


def test_settings_that_exclude_each_other_say_so():
    with pytest.raises(LmmError, match="llava15_compat takes means over micro_batch_samples"):
        stage2(llava15_compat=True)
    with pytest.raises(LmmError, match="make the one a multiple of the other"):
        stage2(sampler="modality_length_grouped", batch_size=10, micro_batch_samples=4)


def test_broken_json_names_line_and_column():
    with pytest.raises(LmmError, match="line 2, column 3"):
        Stage.from_json('{"name": "x",\n  oops}')
    with pytest.raises(LmmError, match="must be a JSON object, found list"):
        Stage.from_json("[]")


@given(
    st.builds(
        Stage,
        name=st.text(min_size=1),
        train=st.dictionaries(st.sampled_from(["encoder", "projector", "decoder"]), st.floats(1e-8, 1.0), min_size=1),
        batch_size=st.integers(1, 10**6),
        max_steps=st.none() | st.integers(1, 10**6),
        betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
        clip_norm=st.none() | st.floats(1e-3, 10),
        truncate=st.sampled_from(["error", "drop", "turn", "right"]),
    )
)
def test_json_round_trip_gives_an_equal_stage(stage):
    assert Stage.from_json(json.dumps(stage.to_dict())) == stage


def test_presets_are_the_scripts_of_llava15():
    first, second = stage1(), stage2()
    assert (first.train, first.batch_size, first.template, first.image_fit) == (
        {"projector": 1e-3},
        256,
        "plain",
        "crop",
    )
    assert (second.train, second.batch_size) == ({"projector": 2e-5, "decoder": 2e-5}, 128)
    assert (second.template, second.image_fit) == ("vicuna_v1", "pad")
    for stage in (first, second):
        assert (stage.warmup_ratio, stage.schedule, stage.weight_decay, stage.clip_norm) == (
            0.03,
            "cosine",
            0.0,
            None,
        )
        assert (stage.betas, stage.eps, stage.epochs, stage.seed) == ((0.9, 0.999), 1e-8, 1, 42)
    assert list(STAGES) == [first.name, second.name]
    assert stage2(batch_size=8, train={"decoder": 1e-4}).train == {"decoder": 1e-4}


def test_a_stage_keeps_its_own_copy_of_the_learning_rates():
    rates = {"projector": 1e-3}
    stage = Stage(name="x", train=rates, batch_size=1)
    rates["projector"] = 5.0
    assert stage.train == {"projector": 1e-3}
