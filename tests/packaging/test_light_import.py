"""``import lmmblocks`` is quick and brings in nothing but the standard library; names arrive when they are used."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lmmblocks

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("timm", "open_clip", "matplotlib", "tensorboard", "sklearn", "sentencepiece", "google.protobuf", "hypothesis", "pytest", "triton", "tqdm")

NEW_MODULES = """
import json, sys
before = set(sys.modules)
import lmmblocks
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))))
"""

WITHOUT_OPTIONAL = """
import importlib, sys
for name in {optional!r}:
    sys.modules[name] = None
for name in {modules!r}:
    importlib.import_module(name)
"""

USE_NAMES = """
import importlib, types
import lmmblocks
for module in {modules!r}:
    importlib.import_module(module)
for name in lmmblocks.__all__:
    value = getattr(lmmblocks, name)
    assert isinstance(value, types.ModuleType) == (name in ("ops", "presets")), f"lmmblocks.{{name}} is {{value!r}}"
    assert name in dir(lmmblocks)
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def module_names() -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / "lmmblocks").rglob("*.py"))]
    return [".".join(path.parts).removesuffix(".__init__") for path in paths if path.name != "__main__"]


def test_import_brings_in_only_the_standard_library() -> None:
    assert json.loads(run(NEW_MODULES)) == ["lmmblocks"]


def test_import_takes_less_than_a_second() -> None:
    seconds = []  # of processor time, which other processes of the machine don't lengthen; an import waits for nothing
    for _ in range(3):
        before = os.times()
        run("import lmmblocks")
        after = os.times()
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(seconds) < 1.0, seconds


def test_every_module_can_be_imported_without_the_optional_packages() -> None:
    run(WITHOUT_OPTIONAL.format(optional=OPTIONAL, modules=module_names()))


def test_public_names_work_and_no_submodule_hides_one() -> None:
    # Importing lmmblocks.x sets the attribute x: a public function must not have the name of a file.
    run(USE_NAMES.format(modules=module_names()))


def test_no_other_folder_of_the_checkout_is_a_module_of_the_package() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lmmblocks.benchmarks")
    assert importlib.import_module("lmmblocks.kernels.device").__name__ == "lmmblocks.kernels.device"


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(lmmblocks, "no_such_name")
