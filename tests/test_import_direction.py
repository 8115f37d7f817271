"""Imports point one way: read from the source, those inside functions too, those for type checkers only left out."""

import ast
import importlib.util
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lmmblocks

LAYERS = (
    # The root imports nothing before it is asked for a name.
    ("root and kernels", ("", "kernels")),
    ("spec", ("spec",)),
    ("plans", ("plans",)),
    ("ops", ("ops",)),
    ("what blocks are made with", ("chat", "compose.image_rows", "files", "images", "registry")),
    ("blocks", ("decoders", "encoders", "hooks", "projectors", "reducers")),
    ("composition", ("compose", "config", "presets")),
    ("lmm", ("lmm",)),
    # Parts of files come before the model that is built of them, whole models after.
    ("weights of parts", tuple(f"weights.{path.stem}" for path in (Path(lmmblocks.__file__).parent / "weights").glob("[!_]*"))),
    ("builder", ("builder", "compose.first_pass")),
    (
        "whole models",
        ("weights", "weights.inspect", "weights.load", "weights.names", "weights.read_back", "weights.save"),
    ),
    ("use", ("data", "eval", "generate", "train")),
    ("experimental", ("experimental",)),
    ("cli", ("__main__", "cli")),
)
"""Bottom up. A module belongs to the last entry that names it or, with the longest name, a package it is in."""

DEFERRED = {
    ("lmm", "generate"): "LMM.generate",
    ("lmm", "weights.save"): "LMM.save",
    ("decoders.hf_config", "decoders.hf"): "HFDecoderConfig.build, as every config builds its block",
}
"""Methods that hand over to a module above or beside theirs: the only imports inside functions that may."""

Edges = dict[str, set[str]]


def sources() -> dict[str, Path]:
    """Return every module of the package by its name below ``lmmblocks``, the kernels' too."""
    kernels = importlib.util.find_spec("lmmblocks.kernels")
    assert kernels is not None and kernels.submodule_search_locations
    folders = {"": Path(lmmblocks.__file__).parent, "kernels": Path(next(iter(kernels.submodule_search_locations)))}
    return {name: path for prefix, folder in folders.items() for name, path in modules_of(folder, prefix)}


def modules_of(folder: Path, prefix: str = "") -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*.py"):
        parts = (*prefix.split("."), *path.relative_to(folder).with_suffix("").parts)
        yield ".".join(part for part in parts if part and part != "__init__"), path


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(node: ast.AST, deferred: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run with a module or, if ``deferred``, those inside its functions as well."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif is_for_type_checkers(child):
            for other in child.orelse:  # type: ignore[attr-defined]
                yield from import_statements(ast.Module([other], []), deferred)
        elif deferred or not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from import_statements(child, deferred)


def imported(statement: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Yield the full dotted names that a statement may import; a name may be a module or something inside one."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    above = ["lmmblocks", *filter(None, module.split("."))]
    above = above[: len(above) - statement.level + is_package] if statement.level else []
    base = ".".join([*above, *filter(None, [statement.module])])
    yield from (f"{base}.{alias.name}" for alias in statement.names)


def import_graph(modules: dict[str, Path], *, deferred: bool) -> Edges:
    """Return which modules each module imports; a name that is no module stands for the module that holds it."""
    edges: Edges = {name: set() for name in modules}
    for name, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for statement in import_statements(tree, deferred):
            for full in imported(statement, name, path.name == "__init__.py"):
                root, _, target = full.partition(".")
                if root == "lmmblocks":
                    known = target if target in modules else target.rpartition(".")[0]
                    edges[name].add(known)
    return edges


def cycle(edges: Edges) -> list[str]:
    """Return the modules of one circle of imports, none if there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def with_packages(edges: Edges) -> Edges:
    """Add what runs with an import: the packages around its target, but for those that the importer is in itself."""

    def around(name: str) -> set[str]:
        parts = name.split(".")
        return {".".join(parts[:count]) for count in range(1, len(parts))} & edges.keys()

    return {name: {*targets, *(p for t in targets for p in around(t) - around(name) - {name})} for name, targets in edges.items()}


def layer(module: str) -> int | None:
    """Return the place of a module's layer, None if it has none."""
    entries = [(len(entry), place) for place, (_, names) in enumerate(LAYERS) for entry in names if is_in(module, entry)]
    return max(entries)[1] if entries else None


def is_in(module: str, entry: str) -> bool:
    return module == entry or bool(entry) and module.startswith(f"{entry}.")


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    return sources()


@pytest.fixture(scope="module")
def edges(modules) -> Edges:
    found = import_graph(modules, deferred=True)
    return {name: {target for target in targets if (name, target) not in DEFERRED} for name, targets in found.items()}


def test_every_module_has_a_layer(modules):
    assert [name for name in modules if layer(name) is None] == [], "name it, or the package it is in, in LAYERS"


def test_no_module_imports_one_of_a_layer_above_its_own(edges):
    def named(module):
        return f"{module} ({LAYERS[places[module]][0]})"

    places = {name: place for name in edges if (place := layer(name)) is not None}  # one without has its own test
    pairs = [(name, target) for name, targets in edges.items() for target in targets if {name, target} <= places.keys()]
    assert sorted(f"{named(name)} imports {named(target)}" for name, target in pairs if places[target] > places[name]) == []


def test_nothing_imports_what_is_experimental(edges):
    inside = {name for name in edges if is_in(name, "experimental")}
    assert inside and [name for name in edges.keys() - inside if edges[name] & inside] == []


def test_imports_run_in_no_circle(modules, edges):
    assert cycle(edges) == []
    assert cycle(with_packages(import_graph(modules, deferred=False))) == [], "a package's __init__ runs with each of its modules"


def test_the_exceptions_are_there_and_inside_functions(modules):
    everywhere, at_once = (import_graph(modules, deferred=deferred) for deferred in (True, False))
    assert [pair for pair in DEFERRED if pair[1] not in everywhere[pair[0]]] == [], "gone: take it out of DEFERRED"
    assert [pair for pair in DEFERRED if pair[1] in at_once[pair[0]]] == []


def test_every_way_to_write_an_import_is_read(tmp_path):
    (tmp_path / "pack").mkdir()
    written = {
        "low.py": "",
        "pack/__init__.py": "from .. import low\nfrom .inner import NAME",
        "pack/inner.py": "from ..low import x as NAME\nimport os, lmmblocks.high",
        "high.py": "try:\n    from lmmblocks.pack import inner\nexcept ImportError:\n    pass\ndef f():\n    from .late import g",
        "late.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import high\nelse:\n    from .low import y",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    found = import_graph(dict(modules_of(tmp_path)), deferred=True)
    assert found == {"low": set(), "pack": {"low", "pack.inner"}, "pack.inner": {"low", "high"}, "high": {"pack.inner", "late"}, "late": {"low"}}
    assert import_graph(dict(modules_of(tmp_path)), deferred=False)["high"] == {"pack.inner"}
    assert set(cycle(found)) == {"high", "pack.inner"}
    assert with_packages(found)["high"] == {"pack", "pack.inner", "late"}


def test_a_module_lies_in_the_layer_of_its_longest_name():
    places = [layer(name) for name in ("spec.plan", "ops.rope", "weights.files.maps", "weights.load", "train.loop", "cli.train", "specials")]
    assert places[:-1] == sorted(set(places[:-1])) and places[-1] is None
