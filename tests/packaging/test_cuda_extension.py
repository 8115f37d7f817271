"""`lmmblocks._C` of the real kernels: what it holds and what not, what it says without a GPU, and that every way of installing brings it."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNSEEN = {"CUDA_VISIBLE_DEVICES": ""}
"""Where there is a GPU, it isn't there: a launch with pointers that lead nowhere must not reach it."""

PROBE = """
import json, sys
import lmmblocks._C as C
splice = dict.fromkeys(("table", "images", "source", "out", "table_row", "image", "image_row", "out_row", "image_rows", "rows_per_image",
                        "table_type", "image_type", "scaled", "device", "stream"), 0) | {"scale": 1.0, "rows_per_image": 1}
codes = {
    "nothing": C.splice_forward(**splice, rows=0, width=8, vocabulary=0),
    "refused": C.splice_forward(**splice, rows=-1, width=8, vocabulary=0),
    "launched": C.splice_forward(**splice | {"source": 16, "out": 16}, rows=1, width=8, vocabulary=0),
}
messages = {name: C.error_message(code) for name, code in codes.items()}
tiles = C.attention_tiles(lengths_q=[200], lengths_k=[200], rows_q=200, mask=1)
print(json.dumps({"facts": C.facts(), "file": C.__file__, "codes": codes, "messages": messages, "tiles": tiles, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def built(copy_checkout: Callable[[Path], Path], in_this_environment: Callable[..., Any], nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkout with `_C` in place; its objects are those of the checkout under test, so that what an install compiled isn't compiled again."""
    checkout = copy_checkout(tmp_path_factory.mktemp("built") / "checkout")
    objects = ROOT / "build" / "csrc"
    objects.mkdir(parents=True, exist_ok=True)
    (checkout / "build").mkdir()
    (checkout / "build" / "csrc").symlink_to(objects)
    here = in_this_environment(checkout, PYTHONPATH=str(checkout), LMMBLOCKS_REQUIRE_CUDA="1", **UNSEEN)
    here.run("setup.py", "-q", "build_ext", "--inplace", cwd=checkout)
    return here


@pytest.fixture(scope="module")
def module(built: Any) -> Path:
    (path,) = (built.checkout / "lmmblocks").glob("_C*.so")
    return path


@pytest.fixture(scope="module")
def found(built: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return json.loads(built.run("-c", PROBE, cwd=tmp_path_factory.mktemp("elsewhere")))


def _tool(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_it_knows_no_torch_and_exports_nothing_but_its_initialisation(module: Path) -> None:
    symbols = [line.split()[-2:] for line in _tool("nm", "-D", str(module)).splitlines()]
    exported = {name for kind, name in symbols if kind not in ("U", "w", "v")}
    assert exported == {"PyInit__C"}
    foreign = [name for _, name in symbols if re.search(r"c10|at::|torch|aten|^_ZN?K?2at|^cu[A-Z]|cuda", name)]
    assert not foreign


def test_it_needs_no_library_of_torch_or_cuda(module: Path) -> None:
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", _tool("readelf", "-d", str(module)))
    assert needed and all(re.match(r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so|ld-linux", name) for name in needed), needed


def test_it_holds_code_for_a100_and_h100_and_what_newer_gpus_compile(module: Path, nvcc: str) -> None:
    triton = importlib.util.find_spec("triton")
    of_triton = [Path(place) / "backends" / "nvidia" / "bin" for place in (triton.submodule_search_locations or () if triton else ())]
    places = [str(place / "cuobjdump") for place in (Path(nvcc).resolve().parent, *of_triton)]
    tool = shutil.which("cuobjdump") or next(filter(shutil.which, places), None)
    if tool is None:
        pytest.skip("machine code is listed with cuobjdump, which lies neither beside nvcc nor in the PATH nor in Triton")
    files = sorted(path.stem for path in (ROOT / "csrc").rglob("*.cu"))
    listed = {kind: re.findall(r": (\w+)\.(sm_\w+)\.(?:cubin|ptx)", _tool(tool, f"--list-{kind}", str(module))) for kind in ("elf", "ptx")}
    assert sorted(listed["elf"]) == sorted((name, arch) for name in files for arch in ("sm_80", "sm_90"))
    assert sorted(listed["ptx"]) == [(name, "sm_80") for name in files]  # how the tool calls PTX for compute_80


def test_it_says_what_it_was_built_for_and_whether_there_is_a_driver(found: Any) -> None:
    facts = found["facts"]
    assert facts["archs"] == "sm_80;sm_90;compute_80" and facts["version"] == "0.1.0" and facts["emulated"] is False
    assert re.match(r"nvcc \d+\.\d+\.\d+, g\+\+ ", facts["compilers"]) and facts["cuda"] >= 11000
    try:
        ctypes.CDLL("libcuda.so.1")
        has_driver = True
    except OSError:
        has_driver = False
    assert (facts["driver"] > 0) == has_driver
    assert not found["torch"]


def test_without_a_gpu_a_launch_returns_a_code_with_words(found: Any) -> None:
    codes, messages = found["codes"], found["messages"]
    assert codes["nothing"] == 0 and messages["nothing"] == "no error"
    assert codes["refused"] < 0 and "negative size" in messages["refused"]
    assert codes["launched"] > 0
    assert re.search("driver version is insufficient|no CUDA-capable device", messages["launched"]), messages["launched"]


def test_what_is_decided_on_the_host_needs_no_gpu(found: Any) -> None:
    assert found["tiles"] == [0, 1, 0, 0]  # of 200 rows the last 72 see more keys than the first 128


def test_doctor_shows_it(built: Any, tmp_path: Path) -> None:
    code = "from lmmblocks.cli import main; main(['doctor'])"
    shown = " ".join(built.run("-c", code, cwd=tmp_path, COLUMNS="100").split())
    compiled = r"lmmblocks\._C built for sm_80, sm_90, compute_80 by nvcc \S+, g\+\+ .*?"
    assert re.search(rf"{compiled}; (no driver|driver for CUDA \S+) LMMBLOCKS_BACKEND", shown), shown
    assert "cuda: tensors are on cpu: CUDA kernels need a CUDA device" in shown or "cuda_decode, cuda: tensors are on cpu" in shown


def _stamps(built: Any) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in (built.checkout / "build" / "csrc").rglob("*.o")}


def _installed(built: Any, new_installation: Callable[..., Any], *options: str) -> Any:
    made, before = new_installation("installed", built.checkout, **UNSEEN), _stamps(built)
    made.install("--quiet", *options, str(built.checkout), LMMBLOCKS_REQUIRE_CUDA="1")
    assert _stamps(built) == before, "kernels were compiled again"
    return made


def test_an_install_without_network_brings_it(built: Any, new_installation: Callable[..., Any], tmp_path: Path) -> None:
    installed = _installed(built, new_installation)
    answer = json.loads(installed.run("-c", PROBE, cwd=tmp_path))
    assert Path(answer["file"]).parent == installed.site_packages / "lmmblocks"
    assert answer["facts"]["archs"] == "sm_80;sm_90;compute_80" and answer["codes"]["launched"] > 0


def test_an_editable_install_brings_it(built: Any, new_installation: Callable[..., Any], module: Path, tmp_path: Path) -> None:
    module.unlink()
    installed = _installed(built, new_installation, "--editable")
    assert Path(json.loads(installed.run("-c", PROBE, cwd=tmp_path))["file"]) == module


def test_a_wheel_runs_in_another_folder(built: Any, in_this_environment: Callable[..., Any], tmp_path: Path) -> None:
    words = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(built.checkout))
    built.run(*words, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert not wheel.name.endswith("-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "elsewhere")
    outside = in_this_environment(tmp_path, PYTHONPATH=str(tmp_path / "elsewhere"), **UNSEEN)
    answer = json.loads(outside.run("-c", PROBE, cwd=tmp_path))
    assert Path(answer["file"]).parent == tmp_path / "elsewhere" / "lmmblocks"
    assert answer["facts"]["version"] == "0.1.0" and answer["codes"]["launched"] > 0
