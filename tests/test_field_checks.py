"""Numbers of settings: numpy's and torch's scalars are Python's own, everything else is refused by name."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.config import Block
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.generate import Options
from lmmblocks.spec import LmmError
from lmmblocks.spec.fields import plain
from lmmblocks.train import Stage, stage1

WHOLE = (int, np.int8, np.int32, np.int64, np.uint16, lambda n: np.array(n), lambda n: torch.tensor(n))
REAL = (float, np.float32, np.float64, lambda x: np.array(x), lambda x: torch.tensor(x, dtype=torch.float64))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 100), st.floats(1e-6, 1), st.sampled_from(WHOLE), st.sampled_from(REAL))
def test_a_scalar_of_any_library_is_the_number_it_holds(count, rate, whole, real):
    stage = Stage(
        name="s", train={"projector": real(rate)}, batch_size=whole(count), epochs=whole(2), eps=real(rate), betas=(real(rate / 2), real(0.5)),
        max_length=whole(count),
    )  # fmt: skip
    expected = float(real(rate))
    assert (stage.batch_size, stage.train["projector"], stage.eps, stage.max_length) == (
        count,
        expected,
        expected,
        count,
    )
    assert Stage.from_json(json.dumps(stage.to_dict())) == stage
    options = Options(
        max_new_tokens=whole(count),
        temperature=real(rate),
        top_k=whole(count),
        top_p=real(rate),
        seed=whole(count),
    )
    assert {type(getattr(options, f.name)) for f in dataclasses.fields(options)} == {int, float, tuple}
    assert (options.max_new_tokens, options.temperature, options.top_k) == (count, expected, count)
    config = TransformerConfig(dim=whole(64), heads=whole(4), kv_heads=2, rope_theta=real(rate))
    assert json.dumps(dataclasses.asdict(config)) and config.head_width == 16
    assert json.loads(json.dumps(dict(Block("mlp", {"depth": whole(2)}).options))) == {"depth": 2}


WRONG_WHOLE = (
    "8",
    "1e3",
    True,
    np.bool_(True),
    8.0,
    np.float64(8),
    0,
    -1,
    float("nan"),
    [8],
    np.array([8]),
    torch.tensor([8]),
    print,
)
WRONG_REAL = (
    "1e-3",
    True,
    np.bool_(True),
    float("inf"),
    np.float32("nan"),
    -1.0,
    [1e-3],
    np.array([1e-3]),
    1j,
    torch.tensor(float("nan")),
)


@pytest.mark.parametrize("value", WRONG_WHOLE, ids=repr)
@pytest.mark.parametrize(
    "name", ["batch_size", "epochs", "max_length", "micro_batch_rows", "log_every", "keep_checkpoints"]
)
def test_what_is_no_whole_number_is_refused_by_name(name, value):
    with pytest.raises(LmmError, match=f"{name} must be a whole number"):
        stage1(**{name: value})


@pytest.mark.parametrize("value", WRONG_REAL, ids=repr)
def test_what_is_no_rate_is_refused_by_name(value):
    with pytest.raises(LmmError, match="the learning rate of 'projector' must be a number above 0"):
        stage1(train={"projector": value})
    with pytest.raises(LmmError, match="eps must be a number above 0"):
        stage1(eps=value)


@pytest.mark.parametrize("value", WRONG_WHOLE, ids=repr)
def test_generation_refuses_the_same(value):
    with pytest.raises(LmmError, match="max_new_tokens is .*, expected an integer"):
        Options(max_new_tokens=value)


@pytest.mark.parametrize("value", WRONG_REAL, ids=repr)
def test_temperatures_that_are_none_are_refused(value):
    with pytest.raises(LmmError, match="temperature is .*, expected a number"):
        Options(temperature=value)


def test_a_tensor_without_a_value_stays_what_it_is():
    empty = torch.empty((), device="meta")
    assert plain(empty) is empty
