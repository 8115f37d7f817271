"""The GPU benchmark's own honesty: what it calls right, what it records, and what it says it reached."""

import json

import pytest
import torch

pytest.importorskip("triton", reason="a torch without Triton: its kernels can't be run")

from lmmblocks.kernels.verified import load

from benchmarks.gpu import cuda_kernels
from benchmarks.gpu.__main__ import main, parsed
from benchmarks.gpu.case import COMPILED, Check, Suite, Target, Timing, in_cuda_too, is_cuda
from benchmarks.gpu.correctness import verdict, verdicts
from benchmarks.gpu.cuda_kernels import cuda_alone, left_out
from benchmarks.gpu.machine import Gpu
from benchmarks.gpu.predicted import EXPECTED, MACHINES, decides, table
from benchmarks.gpu.record import Row, expected_items, rows_of, update_verified, write_csv
from benchmarks.gpu.rehearsal import Rehearsal
from benchmarks.gpu.report import line_of, reached
from benchmarks.gpu.sanitized_calls import CALLS
from benchmarks.gpu.steps import PROFILED, check_item, stages
from benchmarks.gpu.suites_by_name import SUITES, loaded
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


def test_cuda_kernels_are_checked_as_triton_is_and_can_be_alone():
    checks = in_cuda_too([_check(None, plain=len)])
    assert [(check.kernel, check.peer, check.plain) for check in checks] == [("rms_norm.triton", None, len), ("rms_norm.cuda", "triton", len)]
    ways = dict.fromkeys(("lmmblocks triton", "lmmblocks cuda", "SDPA cuDNN"))
    targets = [Target("rms_norm", "fwd", "", "copy", 0.9, ours=ours) for ours in ("lmmblocks ", "lmmblocks cuda")]
    suite = Suite(checks, [Timing("rms_norm", "big", "fwd", None, ways)], targets)
    alone = cuda_alone(suite)
    assert alone.checks == checks[1:] and alone.timings == suite.timings and alone.targets == targets[1:]


@pytest.mark.parametrize(("ending", "line"), [("", ""), ("sys.exit('error: no nvcc')", "could not build lmmblocks._C for sm_80: error: no nvcc")])
def test_what_came_of_a_build_is_told_in_one_line(tmp_path, monkeypatch, ending, line):
    ours = f"assert sys.argv[1:] == ['build_ext', '--build-lib', {str(tmp_path / 'built')!r}]"
    (tmp_path / "setup.py").write_text(f"import os, sys\nassert os.environ['LMMBLOCKS_CUDA_ARCHS'] == '80'\n{ours}\nprint('compiling')\n{ending}\n")
    monkeypatch.setattr(cuda_kernels, "ROOT", tmp_path)
    assert cuda_kernels.build("80", tmp_path / "built") == line


def test_a_build_for_other_devices_is_not_taken_for_the_one_that_was_asked_for(monkeypatch):
    """Beside code for this GPU an A100's would never run."""
    monkeypatch.setattr(cuda_kernels, "cuda_refusal", lambda tensor: None)
    monkeypatch.setattr(cuda_kernels, "extension_report", lambda: {"archs": "sm_80;sm_90;compute_80"})
    assert "not for sm_80 alone" in left_out(CPU, "80") and left_out(CPU) is None
    monkeypatch.setattr(cuda_kernels, "extension_report", lambda: {"archs": "sm_80;compute_80"})
    assert left_out(CPU, "80") is None


def test_every_cuda_kernel_is_checked_timed_and_sanitized():
    """A kernel on a ladder that no suite checks could never be proven, and `auto` would never choose it."""
    suites = loaded(SUITES).values()
    checked = {check.kernel for suite in suites for check in suite.checks}
    timed = {provider for suite in suites for timing in suite.timings for provider in timing.providers}
    kernels = {f"{op}.{name}" for op, names in ladders().items() for name in names if is_cuda(name)}
    assert kernels and kernels <= checked and kernels == set(CALLS)
    assert {f"lmmblocks {kernel.partition('.')[2]}" for kernel in kernels} <= timed


def test_missing_cuda_kernels_are_told_in_one_line():
    line = left_out(CPU)
    assert line.startswith("CUDA kernels left out: ") and "\n" not in line


RUN = {**ABOUT, "capability": [9, 0], "arch": "90"}
EXPECTED_ITEMS = {"rms_norm.triton": {"a", "b"}, "rope.triton": {"c"}, "splice.cuda": {"d"}}


def _said(item, kernel, problem="", arch="", **more):
    return {"event": "verdict", "step": arch, "item": item, "kernel": kernel, "arch": arch, "problem": problem, "error": 0.5, **more}


def _recorded(tmp_path, events, kept=("rms_norm.triton", "rope.triton", "splice.cuda", "swiglu.triton")):
    """The record after these events, which found entries of all those kernels, also for another device."""
    path = tmp_path / "verified.json"
    old = {"device": "NVIDIA Test", "date": "2026-01-01", "versions": {"torch": "2.10"}, "max_error": 0.1}
    path.write_text(json.dumps({"schema": 1, "runs": [{"kernel": k, "capability": c, **old} for k in kept for c in ([8, 0], [9, 0])]}))
    update_verified(path, events, EXPECTED_ITEMS, RUN)
    load.cache_clear()
    runs = load(path)
    assert sum(run.capability == (8, 0) for run in runs) == len(kept), "another device's entries have changed"
    return {run.kernel: run.versions for run in runs if run.capability == (9, 0)}


OLD = {"torch": "2.10"}


def test_a_kernel_is_recorded_when_all_its_checks_passed(tmp_path):
    events = [_said("a", "rms_norm.triton"), _said("b", "rms_norm.triton"), _said("d", "splice.cuda", arch="90", compilers="nvcc 13.0")]
    found = _recorded(tmp_path, events, kept=())
    assert found == {"rms_norm.triton": {"torch": "2.11.0", "triton": "3.6.0"}, "splice.cuda": {"torch": "2.11.0", "compilers": "nvcc 13.0"}}


def test_one_that_was_not_checked_or_not_wholly_keeps_its_entry_and_one_that_failed_loses_it(tmp_path):
    found = _recorded(tmp_path, [_said("a", "rms_norm.triton"), _said("c", "rope.triton", "its process hung")])
    assert found == {"rms_norm.triton": OLD, "splice.cuda": OLD, "swiglu.triton": OLD}


def test_what_a_build_for_an_a100_does_elsewhere_says_nothing_of_either_device(tmp_path):
    assert _recorded(tmp_path, [_said("d", "splice.cuda", arch="80")], kept=()) == {}
    assert _recorded(tmp_path, [_said("d", "splice.cuda", "wrong", arch="80")])["splice.cuda"] == OLD


def test_a_kernel_that_the_sanitizer_accuses_loses_its_entry(tmp_path):
    accusation = {"event": "sanitized", "step": "sanitizer", "item": "all tools", "outcomes": [{"kernel": "splice.cuda", "problem": "race"}]}
    assert "splice.cuda" not in _recorded(tmp_path, [_said("d", "splice.cuda", arch="90"), accusation])


def test_every_check_and_time_has_a_name_of_its_own_and_every_suite_takes_part():
    suites = loaded(SUITES)
    options = parsed(["--out", "x", "--full"])
    steps = [step for stage in stages(suites, "90", options, True) for step in stage.steps]
    assert len({step.name for step in steps}) == len(steps)
    named = [item for step in steps for item in step.items if step.kind == "times"]
    rows = sum(len(timing.providers) for suite in suites.values() for timing in suite.timings)
    assert len(named) == len(set(named)) == rows
    checks = sum(len(check.dtypes) for suite in suites.values() for check in suite.checks)
    assert sum(map(len, expected_items(suites.values()).values())) == checks
    own = [step for step in steps if step.kind == "checks" and not step.name.startswith("sm_80")]
    assert sum(len(step.items) for step in own) == checks


def test_an_a100s_own_path_is_checked_elsewhere_and_not_twice_on_an_a100():
    suites, options = loaded(SUITES), parsed(["--out", "x"])
    steps = {arch: [step.name for stage in stages(suites, arch, options, True) for step in stage.steps] for arch in ("80", "90")}
    checked = {arch: [name for name in names if "sm_80" in name] for arch, names in steps.items()}
    assert checked["80"] == ["build sm_80"]
    assert checked["90"][0] == "build sm_80" and {"sm_80: attention", "sm_80: splice"} <= set(checked["90"])


def test_peers_that_torch_compiles_are_timed_in_a_full_call_alone():
    suites = loaded(SUITES)
    for full in (False, True):
        options = parsed(["--out", "x", *(["--full"] if full else [])])
        items = [item for stage in stages(suites, "90", options, True) for step in stage.steps if step.kind == "times" for item in step.items]
        assert any(item.partition(" | ")[2].startswith(COMPILED) for item in items) == full


def test_what_was_predicted_and_what_ncu_looks_at_is_timed():
    timings = [timing for suite in loaded(SUITES).values() for timing in suite.timings]
    assert sum(map(decides, timings)) == len(EXPECTED)
    for expected in EXPECTED:
        timing = next(t for t in timings if (t.op, t.mode, t.shape) == (expected.op, expected.mode, expected.shape))
        assert timing.quick and expected.peer in timing.providers and any(name.startswith(expected.ours) for name in timing.providers)
        assert set(expected.shares) == set(MACHINES) and all(0 < low < high < 1 for low, high in expected.shares.values())
    for suite, mode, shape, _ in PROFILED.values():
        found = [t for t in loaded([suite])[suite].timings if (t.mode, t.shape) == (mode, shape)]
        assert len(found) == 1 and "lmmblocks cuda" in found[0].providers


@pytest.mark.parametrize("machine", MACHINES)
def test_the_predictions_that_are_written_down_are_those_that_reports_compare_with(machine):
    assert table(machine) in (cuda_kernels.ROOT / "benchmarks" / f"{machine}.md").read_text()


def test_shares_are_of_the_ceilings_of_the_same_journal():
    row = {"event": "row", "step": "times", "item": "x", "op": "splice", "shape": "big", "mode": "fwd", "provider": "lmmblocks cuda"}
    row |= {"ms_median": 2.0, "bytes": 10**9, "flops": 0}
    limits = {"event": "ceilings", "step": "ceilings", "item": "y", "copy_bytes_per_s": 1e12, "gemm_flops_per_s": 1e14}
    assert rows_of([row, limits])[0].share_of_copy == pytest.approx(0.5) and rows_of([row, limits])[0].share_of_gemm is None
    assert rows_of([row])[0].share_of_copy is None


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


def test_command_says_what_it_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--out", str(tmp_path)]) == 2 and "--rehearse" in capsys.readouterr().out
    for words, said in (
        ([], "--out"),
        (["--out", "x", "--only", "nothing"], "choose from"),
        (["--out", "x", "--plant", "hang", "rope"], "--rehearse beside it"),
        (["--out", "x", "--resume", "/nowhere"], "no such folder"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter stands in for a GPU only where there is none")
def test_every_suite_passes_its_small_checks_in_the_interpreter(name, tmp_path, monkeypatch):
    """Each check in one dtype: tests/kernels runs the kernels in all of them."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    machine = Rehearsal(tmp_path)
    checks = [check for check in machine.suites(loaded([name]))[name].checks if not is_cuda(check.implementation)]
    problems = {check_item(c.kernel, c.case, dtype): machine.verdict(c, dtype).problem for c in checks for dtype in c.dtypes}
    assert problems == dict.fromkeys(problems, "") and len(problems) >= 1


def test_cuda_kernels_pass_their_small_checks_in_the_emulator(cuda_emulation, tmp_path):
    """What is printed of each: the kernel's name, its case, errors, and how far it is from Triton's."""
    lines = []
    for suite in loaded(["splice", "attention_decode"]).values():
        for check in suite.checks:
            for dtype in check.dtypes if is_cuda(check.implementation) else ():
                found = verdict(check, CPU, True, dtype)
                shown = {"error": found.error, "torch_error": found.torch_error, "apart": found.apart, "problem": found.problem}
                item = check_item(check.kernel, check.case, dtype)
                lines.append(line_of({"event": "verdict", "step": "cuda: x", "item": item, "peer": check.peer, **shown}))
    assert all(line.startswith("ok ") for line in lines), "\n".join(lines)
    assert any("splice.cuda truncated bfloat16" in line for line in lines)
    assert any("attention.cuda_decode decode: d256 float16" in line and "from triton_decode" in line for line in lines)


def test_a_rehearsal_does_nothing_that_a_gpu_does_not():
    """The same steps and names: a method that only one of the two has would be a path that nothing rehearses."""
    own = {name for name in vars(Rehearsal) if not name.startswith("_")} - {"toy"}
    assert own <= set(dir(Gpu)), own - set(dir(Gpu))
