"""Blocks by name: exact names, the closest match, `package.module:Class`, plugins, and back from class to name."""

import importlib.metadata
import sys
import types

import pytest

from lmmblocks import registry
from lmmblocks.decoders.transformer import TransformerConfig
from lmmblocks.encoders.clip import CLIPConfig
from lmmblocks.projectors import MLP, Identity, Linear
from lmmblocks.spec import LmmError

BUILT_IN = {
    ("encoder", "clip"): CLIPConfig,
    ("projector", "identity"): Identity,
    ("projector", "linear"): Linear,
    ("projector", "mlp"): MLP,
    ("decoder", "transformer"): TransformerConfig,
}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    """Whatever a test registers is gone after it."""
    monkeypatch.setattr(registry, "_REGISTERED", {kind: {} for kind in registry._BUILT_IN})


@pytest.fixture
def plugin(monkeypatch):
    """Pretend that an installed package offers a block."""
    points = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "lmmblocks.blocks" else [])

    def offer(name, value):
        points.append(importlib.metadata.EntryPoint(name, value, "lmmblocks.blocks"))

    return offer


@pytest.fixture
def own_module(monkeypatch):
    module = types.ModuleType("their_blocks")

    class Shrink:
        class Wide:
            pass

    for block, name in ((Shrink, "Shrink"), (Shrink.Wide, "Shrink.Wide")):
        block.__module__, block.__qualname__ = "their_blocks", name
    module.Shrink = Shrink
    monkeypatch.setitem(sys.modules, "their_blocks", module)
    return module


@pytest.mark.parametrize("kind, name", BUILT_IN)
def test_built_in_blocks_are_found_by_name_and_named_by_class(kind, name):
    assert registry.resolve(kind, name) is BUILT_IN[kind, name]
    assert registry.name_of(kind, BUILT_IN[kind, name]) == name
    assert name in registry.names(kind)


def test_every_built_in_name_resolves():
    for kind, blocks in registry._BUILT_IN.items():
        for name in blocks:
            found = registry.resolve(kind, name)
            assert (registry.name_of(kind, found) if isinstance(found, type) else found.name) == name


def test_registered_class_is_found_and_stays_what_it_was():
    @registry.register("projector", "shrink")
    class Shrink:
        pass

    assert Shrink.__name__ == "Shrink" and registry.resolve("projector", "shrink") is Shrink
    assert registry.name_of("projector", Shrink) == "shrink"
    assert registry.names("projector") == sorted([*registry._BUILT_IN["projector"], "shrink"])
    assert "shrink" not in registry.names("encoder")


@pytest.mark.parametrize("path", ["their_blocks:Shrink", "their_blocks:Shrink.Wide"])
def test_module_and_class_are_found_and_given_back(own_module, path):
    block = registry.resolve("projector", path)
    assert block.__qualname__ == path.split(":")[1]
    assert registry.name_of("projector", block) == path


def test_plugins_are_offered_under_their_kind_only(plugin, own_module):
    plugin("projector.shrink", "their_blocks:Shrink")
    assert "shrink" in registry.names("projector") and "shrink" not in registry.names("encoder")
    assert registry.resolve("projector", "shrink") is own_module.Shrink
    assert registry.name_of("projector", own_module.Shrink) == "shrink"


def test_a_plugin_that_cannot_be_imported_is_in_nobodys_way(plugin):
    plugin("projector.broken", "no_such_package:Block")
    assert registry.name_of("projector", MLP) == "mlp" and registry.resolve("projector", "mlp") is MLP
    assert "broken" in registry.names("projector")


@pytest.mark.parametrize(
    "kind, name, message",
    [
        ("projector", "mpl", "unknown projector 'mpl'; did you mean 'mlp'.; known: .'adaptive_pool',.* 'token_packer'., or 'package.module:Class'"),
        ("projector", "MLP", "unknown projector 'MLP'"),
        ("encoder", "zzz", "unknown encoder 'zzz'; known: .'blip2_vit'."),
        ("projector", "strided", "'package.module:Class'; if a file of your own registers 'strided', import it first, or .* 'module:Class'"),
        ("projector", "no_such_module:A", "no module 'no_such_module': install it or correct .*; .* current folder with PYTHONPATH=."),
        ("projector", "no_such_module.inner:A", "no module 'no_such_module': .*PYTHONPATH=."),
        ("projector", "lmmblocks.projectors:MPL", "lmmblocks.projectors has no 'MPL'; did you mean 'MLP'"),
        ("projector", "lmmblocks.projectors:MLP.x", "lmmblocks.projectors has no 'MLP.x'"),
        ("projector", ":MLP", "expected 'package.module:Class'"),
        ("projector", ".mlp:MLP", "expected 'package.module:Class'"),
        ("projector", "lmmblocks.projectors:", "has no ''"),
        ("projectors", "mlp", "unknown kind of block 'projectors'.*did you mean 'projector'"),
    ],
)
def test_unknown_names_are_refused(kind, name, message):
    with pytest.raises(LmmError, match=message):
        registry.resolve(kind, name)


def test_a_package_that_a_block_needs_is_named_without_advice_on_folders(tmp_path, monkeypatch):
    (tmp_path / "their_needy_block.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(LmmError, match="no module 'no_such_package': install it or correct the part before ':'$"):
        registry.resolve("projector", "their_needy_block:Block")


def test_names_that_are_taken_or_of_no_kind_are_refused(plugin):
    plugin("projector.theirs", "their_blocks:Shrink")
    for name in ("mlp", "theirs"):
        with pytest.raises(LmmError, match=f"projector {name!r} is registered already"):
            registry.register("projector", name)
    with pytest.raises(LmmError, match="unknown kind of block 'reducr'"):
        registry.register("reducr", "x")


def defined(module, qualname, **members):
    return type(qualname, (), {"__module__": module, "__qualname__": qualname, **members})


def test_a_class_that_is_defined_again_takes_the_place_of_its_older_self(monkeypatch, tmp_path):
    first, again = defined("__main__", "Mine"), defined("__main__", "Mine", changed=True)
    assert registry.register("projector", "mine")(first) is first
    assert registry.register("projector", "mine")(again) is again
    assert registry.resolve("projector", "mine") is again
    assert registry.name_of("projector", first) == registry.name_of("projector", again) == "mine"
    script = types.ModuleType("my_script")
    script.__file__ = str(tmp_path / "my_script.py")
    monkeypatch.setitem(sys.modules, "my_script", script)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", script.__file__, raising=False)
    imported = defined("my_script", "Mine")
    registry.register("projector", "mine")(imported)
    assert registry.resolve("projector", "mine") is imported


@pytest.mark.parametrize("other", [("__main__", "Other"), ("elsewhere", "Mine"), ("their_blocks", "Shrink")])
def test_another_class_under_a_name_that_is_taken_is_refused(other, own_module):
    registry.register("projector", "mine")(defined("__main__", "Mine"))
    with pytest.raises(LmmError, match=f"projector 'mine' is registered already, for .*Mine.*, found .*{other[1]}.*: choose another name"):
        registry.register("projector", "mine")(defined(*other))


def test_an_object_may_be_registered_again_from_its_module_alone():
    one, other = BUILT_IN, dict(BUILT_IN)
    assert registry.register("template", "mine")(one) is one
    assert registry.register("template", "mine")(other) is other
    with pytest.raises(LmmError, match="template 'mine' is registered already"):
        exec("from lmmblocks import registry\nregistry.register('template', 'mine')({})", {"__name__": "elsewhere"})
    with pytest.raises(LmmError, match="template 'mine' is registered already"):
        registry.register("template", "mine")([])
