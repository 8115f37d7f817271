"""What a block was made with is read off its constructor, and a model made of it comes back the same."""

import inspect

import pytest

import lmmblocks as lb
from lmmblocks import registry
from lmmblocks.projectors import MLP, AdaptivePool, Resampler
from lmmblocks.reducers import Pool
from lmmblocks.spec.options import WIDTHS, remembers_options


@pytest.mark.parametrize("kind", ["projector", "reducer", "hook"])
def test_every_block_of_ours_remembers_all_arguments_but_the_widths(kind):
    for name in registry.built_in(kind):
        made = registry.resolve(kind, name)
        assert inspect.unwrap(made.__init__) is not made.__init__, name
        assert [each for each in inspect.signature(made).parameters if each not in WIDTHS] or name in ("identity", "ldp"), name


@pytest.mark.parametrize(
    "given, options",
    [
        (MLP(192, 192), {"depth": 2, "bias": True}),
        (MLP(192, 192, 3, bias=False), {"depth": 3, "bias": False}),
        (AdaptivePool(192, 192, grid=(2, 3)), {"grid": [2, 3], "small": "keep", "depth": 2, "bias": True}),
        (Resampler(192, 192, grid=2), {"grid": 2, "heads": None, "post": True}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_that_is_passed_is_saved_with_its_defaults_and_comes_back(given, options, tmp_path, tiny_tokenizer):
    model = lb.build("llava15-tiny", projector=given, reducers=[Pool(2, before_projector=True)], weights="random", tokenizer=tiny_tokenizer)
    assert model.config.projector.options == options
    assert model.config.reducers[0].options == {"stride": 2, "mode": "average", "before_projector": True}
    again = lb.load(model.save(tmp_path / "model", format="native"))
    assert again.config.projector == model.config.projector and again.config.reducers == model.config.reducers


def test_a_derived_class_remembers_its_own_arguments_and_lists_are_copies():
    @remembers_options
    class Base:
        def __init__(self, in_dim, out_dim, size=1):
            self.sizes = [size]

    @remembers_options
    class Derived(Base):
        def __init__(self, in_dim, out_dim, sizes, more=None):
            super().__init__(in_dim, out_dim, sizes[0])

    sizes = [3, 4]
    made = Derived(1, 2, sizes, more={"a": (5,)})
    sizes.append(9)
    assert made.options == {"sizes": [3, 4], "more": {"a": [5]}} and Base(1, 2).options == {"size": 1}
