"""An older package than declared is refused in one sentence, before it fails somewhere in the middle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lmmblocks.encoders.wrapped import optional_package
from lmmblocks.spec import LmmError, versions

ROOT = Path(__file__).resolve().parents[2]


def declared() -> dict[str, str]:
    """Return ``package -> oldest`` of ``pyproject.toml``, read as text: every line that holds a lower bound."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project]")[2].partition("[project.scripts]")[0]
    return {package: oldest for package, oldest in re.findall(r'"([\w.-]+)(?:\[[^]]*\])?>=([\d.]+)"', text)}


@pytest.fixture
def installed(tmp_path):
    """Pretend that a version of a package is installed: its metadata stands before the real one's."""

    def install(package: str, number: str) -> dict[str, str]:
        folder = tmp_path / f"{package}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {number}\n", encoding="utf-8")
        path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PYTHONPATH": path, "LANG": "C"}

    return install


def run(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_bounds_are_those_of_pyproject():
    assert {need.package: need.oldest for need in versions.requirements()} == declared(), "install lmmblocks again"


def test_installed_versions_are_new_enough():
    for extra in {need.extra for need in versions.requirements()}:
        assert versions.too_old(extra=extra) == []


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors", "numpy", "pillow"])
def test_an_older_package_is_refused_when_a_name_is_used_and_not_at_import(installed, package):
    done = run(installed(package, "0.3.1"), "-c", "import lmmblocks; print('imported', flush=True); lmmblocks.build")
    assert done.stdout == "imported\n" and done.returncode == 1
    oldest = declared()[package]
    sentence = f"{package} 0.3.1 is installed, lmmblocks needs {oldest} or newer: pip install --upgrade '{package}>={oldest}'"
    assert done.stderr.splitlines()[-1] == f"lmmblocks.spec.errors.LmmError: {sentence}"


def test_commands_refuse_it_in_one_line_and_doctor_tells_it(installed):
    environment = installed("transformers", "4.20.0")
    refused = run(environment, "-m", "lmmblocks", "inspect", "nowhere")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("error: transformers 4.20.0 is installed, lmmblocks needs ")
    told = run(environment, "-m", "lmmblocks", "doctor")
    assert told.returncode == 0 and "transformers 4.20.0 is installed" in " ".join(told.stdout.split())
    assert run(environment, "-m", "lmmblocks", "version").returncode == 0


@pytest.mark.parametrize("extra, package", [("timm", "timm"), ("open_clip", "open_clip_torch")])
def test_an_older_optional_package_is_refused_with_the_version_it_needs(installed, tmp_path, monkeypatch, extra, package):
    installed(package, "0.1")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LmmError, match=rf"{package} 0\.1 is installed, lmmblocks needs {declared()[package]} or newer"):
        optional_package(extra, extra)


@pytest.mark.parametrize("part", ["HFDecoder.of('anywhere')", "register_with_transformers()"])
def test_a_part_that_needs_a_newer_transformers_than_the_rest_says_so(installed, part):
    code = f"from lmmblocks.decoders.hf import HFDecoder; from lmmblocks.ops import register_with_transformers; {part}"
    done = run(installed("transformers", "5.3.9"), "-c", code)
    assert done.returncode == 1
    assert "needs transformers 5.4 or newer, 5.3.9 is installed: pip install --upgrade 'transformers>=5.4'" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "text, numbers",
    [("2.6.0", (2, 6, 0)), ("2.14.1+cpu", (2, 14, 1)), ("2.6.0a0+df5bbc09d1.nv24.11", (2, 6, 0)), ("5.0.0rc1", (5, 0, 0)), ("unknown", ())],
)
def test_a_vendors_build_counts_as_its_release(text, numbers):
    assert versions.release(text) == numbers


def test_versions_are_compared_as_numbers(monkeypatch):
    need = versions.Requirement("torch", "2.6", None)
    monkeypatch.setattr(versions, "requirements", lambda: (need,))
    for installed, fine in (("2.10.0", True), ("2.6", True), ("2.6.0+cu118", True), ("2.5.1", False), ("10", True)):
        monkeypatch.setattr(versions, "version", lambda package, installed=installed: installed)
        assert (versions.too_old() == []) is fine, installed
