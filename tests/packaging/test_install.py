"""lmmblocks and lmmblocks.kernels are importable, and nobody else's package is disturbed, in every way people install them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("plain", "editable", "bare")

PROBE = """
import json, sys
import lmmblocks, lmmblocks.kernels.verified as verified
already = "kernels" in sys.modules
import kernels
print(json.dumps({
    "name": verified.__name__, "file": verified.__file__, "package": lmmblocks.__file__,
    "answer": verified.is_verified("no_such_op.triton", (8, 0)), "runs": len(verified.load()),
    "already": already, "owner": getattr(kernels, "OWNER", None), "torch": "torch" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def install(new_installation: Callable[..., Any]) -> Callable[[str], Any]:
    """Make, once, an installation of kind ``plain``, ``editable`` or ``bare`` (not installed, on PYTHONPATH), without CUDA kernels."""
    made: dict[str, Any] = {}

    def make(kind: str) -> Any:
        if kind not in made:
            made[kind] = new_installation(kind)
            if kind == "bare":
                made[kind].environment["PYTHONPATH"] = str(made[kind].checkout)
            else:
                editable = ["--editable"] if kind == "editable" else []
                made[kind].install("--quiet", *editable, str(made[kind].checkout), LMMBLOCKS_SKIP_CUDA="1")
        return made[kind]

    return make


@pytest.fixture(scope="module")
def probe(install: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Any]:
    """Run PROBE with an installation, in the root of its checkout or elsewhere."""

    def run(kind: str, place: str) -> Any:
        installation = install(kind)
        cwd = installation.checkout if place == "root" else tmp_path_factory.mktemp("elsewhere")
        return json.loads(installation.run("-c", PROBE, cwd=cwd))

    return run


@pytest.mark.parametrize("place", ["root", "elsewhere"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernels_are_importable_and_do_not_shadow_a_package_of_that_name(
    kind: str, place: str, probe: Callable[[str, str], Any], install: Callable[[str], Any]
) -> None:
    found = probe(kind, place)
    assert found["name"] == "lmmblocks.kernels.verified"
    assert (found["answer"], found["torch"]) == (False, False)
    assert (found["already"], found["owner"]) == (False, "somebody else"), "our kernels/ hides another package"
    installed = kind == "plain" and place == "elsewhere"
    home = install(kind).site_packages if installed else install(kind).checkout
    assert Path(found["package"]) == home / "lmmblocks" / "__init__.py"
    assert Path(found["file"]) == (home / "lmmblocks" if installed else home) / "kernels" / "verified.py"


def test_a_plain_install_holds_every_module_and_nothing_beside_lmmblocks(install: Callable[[str], Any]) -> None:
    installation = install("plain")
    packages = installation.site_packages
    expected = {path.relative_to(ROOT) for path in (ROOT / "lmmblocks").rglob("*.py")}
    expected |= {Path("lmmblocks") / path.relative_to(ROOT) for path in (ROOT / "kernels").iterdir() if path.suffix in (".py", ".json")}
    missing = [str(path) for path in expected if not (packages / path).is_file()]
    assert not missing, f"not installed, does a folder lack __init__.py? {sorted(missing)}"
    (record,) = packages.glob("lmmblocks-*.dist-info/RECORD")
    tops = {line.split("/")[0].split("-")[0] for line in record.read_text().splitlines()}
    assert tops == {"lmmblocks", ".."}  # ../../../bin/lmmblocks


def test_the_installed_command_runs_outside_the_checkout(install: Callable[[str], Any], tmp_path: Path) -> None:
    installation = install("plain")
    script = installation.python.parent / "lmmblocks"
    assert installation.run(str(script), "--version", cwd=tmp_path) == "lmmblocks 0.1.0\n"


def test_requirements_have_lower_bounds_and_no_upper_pins(install: Callable[[str], Any]) -> None:
    (metadata,) = install("plain").site_packages.glob("lmmblocks-*.dist-info/METADATA")
    lines = [line.split(": ", 1) for line in metadata.read_text().split("\n\n")[0].splitlines()]
    requirements = [value.split(";")[0].strip() for key, value in lines if key == "Requires-Dist"]
    pinned = [r for r in requirements if any(sign in r for sign in ("<", "==", "~=", "!="))]
    assert len(requirements) > 5 and not pinned
    assert [value for key, value in lines if key == "Requires-Python"] == [">=3.10"]
    assert [value for key, value in lines if key == "License-Expression"] == ["Apache-2.0"]


def test_setup_imports_no_torch_and_is_silent_where_nothing_is_built(install: Callable[[str], Any]) -> None:
    code = "import runpy, sys; sys.argv = ['setup.py', '--version']; runpy.run_path('setup.py'); print('torch' in sys.modules)"
    bare = install("bare")
    assert bare.run("-c", code, cwd=bare.checkout).split() == ["0.1.0", "False"]


def test_transformers_does_not_take_our_folder_for_the_kernels_package(in_this_environment: Callable[..., Any]) -> None:
    # In the root of the checkout transformers finds our folder when it looks for Hugging Face's package. Without an
    # __init__.py it is an empty namespace, which transformers counts as absent; none of our modules may be loaded under that name.
    code = (
        "import json, sys; from transformers.utils import import_utils as utils; from importlib.metadata import packages_distributions; "
        "found = getattr(utils, 'is_kernels_available', lambda: False)(); "
        "loaded = [getattr(m, '__file__', None) for n, m in sys.modules.items() if n.split('.')[0] == 'kernels']; "
        "print(json.dumps([found, 'kernels' in packages_distributions(), [f for f in loaded if f]]))"
    )
    here = in_this_environment(ROOT, PYTHONPATH=str(ROOT))
    found, installed, files = json.loads(here.run("-c", code, cwd=ROOT))
    assert found == installed
    assert not [file for file in files if Path(file).is_relative_to(ROOT / "kernels")]
