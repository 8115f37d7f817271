"""Keywords that a class of settings doesn't have are a mistake of the user's, told with the closest name, wherever settings are made."""

import copy
import pickle
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest

import lmmblocks as lb
from lmmblocks import registry
from lmmblocks.chat.saving import FORMS
from lmmblocks.chat.templates import Template
from lmmblocks.config import Block, LMMConfig
from lmmblocks.decoders.rotary import LinearRope, Llama3Rope, LongRope
from lmmblocks.generate.options import Options
from lmmblocks.images import clip_preprocess
from lmmblocks.images.preprocess import ImagePreprocess
from lmmblocks.spec import LmmError
from lmmblocks.train import Stage

NAMED = [(kind, name) for kind in ("encoder", "decoder", "preprocess") for name in registry.built_in(kind)]
SETTINGS = [
    *(registry.resolve(kind, name) for kind, name in NAMED),
    *FORMS.values(),
    *(type(registry.resolve("template", name)) for name in registry.built_in("template")),
    *(LinearRope, Llama3Rope, LongRope, Block, LMMConfig, Stage, Options, lb.Sample),
]


@pytest.mark.parametrize("cls", dict.fromkeys(SETTINGS), ids=lambda cls: cls.__name__)
def test_an_unknown_keyword_is_told_with_the_closest_name(cls):
    assert is_dataclass(cls)
    name = max((field.name for field in fields(cls)), key=len)
    with pytest.raises(LmmError, match=f"{cls.__name__}: .*unknown keywords '{name}z'; did you mean '{name}'.*known: .*{name}"):
        cls(**{f"{name}z": 1})


def test_what_is_missing_and_what_is_too_much_is_told():
    with pytest.raises(LmmError, match="^Stage: missing 'name', 'train', 'batch_size'$"):
        Stage()
    with pytest.raises(LmmError, match="^Stage: 1 values without a name, expected at most 0; missing 'train', 'batch_size'$"):
        Stage({"projector": 1e-3}, name="a")
    with pytest.raises(LmmError, match="^Block: multiple values for argument 'type'"):
        Block("mlp", type="mlp")


def test_changes_and_classes_of_ones_own_follow_the_rule_too():
    stage = Stage(name="a", train={"projector": 1e-3}, batch_size=2)
    with pytest.raises(LmmError, match="unknown keywords 'epoch'; did you mean 'epochs'"):
        replace(stage, epoch=2)

    @dataclass(frozen=True)
    class Bright(ImagePreprocess):
        gain: float = 1.0

    square = clip_preprocess(28, 14)
    with pytest.raises(LmmError, match="Bright: unknown keywords 'gian'; did you mean 'gain'"):
        Bright(28, 14, "crop", square.mean, square.std, gian=2)


def test_a_mistake_inside_of_a_class_is_not_taken_for_one_of_the_caller():
    @dataclass(frozen=True)
    class Broken(Template):
        def __post_init__(self):
            raise TypeError("inside")

    values = {field.name: getattr(registry.resolve("template", "vicuna_v1"), field.name) for field in fields(Template)}
    with pytest.raises(TypeError, match="^inside$"):
        Broken(**values)


def test_settings_are_pickled_and_copied_as_before():
    for made in (Stage(name="a", train={"projector": 1e-3}, batch_size=2), clip_preprocess(28, 14), Block("mlp", {"depth": 2}), Options(stop="#")):
        assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
