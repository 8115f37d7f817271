"""How `lmmblocks._C` is built, tried with two tiny kernels: what is compiled again, what failures leave behind, and what the environment may say."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUILD = ("setup.py", "-q", "build_ext", "--build-lib", "out")
"""Asks for the module itself."""

IN_PLACE = ("setup.py", "-q", "build_ext", "--inplace")
INSTALL = ("setup.py", "-q", "build", "--build-lib", "out")
"""What an install does: the module is one part of it."""

EDITABLE = ("setup.py", "-q", "editable_wheel", "--dist-dir", "wheels")
"""What pip calls for an editable install."""

KEPT = ("build_extension.py", "cuda_toolkit.py", "exports.map")
SOURCES = {
    "bind.cpp": """
        #include <Python.h>
        extern "C" int twice(float*);
        extern "C" int once(float*);
        static PyObject* call(PyObject*, PyObject*) { return PyLong_FromLong(twice(nullptr) + once(nullptr)); }
        static PyMethodDef methods[] = {{"call", call, METH_NOARGS, ""}, {}};
        static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "", -1, methods};
        PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
    """,
    "twice/twice.cu": """
        #include "../factor.cuh"
        __global__ void kernel(float* x) { x[threadIdx.x] *= FACTOR; }
        extern "C" int twice(float* x) { kernel<<<1, 32>>>(x); return cudaGetLastError(); }
    """,
    "once/once.cu": 'extern "C" int once(float*) { return cudaSuccess; }\n',
    "factor.cuh": "#define FACTOR 2\n",
    "unused.cuh": "#define UNUSED\n",
}


def _give_tiny_kernels(checkout: Path) -> Path:
    csrc = checkout / "csrc"
    kept = {name: (csrc / name).read_text() for name in KEPT}
    shutil.rmtree(csrc)
    for name, text in (kept | SOURCES).items():
        (csrc / name).parent.mkdir(parents=True, exist_ok=True)
        (csrc / name).write_text(text)
    return checkout


@pytest.fixture(scope="module")
def uncompiled(copy_checkout: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with tiny kernels and hardly any Python."""
    checkout = _give_tiny_kernels(copy_checkout(tmp_path_factory.mktemp("tiny") / "checkout"))
    version = (checkout / "lmmblocks" / "__init__.py").read_text()
    for folder in ("lmmblocks", "kernels"):
        shutil.rmtree(checkout / folder)
        (checkout / folder).mkdir()
    (checkout / "lmmblocks" / "__init__.py").write_text(version)
    return checkout


@pytest.fixture(scope="module")
def compiled(uncompiled: Path, in_this_environment: Callable[..., Any], nvcc: str) -> Path:
    """The same, built for A100."""
    checkout = uncompiled.parent / "compiled"
    shutil.copytree(uncompiled, checkout)
    in_this_environment(checkout).run(*BUILD, cwd=checkout, LMMBLOCKS_CUDA_ARCHS="80", LMMBLOCKS_REQUIRE_CUDA="1")
    return checkout


@pytest.fixture
def build(in_this_environment: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """`build(of, edit, **environment)`: the finished process of a build for A100 in a copy of `of`, edited before; and the copy."""

    def run(of: Path, edit: Callable[[Path], Any] = lambda csrc: None, *, words: tuple[str, ...] = BUILD, **environment: str) -> Any:
        checkout = tmp_path / "checkout"
        shutil.copytree(of, checkout)
        edit(checkout / "csrc")
        return in_this_environment(checkout).attempt(*words, cwd=checkout, **{"LMMBLOCKS_CUDA_ARCHS": "80"} | environment), checkout

    return run


def _objects(checkout: Path) -> dict[str, str]:
    """Source -> name of its object, in a build folder that holds no other object, half ones included."""
    found = sorted(path.relative_to(checkout / "build" / "csrc") for path in (checkout / "build" / "csrc").rglob("*.o"))
    assert len({path.name.split(".")[0] for path in found}) == len(found)
    return {path.name.split(".")[0]: path.name for path in found}


def _modules(checkout: Path) -> list[Path]:
    return [path for path in checkout.rglob("_C*") if path.is_file() and path.name != "_C.reason.txt"]


def _reason(checkout: Path) -> str | None:
    """What the build recorded, in the one place where it recorded anything."""
    found = [path.read_text() for path in checkout.rglob("_C.reason.txt")]
    assert len(found) < 2
    return found[0] if found else None


def test_a_second_build_compiles_nothing(compiled: Path, build: Callable[..., Any]) -> None:
    done, checkout = build(compiled, LMMBLOCKS_REQUIRE_CUDA="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _objects(checkout) == _objects(compiled)
    stamps = {path.name: path.stat().st_mtime_ns for path in (compiled / "build").rglob("*.o")}
    assert {path.name: path.stat().st_mtime_ns for path in (checkout / "build").rglob("*.o")} == stamps


def test_a_changed_header_compiles_what_includes_it(compiled: Path, build: Callable[..., Any]) -> None:
    def edit(csrc: Path) -> None:
        (csrc / "factor.cuh").write_text("#define FACTOR 3\n")
        (csrc / "unused.cuh").write_text("#define CHANGED\n")

    done, checkout = build(compiled, edit, LMMBLOCKS_REQUIRE_CUDA="1")
    assert done.returncode == 0 and "compiling 1 files of CUDA kernels" in done.stderr
    before, after = _objects(compiled), _objects(checkout)
    assert {name for name in before if before[name] != after[name]} == {"twice"}
    assert len(_modules(checkout)) == 1


def test_other_architectures_are_other_objects(compiled: Path, build: Callable[..., Any], uncompiled: Path) -> None:
    done, checkout = build(compiled, LMMBLOCKS_CUDA_ARCHS="86", LMMBLOCKS_REQUIRE_CUDA="1")
    assert done.returncode == 0
    before, after = _objects(compiled), _objects(checkout)
    assert all(before[name] != after[name] for name in ("once", "twice", "bind"))


def _break(csrc: Path) -> None:
    (csrc / "twice" / "twice.cu").write_text("__global__ void kernel(float* x) { *x = unknown; }\n")


def test_a_kernel_that_does_not_compile_is_one_line_and_no_module(compiled: Path, build: Callable[..., Any]) -> None:
    done, checkout = build(compiled, _break, words=INSTALL)
    assert done.returncode == 0, done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("lmmblocks: installed")]
    assert len(ours) == 1 and "nvcc failed on csrc/twice/twice.cu" in ours[0] and 'identifier "unknown" is undefined' in ours[0]
    assert _modules(checkout) == [] and _objects(checkout) == _objects(compiled)
    recorded = (checkout / "out" / "lmmblocks" / "_C.reason.txt").read_text()
    assert recorded.endswith("\n") and f", as {recorded[:-1]}; everything else works" in ours[0]


def test_it_is_an_error_where_kernels_are_required(compiled: Path, build: Callable[..., Any]) -> None:
    done, checkout = build(compiled, _break, LMMBLOCKS_REQUIRE_CUDA="1")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: LMMBLOCKS_REQUIRE_CUDA is set, but nvcc failed on csrc/twice/twice.cu: ")
    assert _modules(checkout) == []


def test_a_compiler_that_stops_half_way_leaves_no_object(compiled: Path, build: Callable[..., Any], nvcc: str, tmp_path: Path) -> None:
    stops = tmp_path / "toolkit" / "bin" / "nvcc"
    stops.parent.mkdir(parents=True)
    stops.write_text(f'#!/bin/sh\ncase "$*" in *.cu*) for last; do :; done; echo half > "$last"; kill -9 $$ ;; esac\nexec {nvcc} "$@"\n')
    stops.chmod(0o755)
    done, checkout = build(compiled, words=INSTALL, LMMBLOCKS_CUDA_ARCHS="86", CUDA_HOME=str(stops.parents[1]))
    assert done.returncode == 0 and "nvcc failed on csrc/once/once.cu: exit status -9" in done.stderr
    assert not {name for name in ("once", "twice") if _objects(checkout)[name] != _objects(compiled)[name]}
    assert not list(checkout.rglob("*partial*")) and _modules(checkout) == []


def test_a_link_that_fails_leaves_no_module(compiled: Path, build: Callable[..., Any]) -> None:
    done, checkout = build(compiled, lambda csrc: (csrc / "exports.map").unlink(), words=INSTALL)
    assert done.returncode == 0 and "as linking failed: " in done.stderr and "exports.map" in done.stderr
    assert _modules(checkout) == []


@pytest.fixture(scope="module")
def in_place(compiled: Path, in_this_environment: Callable[..., Any]) -> Path:
    """A checkout with the module in it, and the record of an earlier failure that the build removed."""
    checkout = compiled.parent / "in_place"
    shutil.copytree(compiled, checkout)
    shutil.rmtree(checkout / "out")
    (checkout / "lmmblocks" / "_C.reason.txt").write_text("nvcc was not found\n")
    in_this_environment(checkout).run(*IN_PLACE, cwd=checkout, LMMBLOCKS_CUDA_ARCHS="80")
    shutil.rmtree(checkout / "build")
    (module,) = _modules(checkout)
    assert module.parent == checkout / "lmmblocks" and _reason(checkout) is None
    return checkout


def _without_pybind11(folder: Path) -> dict[str, str]:
    """Variables that hide pybind11, as in an environment that lacks it."""
    hide = "import importlib.util as u; found = u.find_spec; u.find_spec = lambda name, *rest: None if name == 'pybind11' else found(name, *rest)"
    (folder / "sitecustomize.py").write_text(hide)
    return {"PYTHONPATH": str(folder)}


NO_CUDA = {"pybind11": "pybind11 is not installed", "CXX": "the C++ compiler does not run", "LMMBLOCKS_SKIP_CUDA": "LMMBLOCKS_SKIP_CUDA was set"}
"""What prevents a build -> how the reason begins."""


def _prevented(by: str, folder: Path) -> dict[str, str]:
    return _without_pybind11(folder) if by == "pybind11" else {by: {"CXX": "/bin/false", "LMMBLOCKS_SKIP_CUDA": "1"}[by]}


@pytest.mark.parametrize("by", NO_CUDA)
def test_an_editable_install_that_builds_nothing_keeps_a_module_of_these_sources(
    in_place: Path, build: Callable[..., Any], tmp_path: Path, by: str
) -> None:
    done, checkout = build(in_place, words=EDITABLE, **_prevented(by, tmp_path))
    assert done.returncode == 0, done.stderr
    (module,), (before,) = _modules(checkout), _modules(in_place)
    assert module.read_bytes() == before.read_bytes() and _reason(checkout) is None
    ours = [line for line in done.stderr.splitlines() if line.startswith("lmmblocks: ") and "compiling" not in line]
    if by == "LMMBLOCKS_SKIP_CUDA":
        assert ours == []
    else:
        assert len(ours) == 1 and ours[0].startswith(f"lmmblocks: its CUDA kernels were not built again, as {NO_CUDA[by]}")
        assert ours[0].endswith(f"; {module.name}, built earlier of the same sources, stays")


@pytest.mark.parametrize("by", NO_CUDA)
def test_an_editable_install_that_builds_nothing_removes_a_module_of_other_sources(
    in_place: Path, build: Callable[..., Any], tmp_path: Path, by: str
) -> None:
    def edit(csrc: Path) -> None:
        (csrc / "factor.cuh").write_text("#define FACTOR 3\n")

    done, checkout = build(in_place, edit, words=EDITABLE, **_prevented(by, tmp_path))
    assert done.returncode == 0, done.stderr
    assert _modules(checkout) == [] and _reason(checkout).startswith(NO_CUDA[by])
    ours = [line for line in done.stderr.splitlines() if line.startswith("lmmblocks: installed")]
    assert len(ours) == 1 and ours[0].endswith("of an earlier build is removed: it is of other sources")


def test_a_module_of_another_version_is_one_of_other_sources(in_place: Path, build: Callable[..., Any]) -> None:
    def edit(csrc: Path) -> None:
        package = csrc.parent / "lmmblocks" / "__init__.py"
        package.write_text(package.read_text().replace('__version__ = "', '__version__ = "9.'))

    done, checkout = build(in_place, edit, words=EDITABLE, LMMBLOCKS_SKIP_CUDA="1")
    assert done.returncode == 0 and _modules(checkout) == [], done.stderr


@pytest.mark.parametrize("by", ["pybind11", "CXX"])
def test_a_build_that_was_asked_for_and_fails_is_an_error_and_changes_nothing(
    in_place: Path, build: Callable[..., Any], tmp_path: Path, by: str
) -> None:
    done, checkout = build(in_place, words=IN_PLACE, **_prevented(by, tmp_path))
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(f"error: build_ext was asked for, but {NO_CUDA[by]}")
    (module,), (before,) = _modules(checkout), _modules(in_place)
    assert module.read_bytes() == before.read_bytes() and _reason(checkout) is None


def test_a_checkout_whose_kernels_do_not_compile_installs_all_the_same(new_installation: Callable[..., Any], nvcc: str, tmp_path: Path) -> None:
    broken = new_installation("broken")
    _break(_give_tiny_kernels(broken.checkout) / "csrc")
    log = tmp_path / "log"  # with this pip the output of a build is in its log file, and on the terminal with -vv only
    broken.install("--log", str(log), str(broken.checkout), LMMBLOCKS_CUDA_ARCHS="80")
    assert "lmmblocks: installed without its CUDA kernels, as nvcc failed on csrc/twice/twice.cu: " in log.read_text()
    code = "from lmmblocks import ops; from lmmblocks.ops.cuda_gate import extension_problem; print(extension_problem())"
    told = "lmmblocks._C was not built when lmmblocks was installed: nvcc failed on csrc/twice/twice.cu: "
    assert broken.run("-c", code, cwd=tmp_path).startswith(told)


def test_without_nvcc_it_says_so_in_one_line(uncompiled: Path, build: Callable[..., Any], tmp_path: Path) -> None:
    done, checkout = build(uncompiled, words=INSTALL, CUDA_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "")
    ours = [line for line in done.stderr.splitlines() if line and "byte-compiling" not in line]
    assert ours == [f"lmmblocks: installed without its CUDA kernels, as nvcc was not found in {tmp_path}/bin; everything else works"]
    assert _modules(checkout) == [] and _reason(checkout) == f"nvcc was not found in {tmp_path}/bin\n"


@pytest.mark.parametrize("words", [BUILD, IN_PLACE, (*IN_PLACE, "build")])
def test_without_nvcc_it_is_an_error_where_the_module_is_asked_for(uncompiled: Path, build: Callable[..., Any], tmp_path: Path, words: Any) -> None:
    done, checkout = build(uncompiled, words=words, CUDA_HOME=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: build_ext was asked for, but nvcc was not found in {tmp_path}/bin (") and _reason(checkout) is None


def test_without_nvcc_it_is_an_error_where_kernels_are_required(uncompiled: Path, build: Callable[..., Any], tmp_path: Path) -> None:
    done, _ = build(uncompiled, CUDA_HOME=str(tmp_path), LMMBLOCKS_REQUIRE_CUDA="1")
    assert (done.returncode, done.stderr) == (1, f"error: LMMBLOCKS_REQUIRE_CUDA is set, but nvcc was not found in {tmp_path}/bin\n")


def test_kernels_that_are_not_wanted_are_not_mentioned(uncompiled: Path, build: Callable[..., Any]) -> None:
    done, checkout = build(uncompiled, LMMBLOCKS_SKIP_CUDA="1", CXX="no-such-compiler")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert _modules(checkout) == [] and not (checkout / "build" / "csrc").exists()
    assert _reason(checkout) == "LMMBLOCKS_SKIP_CUDA was set\n"


def test_a_wheel_without_kernels_holds_the_reason(uncompiled: Path, build: Callable[..., Any]) -> None:
    words = ("setup.py", "-q", "bdist_wheel", "--dist-dir", "wheels")
    done, checkout = build(uncompiled, words=words, LMMBLOCKS_SKIP_CUDA="1")
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "wheels").glob("*-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("lmmblocks/_C.reason.txt") == b"LMMBLOCKS_SKIP_CUDA was set\n"
    assert not (checkout / "lmmblocks" / "_C.reason.txt").exists(), "it is of the wheel, not of the checkout"


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"LMMBLOCKS_SKIP_CUDA": "1", "LMMBLOCKS_REQUIRE_CUDA": "1"}, "LMMBLOCKS_SKIP_CUDA and LMMBLOCKS_REQUIRE_CUDA are both set: unset one"),
        ({"LMMBLOCKS_SKIP_CUDA": "yes"}, "LMMBLOCKS_SKIP_CUDA='yes': expected 0 or 1"),
        ({"LMMBLOCKS_REQUIRE_CUDA": "2"}, "LMMBLOCKS_REQUIRE_CUDA='2': expected 0 or 1"),
        *(
            ({"LMMBLOCKS_CUDA_ARCHS": text}, f"LMMBLOCKS_CUDA_ARCHS='{text}': expected compute capabilities of at least 80 without a dot")
            for text in ("75", "8.0", "80,90", "sm_80", "80;;90", "90a", "native", "80 90")
        ),
    ],
)  # fmt: skip
def test_a_variable_that_makes_no_sense_is_an_error_of_one_line(
    uncompiled: Path, build: Callable[..., Any], environment: dict[str, str], message: str
) -> None:
    done, _ = build(uncompiled, **environment)
    assert done.returncode == 1 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(f"error: {message}")


def test_an_architecture_that_nvcc_does_not_know_is_an_error_of_one_line(uncompiled: Path, build: Callable[..., Any], nvcc: str) -> None:
    done, _ = build(uncompiled, LMMBLOCKS_CUDA_ARCHS="80;99")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "does not compile for 99: set LMMBLOCKS_CUDA_ARCHS to some of 80, " in done.stderr
