"""Numbers of settings: numpy's and torch's scalars are Python's own, everything else is refused by name."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmmblocks.config import Block
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.generate import Options
from lmmblocks.spec import LmmError
from lmmblocks.spec.fields import AtLeast, Filled, Within, field_problems, plain
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
@pytest.mark.parametrize("name", ["batch_size", "epochs", "max_length", "micro_batch_rows", "log_every", "keep_checkpoints"])
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
    with pytest.raises(LmmError, match="max_new_tokens must be a whole number above 0, found"):
        Options(max_new_tokens=value)


@pytest.mark.parametrize("value", WRONG_REAL, ids=repr)
def test_temperatures_that_are_none_are_refused(value):
    with pytest.raises(LmmError, match="temperature must be a number of at least 0"):
        Options(temperature=value)


def test_a_tensor_without_a_value_stays_what_it_is():
    empty = torch.empty((), device="meta")
    assert plain(empty) is empty


@dataclass
class Bounded:
    """Every word of the vocabulary."""

    count: int = 1
    seed: Annotated[int, AtLeast(0)] | None = 0
    share: Annotated[float, Within(0, 1), "1 = all"] = 1
    chance: Annotated[float, Within(0, 1, above=True, below=True)] = 0.5
    pair: Annotated[tuple[float, float], Within(0, 1, below=True)] = (0.9, 0.99)
    name: Annotated[str, Filled] = "x"
    names: Annotated[tuple[str, ...], Filled] = ()
    way: Literal["left", "right"] = "left"
    other: Any = None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"count": 0}, "count must be a whole number above 0, found 0"),
        ({"count": None}, "count must be a whole number above 0, found None"),
        ({"seed": -1}, "seed must be a whole number of at least 0 or None, found -1"),
        ({"share": 1.01}, "share must be a number from 0 to 1 (1 = all), found 1.01"),
        ({"chance": 0}, "chance must be a number above 0 and below 1, found 0"),
        ({"chance": 1}, "chance must be a number above 0 and below 1, found 1"),
        ({"pair": (0.9,)}, "pair must be two numbers from 0 to below 1, found (0.9,)"),
        ({"pair": (0.9, 1)}, "pair must be two numbers from 0 to below 1, found (0.9, 1)"),
        ({"name": ""}, "name must be a non-empty string, found ''"),
        ({"names": ("a", "")}, "names must be strings that aren't empty, found ('a', '')"),
        ({"way": "rigth"}, "way must be one of left, right, found 'rigth'; did you mean 'right'?"),
        ({"way": np.array([2, 3])}, "way must be one of left, right, found array([2, 3])"),
        ({"way": ["left"]}, "way must be one of left, right, found ['left']; did you mean 'left'?"),
        ({"seed": None, "share": 0, "other": object, "names": ("a",), "way": "right"}, None),
    ],
    ids=str,
)
def test_annotations_say_what_a_field_may_hold(values, problem):
    assert field_problems(Bounded(**values)) == ([problem] if problem else [])


def test_annotations_are_read_as_they_are_meant_not_as_they_are_written():
    Whole = int
    made = dataclasses.make_dataclass("Renamed", [("a", Whole), ("b", "int"), ("c", Whole | None), ("d", "Annotated[int, AtLeast(0)]")], namespace={})
    made.__module__ = __name__
    assert field_problems(made(0, 0, 0, 0)) == [
        "a must be a whole number above 0, found 0",
        "b must be a whole number above 0, found 0",
        "c must be a whole number above 0 or None, found 0",
    ]
