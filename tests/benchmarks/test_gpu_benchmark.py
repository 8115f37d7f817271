"""The GPU benchmark's own honesty: what it calls right, what it records, and what it says it reached."""

import json
import time
from importlib import import_module

import pytest
import torch

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")

from lmmblocks.kernels.verified import load

from benchmarks.gpu import cuda_kernels, run
from benchmarks.gpu.__main__ import SUITES, main
from benchmarks.gpu.case import Check, Suite, Target, Timing, in_cuda_too, is_cuda
from benchmarks.gpu.correctness import verdicts
from benchmarks.gpu.cuda_kernels import cuda_alone, left_out, without_cuda
from benchmarks.gpu.record import Row, write_csv, write_verified
from benchmarks.gpu.report import reached
from benchmarks.gpu.sanitized_calls import CALLS
from lmmblocks.ops.dispatch import ladders

CPU = torch.device("cpu")
ABOUT = {"device": "NVIDIA Test", "commit": "abc", "date": "2026-01-31", "torch": "2.11.0", "triton": "3.6.0"}


def _check(run, op="rms_norm", **options):
    return Check(op, "case", lambda device, toy: {"x": torch.randn(8, 8)}, run, **options)


def _verdict(run, **options):
    return next(verdicts(_check(run, **options), CPU, True, (torch.float32,)))


def test_an_exact_kernel_passes():
    assert _verdict(lambda backend, inputs: (inputs["x"] * 2,)).problem == ""


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_a_wrong_kernel_fails(wrong):
    assert "error" in _verdict(lambda backend, inputs: (inputs["x"] + (wrong if backend == "triton" else 0),)).problem


def test_a_kernel_that_changes_its_mind_fails():
    calls = iter(range(99))
    problem = _verdict(lambda backend, inputs: (inputs["x"] + (1e-7 * next(calls) if backend == "triton" else 0),)).problem
    assert "not the same bits" in problem


def test_a_kernel_that_crashes_is_a_failure_and_not_the_end():
    def run(backend, inputs):
        raise RuntimeError("out of resource\nsecond line")

    assert _verdict(run).problem == "RuntimeError: out of resource"


def test_a_kernel_that_leaves_memory_unwritten_fails():
    """What torch.empty gives happens to be right until it is filled with NaN."""

    def run(backend, inputs):
        y = inputs["x"].clone()
        if backend == "triton" and torch.are_deterministic_algorithms_enabled():
            y[-1] = torch.empty(8)
        return (y,)

    assert "unwritten" in _verdict(run).problem and not torch.are_deterministic_algorithms_enabled()


def test_a_kernel_that_lies_apart_from_its_peer_fails():
    """Each is within what it may differ from fp64, on different sides."""
    shift = {"cuda": 1.5e-4, "triton": -1.9e-4}
    run = lambda backend, inputs: (inputs["x"] + shift.get(backend, 0),)  # noqa: E731
    options = {"implementation": "cuda", "plain": lambda inputs: (inputs["x"] + 1e-4,)}
    verdict = _verdict(run, peer="triton", **options)
    assert "from triton's" in verdict.problem and 3.3e-4 < verdict.apart < 3.5e-4
    alone = _verdict(run, **options)
    assert alone.problem == "" and alone.apart is None


def test_cuda_kernels_are_checked_as_triton_is_and_can_be_left_out():
    checks = in_cuda_too([_check(None, plain=len)])
    assert [(check.kernel, check.peer, check.plain) for check in checks] == [("rms_norm.triton", None, len), ("rms_norm.cuda", "triton", len)]
    ways = dict.fromkeys(("lmmblocks triton", "lmmblocks cuda", "SDPA cuDNN"))
    targets = [Target("rms_norm", "fwd", "", "copy", 0.9, ours=ours) for ours in ("lmmblocks ", "lmmblocks cuda")]
    suite = Suite(checks, [Timing("rms_norm", "big", "fwd", None, ways)], targets)
    rest = without_cuda(suite)
    assert rest.checks == checks[:1] and list(rest.timings[0].providers) == ["lmmblocks triton", "SDPA cuDNN"] and rest.targets == targets[:1]
    alone = cuda_alone(suite)
    assert alone.checks == checks[1:] and alone.timings == suite.timings and alone.targets == targets[1:]


@pytest.mark.parametrize(
    ("ending", "line"),
    [("", "built lmmblocks._C for sm_90"), ("sys.exit('error: no nvcc')", "could not build lmmblocks._C: error: no nvcc")],
)
def test_what_came_of_a_build_is_told_in_one_line(tmp_path, monkeypatch, ending, line):
    (tmp_path / "setup.py").write_text(f"import os, sys\nassert os.environ['LMMBLOCKS_CUDA_ARCHS'] == '90'\nprint('compiling')\n{ending}\n")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(cuda_kernels, "ROOT", tmp_path)
    assert cuda_kernels.build() == line


def test_every_cuda_kernel_is_checked_timed_and_sanitized():
    """A kernel on a ladder that no suite checks could never be proven, and `auto` would never choose it."""
    suites = [import_module(f"benchmarks.gpu.suites.{name}").SUITE for name in SUITES]
    checked = {check.kernel for suite in suites for check in suite.checks}
    timed = {provider for suite in suites for timing in suite.timings for provider in timing.providers}
    kernels = {f"{op}.{name}" for op, names in ladders().items() for name in names if is_cuda(name)}
    assert kernels and kernels <= checked and kernels == set(CALLS)
    assert {f"lmmblocks {kernel.partition('.')[2]}" for kernel in kernels} <= timed


def test_checks_that_there_is_no_time_for_are_not_made_and_told():
    suite, unchecked = Suite([_check(lambda backend, inputs: (inputs["x"],))]), set()
    assert list(run._checked([suite], CPU, True, time.monotonic() + 60, unchecked)) and not unchecked
    assert not list(run._checked([suite], CPU, True, time.monotonic() - 1, unchecked)) and unchecked == {"rms_norm.triton"}


def test_missing_cuda_kernels_are_told_in_one_line():
    line = left_out(CPU)
    assert line.startswith("CUDA kernels left out: ") and "\n" not in line


def test_only_kernels_without_a_failure_are_recorded(tmp_path):
    path = tmp_path / "verified.json"
    old = {"kernel": "rope.triton", "device": "NVIDIA Test", "capability": [9, 0], "date": "2026-01-01"}
    old |= {"versions": {"torch": "2.10"}, "max_error": 0.1}
    path.write_text(json.dumps({"schema": 1, "runs": [old]}))
    good = list(verdicts(_check(lambda backend, inputs: (inputs["x"],)), CPU, True, (torch.float32,)))
    bad = list(verdicts(_check(lambda backend, inputs: (inputs["x"] + (backend == "triton"),), "rope"), CPU, True, (torch.float32,)))
    assert write_verified(good + bad, ABOUT, (9, 0), path) == ["rms_norm.triton"]
    load.cache_clear()
    assert [(run.kernel, run.capability) for run in load(path)] == [("rms_norm.triton", (9, 0))]


def test_a_kernel_that_the_sanitizer_accuses_loses_its_entry_and_one_without_time_keeps_it(tmp_path):
    path, run = tmp_path / "verified.json", lambda backend, inputs: (inputs["x"],)
    entry = {"device": "NVIDIA Test", "capability": [9, 0], "date": "2026-01-01", "versions": {"torch": "2.10"}, "max_error": 0.1}
    path.write_text(json.dumps({"schema": 1, "runs": [{"kernel": f"{op}.cuda", **entry} for op in ("rope", "splice", "swiglu")]}))
    ops = ("rms_norm", "rope", "splice")
    found = [v for op in ops for v in verdicts(_check(run, op, implementation="cuda"), CPU, True, (torch.float32,))]
    about = ABOUT | {"compilers": "nvcc 13.0"}
    assert write_verified(found, about, (9, 0), path, accused={"rope.cuda"}, unfinished={"splice.cuda"}) == ["rms_norm.cuda"]
    load.cache_clear()
    assert [(run.kernel, run.versions) for run in load(path)] == [
        ("rms_norm.cuda", {"torch": "2.11.0", "compilers": "nvcc 13.0"}),
        ("splice.cuda", {"torch": "2.10"}),
        ("swiglu.cuda", {"torch": "2.10"}),
    ]


def test_targets_say_what_was_reached_and_nothing_of_what_was_not_measured():
    rows = [
        Row("rms_norm", "big", "fwd", "lmmblocks triton", 2.0, 1.9, 2.1, host_us=12.0, peak_mb=50.0, share_of_copy=0.9),
        Row("rms_norm", "big", "fwd", "peer", 3.0, 2.9, 3.1, peak_mb=40.0),
        Row("rms_norm", "small", "fwd", "lmmblocks triton", note="not measured: out of time"),
    ]
    assert reached(Target("rms_norm", "fwd", "", "peer", 1.5), rows) == [("big", 1.5), ("small", None)]
    assert reached(Target("rms_norm", "fwd", "big", "copy", 0.8), rows) == [("big", 0.9)]
    assert reached(Target("rms_norm", "fwd", "big", "absent", 1.0), rows) == [("big", None)]
    assert reached(Target("rms_norm", "fwd", "big", "peer", 1.0, "peak_mb"), rows) == [("big", 0.8)]
    assert reached(Target("rms_norm", "fwd", "big", "limit", 20.0, "host_us"), rows) == [("big", 12.0)]


def test_a_target_of_one_kernel_is_not_reached_by_another():
    measured = {"triton": (2.0, 0.9), "cuda": (4.0, 0.45)}
    rows = [Row("splice", "big", "fwd", f"lmmblocks {name}", ms, share_of_copy=share) for name, (ms, share) in measured.items()]
    shares = [reached(Target("splice", "fwd", "", "copy", 0.9, ours=ours), rows) for ours in ("lmmblocks ", "lmmblocks cuda")]
    assert shares == [[("big", 0.9)], [("big", 0.45)]]


def test_csv_says_where_and_when(tmp_path):
    write_csv(tmp_path / "gpu.csv", [Row("rms_norm", "big", "fwd", "peer", 3.0, 2.9, 3.1)], ABOUT)
    head, row = (tmp_path / "gpu.csv").read_text().splitlines()
    cells = dict(zip(head.split(","), row.split(",")))
    assert (cells["device"], cells["date"], cells["versions"], cells["peak_mb"]) == ("NVIDIA Test", "2026-01-31", "torch=2.11.0 triton=3.6.0", "")


def test_command_says_what_it_needs(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2 and "--toy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--toy", "--only", "nothing"])
    assert "choose from" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--toy", "--sanitize"])
    assert "need a GPU" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU only where there is none")
def test_every_suite_passes_its_small_checks_in_the_interpreter(capsys, monkeypatch):
    """Each check in one dtype: tests/kernels runs the kernels in all of them."""
    verdicts = run.verdicts

    def in_one_dtype(check, device, toy, dtypes):
        return verdicts(check, device, toy, tuple(dtype for dtype in dtypes if dtype in check.dtypes)[:1])

    monkeypatch.setattr(run, "verdicts", in_one_dtype)
    assert main(["--toy"]) == 0, capsys.readouterr().out


def test_cuda_kernels_pass_their_small_checks_in_the_emulator(cuda_emulation, capsys):
    """What the report says of each: the kernel's name, its case, errors, and how far it is from Triton's."""
    assert main(["--toy", "--cuda-only", "--only", "splice", "attention_decode"]) == 0
    said = capsys.readouterr().out
    verdicts = [line for line in said.splitlines() if line.startswith("ok")]
    assert any(line.startswith("ok   splice.cuda truncated bfloat16") for line in verdicts)
    assert any("attention.cuda_decode decode: d256 float16" in line and "from triton_decode" in line for line in verdicts)
    assert "FAIL" not in said and "left out" not in said and f"{len(verdicts)} of {len(verdicts)} checks passed" in said
